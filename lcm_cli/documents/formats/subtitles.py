"""Subtitles: SubRip (.srt) and WebVTT (.vtt), translated sentence by sentence at the same times.

Cues are joined into sentences, and the translation of a sentence is divided among its cues in
proportion to their lengths, at spaces. Times, numbers, settings, notes and styles are copied.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice, pairwise

from lcm_cli.documents.formats.locating import completed, locate
from lcm_cli.documents.formats.skeleton import Pair, Passage
from lcm_cli.errors import IntegrityError
from lcm_cli.text.languages import gap

LINE = 42  # characters in a line of subtitles, at most, to be readable at a glance
_PAUSE = 3.0  # seconds without a cue after which a new sentence begins
_LONGEST = 600  # characters of cues without a full stop that are joined as one sentence

_CLOCK = r"(?:\d{1,4}:)?\d{1,2}:\d{2}[.,]\d{1,3}"
_TIMES = re.compile(
    rf"^[ \t]*(?P<start>{_CLOCK})[ \t]*-->[ \t]*(?P<end>{_CLOCK}).*$",
    re.MULTILINE,
)
_TAG = r"<[^<>\n]*>|\{\\[^{}\n]*\}"
_PREFIX = re.compile(rf"(?:\s|{_TAG}|[♪♫#])*")
_MARKED = re.compile(r"(<([a-z]+)(?:[ .][^<>]*)?>)([^<>]+)(</\2>)")
_MOST_MARKED = 20  # words in a cue that keep tags of their own
_OPEN, _CLOSE = re.compile(r"<([a-z]+)(?:[ .][^<>]*)?>"), re.compile(r"</([a-z]+)>")
_AT_END = re.compile(rf"{_TAG}|[\s♪♫#]+")
_ALONE = re.compile(r"[\[(][^\])]*[\])]")  # a sound
_SPEAKER = re.compile(r"[\[(]|[A-Z][A-Z .'-]+:")  # whose words begin a sentence
_ANY_TAG = re.compile(_TAG)
_DASH = re.compile(rf"(?:{_TAG}|\s)*[-–—‐]\s*(?=\S)")
_CLOSED = re.compile(r"[.!?…。！？][\"'”’»)\]]*$")
_PAUSING = re.compile(r"[,;:.!?…、。，！？][\"'”’»)\]]*$")
_WORDS = re.compile(r"\w")


@dataclass
class _Speech:
    """The words of one speaker in a cue: a slot in the source, with the markup at its ends."""

    start: int
    end: int
    text: str
    prefix: str
    suffix: str
    dash: bool
    begin: float  # of the cue, in seconds
    until: float
    marked: list[tuple[str, str, str]] = field(default_factory=list)  # tag, words, closing tag


class Subtitles:
    """The skeleton of a subtitle file."""

    is_text = True

    def __init__(self, source: str, suffix: str) -> None:
        self.source, self.suffix = source, suffix
        self._escaped = suffix == ".vtt"
        self._runs = list(_runs(list(_speeches(source, self._escaped))))
        self.passages = [
            Passage(" ".join(one.text for one in run), number, clock(run[0].begin))
            for number, run in enumerate(self._runs)
        ]

    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes:
        """Return the file with the text of its cues replaced."""
        parts, at = [], 0
        for passage, run, pairs in zip(self.passages, self._runs, sentences, strict=True):
            for one, text in zip(run, _divided(passage.text, run, pairs, lang), strict=True):
                parts += [self.source[at : one.start], self._shown(one, text, lang)]
                at = one.end
        return "".join([*parts, self.source[at:]]).encode()

    def _shown(self, one: _Speech, text: str, lang: str) -> str:
        shown = text if one.dash else "\n".join(lines(text, lang))
        # An arrow would turn the line into a line of times.
        shown = html.escape(shown, quote=False) if self._escaped else shown.replace("-->", "->")
        for before, words, after in one.marked:
            shown = re.sub(
                rf"(?<!\w){re.escape(words)}(?!\w)",
                lambda found, b=before, a=after: f"{b}{found[0]}{a}",  # type: ignore[misc]
                shown,
                count=1,
            )
        return one.prefix + shown + one.suffix


def read(source: str, suffix: str, name: str = "the file") -> Subtitles:
    """Return the skeleton of a subtitle file; `suffix` is .srt or .vtt, `name` for messages.

    Raises IntegrityError if it has no cues.
    """
    if not _TIMES.search(source):
        raise IntegrityError(
            f"{name} has no subtitles: no line such as 00:00:01.000 --> 00:00:02.500",
            "if it is plain text, add --format text",
        )
    return Subtitles(source, suffix)


def clock(seconds: float) -> str:
    """Return a time in readable form, such as 1:02:03."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _speeches(source: str, escaped: bool) -> Iterator[_Speech]:
    """Yield the speeches of each cue that has words."""
    cues = list(_TIMES.finditer(source))
    for cue, following in zip(cues, [*cues[1:], None], strict=True):
        limit = len(source) if following is None else following.start()
        begin, until = _seconds(cue["start"]), _seconds(cue["end"])
        body = re.compile(r"\n((?:[^\n]*\S[^\n]*\n?)+)").match(source, cue.end(), limit)
        if body is None:
            continue
        text = body[1].rstrip("\n")
        if following is not None and body.end() == limit:
            # No blank line before the next cue: the last line is its number.
            text = re.sub(r"\n?[^\n]*$", "", text) if source[limit - 1] == "\n" else text
        for start, end in _speakers(text):
            made = _speech(text[start:end], body.start(1) + start, begin, until, escaped)
            if made is not None:
                yield made


