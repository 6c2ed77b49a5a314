"""URLs, e-mail addresses and emoji in a sentence, which translation leaves unchanged.

A space has no concept for a link and mangles it together with the rest of the sentence. Before a
sentence is encoded, a name therefore takes the place of each link; where the name survives in the
translation, the link replaces it. Emoji are left out and added again (docs/translate.md).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lcm_cli.space import Space

# Names that `tiny` keeps best and that most languages in Latin script share (docs/translate.md).
NAMES = ("Tom", "Boston", "Berlin")

# Chinese and Japanese text may follow a link without a space: its characters end the link.
_PLAIN = r"[^\s<>\"“”«»\u3000-\u9fff\uff00-\uffef]+"
# Names without a scheme are links only under these domains: "e.g.this" is not one.
_DOMAINS = "com|org|net|edu|gov|info|io|eu|de|fr|es|nl|be|ch|at|uk|us"
_LINK = re.compile(
    rf"(?:(?:https?|ftp)://|www\.){_PLAIN}"
    r"|[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    rf"|(?<![\w.])(?:[a-z0-9][a-z0-9-]*\.)+(?:{_DOMAINS})\b(?:/{_PLAIN})?"
)
# A run of emoji. The parts of the pattern exclude each other, so matching takes linear time.
_ONE = (
    r"(?:[\u231a\u231b\u23e9-\u23fa\u25a0-\u275a\u2761-\u2767\u2776-\u27bf\u2b00-\u2bff"
    r"\U0001f000-\U0001faff][\ufe0e\ufe0f\u200d\U000e0020-\U000e007f]*|[0-9#*]\ufe0f?\u20e3)"
)
_EMOJI = re.compile(rf"{_ONE}(?:\s*{_ONE})*")
_BRACKETS = {")": "(", "]": "[", "}": "{"}
_END = re.compile(r"[\s.!?…。！？]*$")


@dataclass(frozen=True)
class Masked:
    """A sentence whose `links` are hidden: in `text`, one of `names` replaces each link.

    Surplus links, for which there is no name, are left out of `text`, as are emoji: those `before`
    the sentence, those `inside`, and those `after` its final mark, with the spaces around them.
    """

    text: str
    links: tuple[str, ...]
    names: tuple[str, ...]
    before: str = ""
    inside: str = ""
    after: str = ""

    def count_lost(self, translation: str) -> int:
        """Return how many of the names a translation lacks or repeats."""
        return sum(not _occurs_once(name, translation) for name in self.names)

    def restore(self, translation: str) -> str:
        """Put the links into a translation of `text`, at its end if their name is lost.

        Emoji from inside the sentence go to its end, too.
        """
        lost = list(self.links[len(self.names) :])
        for name, link in zip(self.names, self.links, strict=False):
            if _occurs_once(name, translation):
                before, after = re.split(rf"\b{name}\b", translation)
                translation = f"{before}{link}{after}"
            else:
                lost.append(link)
        translation = _inserted(_appended(translation, lost), self.inside)
        return f"{self.before}{translation}{self.after}"


def mask(text: str) -> Masked:
    """Hide the links and emoji of a sentence."""
    text, *emoji = _without_emoji(text)
    found = find_links(text)
    # Names that the sentence has already could not be told from those put in.
    names = [name for name in NAMES if not re.search(rf"\b{name}\b", text, re.IGNORECASE)]
    used = tuple(names[: len(found)])
    parts, start = [], 0
    for i, (begin, link) in enumerate(found):
        parts += [text[start:begin], used[i] if i < len(used) else ""]
        start = begin + len(link)
    links = tuple(link for _, link in found)
    return Masked("".join([*parts, text[start:]]), links, used, *emoji)


def hide(
    sentences: Sequence[str], langs: Sequence[str], concepts_ND: np.ndarray, space: "Space"
) -> tuple[list[Masked], np.ndarray]:
    """Mask sentences whose concepts are to be decoded; return the masks and their concepts (N, D).

    A sentence with links or emoji is encoded again without them. An empty sentence, and one in a
    language that the space lacks, keeps its concept.
    """
    known = [lang in space.languages for lang in langs]
    masks = [mask(text if can else "") for text, can in zip(sentences, known, strict=True)]
    changed = [n for n, one in enumerate(masks) if known[n] and one.text != sentences[n]]
    if changed:
        found = space.encode([masks[n].text for n in changed], [langs[n] for n in changed])
        concepts_ND = concepts_ND.astype(np.float32)  # a copy
        concepts_ND[changed] = found.concepts
    return masks, concepts_ND


def find_links(text: str) -> list[tuple[int, str]]:
    """Return the start and the text of each URL and e-mail address."""
    found = [(match.start(), _trimmed(match[0])) for match in _LINK.finditer(text)]
    return [(begin, link) for begin, link in found if link]


def without_links(text: str) -> str:
    """Return `text` with a space in place of each link."""
    # From the last one, so that earlier positions stay valid.
    for begin, link in reversed(find_links(text)):
        text = f"{text[:begin]} {text[begin + len(link) :]}"
    return text


def _without_emoji(text: str) -> tuple[str, str, str, str]:
    """Return a sentence without emoji, and the emoji before, inside and after it, with spaces."""
    runs = [] if text.isascii() else list(_EMOJI.finditer(text))
    begin, end = 0, len(text)
    if runs and runs[0].start() == 0:
        begin = end - len(text[runs.pop(0).end() :].lstrip())
    if runs and not text[runs[-1].end() :].strip():
        head = text[: runs[-1].start()].rstrip()
        if not re.search(r"[\w,;:]$", head):  # after a final mark
            end = len(head)
            runs.pop()
    kept, inside, position = "", "", begin
    for run in runs:
        piece = text[position : run.start()]
        kept += piece.rstrip()
        inside += piece[len(piece.rstrip()) :] + run[0]
        position = run.end()
        # A space keeps words apart that only emoji separated.
        kept += " " * text[position : position + 1].isalnum()
    return kept + text[position:end], text[:begin], inside, text[end:]


def _trimmed(link: str) -> str:
    """Return a link without the punctuation that follows it in its sentence."""
    while link:
        last = link[-1]
        opening = _BRACKETS.get(last)
        unopened = opening is not None and link.count(opening) < link.count(last)
        if not unopened and last not in ".,;:!?'’*_…":
            return link
        link = link[:-1]
    return link


def _occurs_once(name: str, text: str) -> bool:
    return len(re.findall(rf"\b{name}\b", text)) == 1


def _appended(text: str, links: Sequence[str]) -> str:
    return _inserted(text, f" ({', '.join(links)})").lstrip() if links else text


def _inserted(text: str, ending: str) -> str:
    """Return `text` with an ending before its final marks."""
    end = _END.search(text)
    assert end is not None
    return f"{text[: end.start()]}{ending}{end[0]}"
