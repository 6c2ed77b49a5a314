"""HTML: the running text between the tags is translated, everything else is copied byte for byte.

A passage is the text between two block-level tags or line breaks. Inline tags inside it are marks;
scripts, styles, preformatted text and elements marked `translate="no"` are left alone. White space
in a passage collapses, and character references become characters.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lcm_cli.documents.formats.marks import fill
from lcm_cli.documents.formats.runs import Token, passage_in
from lcm_cli.documents.formats.skeleton import Pair, Passage, Slot, Spliced


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_INLINE = _names(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd label mark nobr q "
    "rb rp rt ruby s samp small span strike strong sub sup time tt u var wbr"
)
_KEPT = _names("a img")
_CODE = _names("code kbd samp tt var")
_VOID = _names("area base br col embed hr img input link meta param source track wbr")
_SKIPPED = _names(
    "audio canvas datalist iframe math noscript object pre script select style svg template "
    "textarea video xmp"
)
_RAW = _names("iframe script style textarea title xmp")  # no tags inside
_AROUND = _names("aside footer form header menu nav")  # not part of an article
_HEADING = re.compile(r"h[1-6]")

# Each alternative takes the rest of the source if its end is missing, as browsers do. Otherwise a
# search for the end would fail again at every place, in quadratic time.
_TOKEN = re.compile(
    r"(?P<text>(?:[^<]+|<(?![a-zA-Z!?/]))++)"
    r"|<!--(?:-?>|.*?(?:--!?>|\Z))"
    r"|<!\[CDATA\[.*?(?:\]\]>|\Z)"
    r"|<(?P<close>/?)(?P<name>[a-zA-Z][^\s/>]*+)"
    r"(?P<attributes>(?:[\s/]+|[^\s/>=]+|=\s*(?:\"[^\"]*\"|'[^']*'|[^\s>\"'][^\s>]*)?)*+)(?:>|\Z)"
    r"|<[^>]*(?:>|\Z)",
    re.DOTALL,
)
_LEFT_ALONE = re.compile(
    r"\stranslate\s*=\s*[\"']?no\b|\sclass\s*=\s*(?:\"[^\"]*|'[^']*|)\bnotranslate\b", re.IGNORECASE
)
_DECLARED = re.compile(
    rb"""(?:<meta[^>]{0,200}charset=|<\?xml[^>]{0,100}encoding=)["']?([\w.:-]+)""", re.IGNORECASE
)


def read(source: str, suffix: str = ".html", encoding: str = "utf-8") -> Spliced:
    """Return the skeleton of an HTML or XHTML file."""
    found = ((passage, slot) for passage, slot, _ in _passages(source))
    return Spliced(source, found, suffix, encoding)


def article(source: str) -> list[Passage]:
    """Return the passages of a page's article: those in <main> or <article>, if it has them.

    Without these elements, navigation, headers, footers, asides and forms are left out.
    """
    found = list(_passages(source))
    within = [passage for passage, _, around in found if around & {"main", "article"}]
    clear = [passage for passage, _, around in found if not around & _AROUND]
    return within or clear or [passage for passage, _, _ in found]


def declares_encoding(data: bytes) -> bool:
    """Return whether a page names its encoding."""
    return _DECLARED.search(data[:4096]) is not None


def decode(data: bytes) -> tuple[str, str] | None:
    """Return the text of a page and its encoding, or None if the page must be UTF-8."""
    declared = _DECLARED.search(data[:4096])
    if declared is None or data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return None
    name = declared[1].decode("ascii", "replace")
    try:
        if not data.isascii():
            data.decode("utf-8")  # hardly any other text is valid UTF-8
            return None
    except UnicodeDecodeError:
        pass
    try:
        # A codec that is not for text, or one like UTF-16, which would hide the declaration.
        if "<a>".encode(name) != b"<a>":
            return None
        return data.decode(name).replace("\r\n", "\n").replace("\r", "\n"), name
    except (LookupError, ValueError):
        return None