def _speakers(text: str) -> list[tuple[int, int]]:
    """Return the ranges of a cue's speakers, each of whose lines begins with a dash."""
    starts = [0, *(found.end() for found in re.finditer("\n", text))]
    dashes = [start for start in starts if _DASH.match(text, start)]
    if len(dashes) < 2:
        return [(0, len(text))]
    edges = sorted({0, *dashes, len(text) + 1})
    return [(start, end - 1) for start, end in pairwise(edges)]


def _speech(raw: str, at: int, begin: float, until: float, escaped: bool) -> _Speech | None:
    dash = _DASH.match(raw)
    found = _PREFIX.match(raw, dash.end() if dash else 0)
    first = found.end() if found else 0
    first, last = _paired(raw, first, _ending(raw, first))
    inner = raw[first:last]
    found_marks = islice(_MARKED.finditer(inner), _MOST_MARKED)
    marked = [(m[1], m[3], m[4]) for m in found_marks]
    text = " ".join(_ANY_TAG.sub("", inner).split())
    text = html.unescape(text) if escaped else text
    if not _WORDS.search(text):
        return None
    prefix, suffix = raw[:first], raw[last:]
    return _Speech(at, at + len(raw), text, prefix, suffix, bool(dash), begin, until, marked)


def _paired(raw: str, first: int, last: int) -> tuple[int, int]:
    """Return the range of a speech's words, with the tags at its ends that close within it."""
    opened = {tag[1]: tag.start() for tag in _OPEN.finditer(raw, 0, first)}
    closed = {tag[1]: tag.end() for tag in _CLOSE.finditer(raw, last)}
    inner = raw[first:last]
    alone = [opened[tag[1]] for tag in _CLOSE.finditer(inner) if tag[1] in opened]
    over = [closed[tag[1]] for tag in _OPEN.finditer(inner) if tag[1] in closed]
    return min([first, *alone]), max([last, *over])


def _ending(raw: str, first: int) -> int:
    """Return the start of the tags, notes and white space at the end of a speech."""
    ending, at = first, first  # [ending, at) holds the latest run of them
    for found in _AT_END.finditer(raw, first):
        if found.start() > at:
            ending = found.start()
        at = found.end()
    return ending if at == len(raw) else len(raw)


