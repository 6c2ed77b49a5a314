"""HTML whose text is translated and whose tags are kept.

The text of a block, such as a paragraph or a table cell, is translated as a whole. Inline tags
around all of it are kept; those around some of its words are dropped, since a translation through
concepts does not show which words they belong to.
"""

from collections import Counter
from dataclasses import dataclass
from html import escape, unescape
from html.parser import HTMLParser

_INLINE = (
    "a abbr acronym b bdi bdo big cite data del dfn em font i ins kbd label mark q s samp small "
    "span strike strong sub sup time tt u var"
)
_VOID = "area base br col embed hr img input link meta source track wbr"
_UNTRANSLATED = "code math pre script style svg textarea"
INLINE, VOID, UNTRANSLATED = (frozenset(names.split()) for names in (_INLINE, _VOID, _UNTRANSLATED))


DEEPEST = 10  # inline tags around all of a text, at most; any others are dropped


@dataclass(frozen=True)
class _Token:
    """A piece of HTML: a tag as written, with its name, or text without entities."""

    kind: str  # "open", "close", "text" or "other"
    content: str
    name: str = ""
    translate: bool = True


class Page:
    """A piece of HTML: `texts` are to be translated, `filled` returns it with translations."""

    def __init__(self, html: str) -> None:
        tokens = _Tokens(html)
        self.texts: list[str] = []
        self._parts: list[str | int] = []  # HTML, or the index of a text
        run: list[_Token] = []
        for token in tokens.found:
            if token.kind == "text" or token.name in INLINE:
                run.append(token)
            else:
                self._end(run)
                self._parts.append(token.content)
                run = []
        self._end(run)

    def filled(self, translations: list[str]) -> str:
        """Return the HTML with `translations` in place of `texts`."""
        return "".join(
            part if isinstance(part, str) else escape(translations[part], quote=False)
            for part in self._parts
        )

    def _end(self, run: list[_Token]) -> None:
        """Add a block's text and inline tags."""
        text = "".join(token.content for token in run if token.kind == "text")
        if not text.strip() or not all(token.translate for token in run):
            self._parts += [
                escape(t.content, quote=False) if t.kind == "text" else t.content for t in run
            ]
            return
        before, after = _around(run)
        gap = len(text) - len(text.lstrip())
        tail = len(text.rstrip())
        self._parts += [*before, text[:gap], len(self.texts), text[tail:], *after]
        self.texts.append(" ".join(text.split()))


class _Tokens(HTMLParser):
    """The tokens of a piece of HTML, found in a time that is linear in its length."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[_Token] = []
        self._kept: list[str] = []  # open elements whose text is not translated
        self._counts: Counter[str] = Counter()  # of their names
        # The parser looks for the end of every tag and comment up to the end of the text, again
        # and again if there is none. What is not closed is text.
        end = html.rfind(">") + 1
        closed = max(0, html.rfind("-->", 0, end))
        self.feed(html[:closed] + html[closed:end].replace("<!--", "&lt;!--"))
        self.close()
        if end < len(html):
            self._add("text", unescape(html[end:]))

    def parse_html_declaration(self, i: int) -> int:
        if self.rawdata.startswith("<!--", i):
            return super().parse_html_declaration(i)
        # The parser's own version fails for an unknown keyword.
        end = self.rawdata.find(">", i) + 1
        self._add("other", self.rawdata[i:end])
        return end or -1

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kept = self._kept or tag in UNTRANSLATED or ("translate", "no") in attrs
        if kept and tag not in VOID:
            self._kept.append(tag)
            self._counts[tag] += 1
        self._add("open", self.get_starttag_text() or "", tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add("other", self.get_starttag_text() or "", tag)

    def handle_endtag(self, tag: str) -> None:
        self._add("close", f"</{tag}>", tag)
        while self._counts[tag]:
            closed = self._kept.pop()
            self._counts[closed] -= 1
            if closed == tag:
                break

    def handle_data(self, data: str) -> None:
        if self._kept and self._kept[-1] in ("script", "style"):
            self._add("other", data)  # its characters are not escaped
        else:
            self._add("text", data)

    def handle_comment(self, data: str) -> None:
        self._add("other", f"<!--{data}-->")

    def handle_pi(self, data: str) -> None:
        self._add("other", f"<?{data}>")

    def _add(self, kind: str, content: str, name: str = "") -> None:
        self.found.append(_Token(kind, content, name, not self._kept))


def _around(run: list[_Token]) -> tuple[list[str], list[str]]:
    """Return the tags that open before and close after all the text of a block."""
    run = [token for token in run if token.kind != "text" or token.content.strip()]
    before: list[str] = []
    after: list[str] = []
    while len(after) < DEEPEST and run and run[0].kind == "open" and _closes(run) == len(run) - 1:
        before.append(run[0].content)
        after.insert(0, run[-1].content)
        run = run[1:-1]
    return before, after


def _closes(run: list[_Token]) -> int:
    """Return the index of the tag that closes the first one, or -1."""
    depth = 0
    for n, token in enumerate(run):
        if token.name == run[0].name:
            depth += {"open": 1, "close": -1}.get(token.kind, 0)
            if depth == 0:
                return n
    return -1