def tag_token(found: re.Match[str], start: int) -> Token:
    """Return the token for a match of `match_tag`, at `start` in the source."""
    name = (found["name"] or "").lower()
    end = start + len(found[0])
    attributes = found["attributes"] or ""
    if not name or not found[0].endswith(">"):
        return Token("other", start, end)
    if found["close"]:
        return Token("close", start, end, name=name)
    # HTML reads <p/> as an opening tag, XHTML as an empty element; void elements are always empty.
    if name in _VOID or attributes.endswith("/"):
        return Token("other", start, end, name=name)
    skip = name in _SKIPPED or name in _CODE or bool(_LEFT_ALONE.search(attributes))
    return Token("open", start, end, name=name, skip=skip, kept=skip or name in _KEPT)


def match_tag(text: str) -> re.Match[str] | None:
    """Return the match of a tag, comment or declaration that makes up `text`."""
    found = _TOKEN.fullmatch(text)
    return None if found is None or found["text"] else found


def _write(passage: Passage, pairs: Sequence[Pair], lang: str) -> str:
    return fill(passage, pairs, lang, lambda text: html.escape(text, quote=False))


def _tokens(source: str) -> Iterator[Token]:
    """Cut a source into tokens."""
    at = 0
    while found := _TOKEN.match(source, at):
        if found["text"]:
            yield _text(source, at, found.end())
        else:
            token = tag_token(found, at)
            yield token
            if token.kind == "open" and token.name in _RAW:
                end = re.compile(rf"</{token.name}|\Z", re.IGNORECASE).search(source, found.end())
                assert end is not None  # \Z matches
                yield _text(source, found.end(), end.start())
                at = end.start()
                continue
        at = found.end()


def _text(source: str, start: int, end: int) -> Token:
    return Token("text", start, end, html.unescape(source[start:end]))


def _passages(source: str) -> Iterator[tuple[Passage, Slot, frozenset[str]]]:
    """Yield each passage with its slot, and the names of the elements around it."""
    heading, count = "", 0
    around: dict[str, int] = {}
    for run, block in _runs(list(_tokens(source)), around):
        made = passage_in(run, source, _write)
        if made is None:
            continue
        passage, slot = made
        if _HEADING.fullmatch(block):
            heading = passage.text
        passage = replace(passage, paragraph=count, place=heading)
        yield passage, slot, frozenset(name for name, number in around.items() if number > 0)
        count += 1


def _runs(tokens: Sequence[Token], around: dict[str, int]) -> Iterator[tuple[list[Token], str]]:
    """Yield the runs of text and inline tags between block-level tags, with the block's name.

    `around` counts the block-level elements that are open, by name.
    """
    run: list[Token] = []
    block = ""
    n = 0
    while n < len(tokens):
        token = tokens[n]
        end = _skipped(tokens, n) if token.skip else n + 1
        if token.skip and token.name in _INLINE:
            run += _untranslated(tokens[n:end])
        elif token.kind == "text" or token.name in _INLINE or not token.name:
            run.append(token)
        else:
            yield run, block
            run, block = [], token.name if token.kind == "open" else ""
            if not token.skip and token.kind != "other":
                change = 1 if token.kind == "open" else -1
                around[token.name] = max(0, around.get(token.name, 0) + change)
        n = end
    yield run, block


def _untranslated(element: Sequence[Token]) -> list[Token]:
    """Return the tokens of an inline element whose words stay as they are."""
    if len(element) == 3 and element[1].kind == "text":
        opening, text, closing = element
        raw = html.escape(text.text, quote=False)
        return [replace(opening, verbatim=True), replace(text, text=raw, skip=True), closing]
    return [Token("other", element[0].start, element[-1].end)]


def _skipped(tokens: Sequence[Token], n: int) -> int:
    """Return the index after the element that tokens[n] opens."""
    name, depth = tokens[n].name, 0
    for end in range(n, len(tokens)):
        if tokens[end].name == name:
            depth += {"open": 1, "close": -1}.get(tokens[end].kind, 0)
        if depth == 0:
            return end + 1
    return len(tokens)