def _runs(speeches: Sequence[_Speech]) -> Iterator[list[_Speech]]:
    """Yield runs of speeches that make up whole sentences."""
    run: list[_Speech] = []
    for one in speeches:
        if run and (
            one.dash
            or run[-1].dash
            or one.begin - run[-1].until > _PAUSE
            or _CLOSED.search(run[-1].text)
            or _ALONE.fullmatch(run[-1].text)
            or _SPEAKER.match(one.text)
            or _is_song(one) != _is_song(run[-1])
            or sum(len(each.text) for each in run) > _LONGEST
        ):
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def _is_song(one: _Speech) -> bool:
    return any(note in one.prefix + one.suffix for note in "♪♫")


def _divided(text: str, run: Sequence[_Speech], pairs: Sequence[Pair], lang: str) -> list[str]:
    """Divide the translation of a passage among the speeches of its run."""
    between = gap(lang)
    pairs = completed(text, pairs)
    if len(run) == 1:
        return [between.join(new for _, new in pairs)]
    words: list[str] = []  # of the translation
    bounds: list[tuple[int, int, int, int]] = []  # of a sentence: its start and end in the text,
    # and the numbers of its first word and of the word after its last
    for (_, new), (start, end) in zip(pairs, locate(text, [old for old, _ in pairs]), strict=True):
        own = new.split() if between else list(new)
        bounds.append((start, end, len(words), len(words) + len(own)))
        words += own
    cuts, at = [], 0
    for one in run[:-1]:
        at += len(one.text) + 1
        cuts.append(_cut(at, bounds, words))
    edges = [0, *_spread(cuts, len(words)), len(words)]
    return [between.join(words[start:end]) or "…" for start, end in pairwise(edges)]


def _cut(at: int, bounds: Sequence[tuple[int, int, int, int]], words: Sequence[str]) -> int:
    """Return the number of words before the place that corresponds to `at` in the source."""
    for start, end, first, last in bounds:
        if at <= start + 1:
            return first
        if at < end:
            lengths = list(accumulate((len(word) + 1 for word in words[first:last]), initial=0))
            wanted = lengths[-1] * (at - start) / (end - start)
            even = first + min(range(len(lengths)), key=lambda n: abs(lengths[n] - wanted))
            # Prefer to end a cue after a comma, if there is one nearby.
            near = range(max(first + 1, even - 2), min(last, even + 3))
            pauses = [n for n in near if _PAUSING.search(words[n - 1])]
            return min(pauses or [even], key=lambda n: abs(n - even))
    return len(words)


def _spread(cuts: Sequence[int], count: int) -> list[int]:
    """Move cuts apart so that every part has a word, as far as there are enough words."""
    spread = list(cuts)
    for n in range(len(spread)):
        least = spread[n - 1] + 1 if n else 1
        spread[n] = min(max(spread[n], least), count)
    for n in reversed(range(len(spread))):
        most = spread[n + 1] - 1 if n + 1 < len(spread) else count - 1
        spread[n] = max(min(spread[n], most), 0)
    return spread


def lines(text: str, lang: str) -> list[str]:
    """Break text into lines of about equal length, each of at most LINE characters."""
    between = gap(lang)
    width = LINE if between else LINE // 2  # full-width characters
    count = -(-len(text) // width)
    if count < 2:
        return [text]
    words = text.split() if between else list(text)
    even = len(text) / count
    lines = [""]
    for word in words:
        longer = between.join([lines[-1], word]) if lines[-1] else word
        over = len(longer) > width or (
            len(lines) < count and len(longer) - even > even - len(lines[-1])
        )
        if lines[-1] and over:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _seconds(clock: str) -> float:
    parts = clock.replace(",", ".").split(":")
    return sum(float(part) * 60.0**n for n, part in enumerate(reversed(parts)))
