"""The inline syntax of Markdown with its place in the source, which markdown-it does not record.

When a rule of the parser adds tokens, the position moves past their source. Each token gets that
range, as offsets in the content of its block.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from lcm_cli.documents.formats import html
from lcm_cli.documents.formats.runs import Token
from lcm_cli.errors import IntegrityError

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.parser_inline import RuleFuncInlineType
    from markdown_it.rules_core import StateCore
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token as Inline

_AT = "at"  # the key of the range in a token's meta
_PAIRED = ("em_open", "em_close", "strong_open", "strong_close", "s_open", "s_close")
_ADDRESS = re.compile(r"https?://[^\s<>]*[\w/]")
_MARK = re.compile(r"[^\w\s]|[_\n]")
_MOST_MARKS = 20_000  # marks of punctuation in a paragraph
_BRACKET = 10  # marks that a bracket counts for: the parser is quadratic in their number


def located_parser() -> MarkdownIt:
    """Return a parser of CommonMark with tables, footnotes, strikethrough and mathematics."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from mdit_py_plugins.footnote import footnote_plugin
    from mdit_py_plugins.front_matter import front_matter_plugin

    parser = MarkdownIt("commonmark")
    parser.enable(["table", "strikethrough"])
    # Joined tokens would lose their places.
    parser.disable(["fragments_join", "text_join"])
    parser.use(front_matter_plugin).use(dollarmath_plugin, allow_digits=False, double_inline=True)
    parser.use(footnote_plugin, inline=False, move_to_end=False)
    rules = parser.inline.ruler
    names = parser.get_active_rules()["inline"]
    for name, rule in zip(names, rules.getRules(""), strict=True):
        rules.at(name, _located(rule))
    parser.core.ruler.before("inline", "limit", _limit)
    return parser


def tokens(block: Inline) -> list[Token]:
    """Return the inline tokens of a block; a hard line break is named br.

    Bare addresses count as markup too, since GitHub turns them into links.
    """
    children = [child for child in block.children or [] if child.type != "text" or child.content]
    spans = [_span(child) for child in children]
    found: list[Token] = []
    labels: list[int] = []  # starts of the labels of open links
    at = 0
    for n, (child, place) in enumerate(zip(children, spans, strict=True)):
        if place is None:  # text reaches to the next token
            place = at, next((each[0] for each in spans[n + 1 : n + 2] if each), len(block.content))
        at = place[1]
        label = ""
        if child.type == "link_open":
            labels.append(place[1])
        elif child.type == "link_close":
            opening = labels.pop()
            if block.content[slice(*place)] in ("]", "][]"):
                label = block.content[opening : place[0]]
        found += _converted(child, *place, label)
    return _with_addresses(found, block.content)


def _converted(child: Inline, start: int, end: int, label: str) -> Iterator[Token]:
    """Yield the tokens for one of markdown-it's.

    `label` is the label of a reference link without a separate name, otherwise empty.
    """
    if child.type in ("text", "text_special"):
        yield Token("text", start, end, child.content)
    elif child.type == "softbreak":
        yield Token("text", start, end, "\n")
    elif child.type == "hardbreak":
        yield Token("other", start, end, name="br")
    elif child.type in ("code_inline", "math_inline", "math_inline_double"):
        size = len(child.markup)
        # Spaces at both ends of code that begins or ends with a backtick are syntax.
        size += len(child.content) < end - start - 2 * size
        yield from _verbatim(start, end, size, child.content, child.type)
    elif child.nesting:
        kind: Literal["open", "close"] = "open" if child.nesting > 0 else "close"
        link, auto = child.tag == "a", child.markup == "autolink"
        token = Token(kind, start, end, name=f"*{child.tag}", kept=link, verbatim=auto)
        yield replace(token, renamed=f"][{label}]") if label else token
    elif child.type == "html_inline" and (tag := html.match_tag(child.content)):
        yield html.tag_token(tag, start)
    else:
        yield Token("other", start, end)


def _verbatim(start: int, end: int, size: int, text: str, name: str) -> Iterator[Token]:
    """Yield the tokens of a code element between marks of `size` characters."""
    yield Token("open", start, start + size, name=name, kept=True, verbatim=True)
    yield Token("text", start + size, end - size, text, skip=True)
    yield Token("close", end - size, end, name=name)


def _with_addresses(tokens: list[Token], content: str) -> list[Token]:
    """Mark the addresses outside links and code."""
    found: list[Token] = []
    addresses = [each.span() for each in _ADDRESS.finditer(content)]
    depth = n = 0  # nesting in links and code; index of the token
    while n < len(tokens):
        token = tokens[n]
        if token.kept:
            depth += {"open": 1, "close": -1}.get(token.kind, 0)
        while addresses and addresses[0][0] < token.start:
            del addresses[0]
        if not addresses or addresses[0][0] >= token.end or depth or token.kind != "text":
            found.append(token)
            n += 1
            continue
        start, end = addresses.pop(0)
        last = n
        while tokens[last].end < end:
            last += 1
        rest = tokens[last]
        within = Counter(each.kind for each in tokens[n : last + 1])
        if rest.kind != "text" or within["open"] != within["close"]:
            continue
        found.append(replace(token, end=start, text=token.text[: start - token.start]))
        found += _verbatim(start, end, 0, content[start:end], "address")
        tokens[last] = replace(rest, start=end, text=rest.text[end - rest.start :])
        n = last
    return found


def _span(token: Inline) -> tuple[int, int] | None:
    """Return the range of an inline token in the content of its block, None for plain text."""
    found: tuple[int, int] | None = token.meta.get(_AT)
    if found is None or token.type not in _PAIRED:
        return found
    # The parser first makes a token of each character of `**`; the inner one becomes the tag.
    if token.nesting == 1:
        return found[1] - len(token.markup), found[1]
    return found[0], found[0] + len(token.markup)


def _limit(state: StateCore) -> None:
    """Raise IntegrityError for a paragraph that would take minutes to parse."""
    for token in state.tokens:
        if token.type == "inline" and len(token.content) > _MOST_MARKS / _BRACKET:
            count = sum(1 for _ in _MARK.finditer(token.content))
            brackets = sum(map(token.content.count, "[<"))
            if count + _BRACKET * brackets > _MOST_MARKS:
                raise IntegrityError(
                    f"a paragraph has {count} marks and line breaks, too many to read as Markdown",
                    "add --format text",
                )


def _located(rule: RuleFuncInlineType) -> RuleFuncInlineType:
    """Return a rule that records where its tokens are."""

    def run(state: StateInline, silent: bool) -> bool:
        start, count = state.pos, len(state.tokens)
        pending = bool(state.pending)
        done = rule(state, silent)
        if done and not silent:
            # Before a new token, the parser adds one for the pending text.
            new = state.tokens[count + pending :]
            if new:
                _record(state, new, start)
        return done

    return run


def _record(state: StateInline, new: Sequence[Inline], start: int) -> None:
    end = state.pos
    if new[0].type == "link_open":
        close = end - 1 if new[0].markup == "autolink" else _label_end(state, start)
        new[0].meta[_AT] = start, start + 1
        new[-1].meta[_AT] = close, end
    elif new[0].type == "text":  # marks of emphasis that are not paired yet
        for token in new:
            token.meta[_AT] = start, start + len(token.content)
            start += len(token.content)
    else:
        new[0].meta[_AT] = start, end


def _label_end(state: StateInline, start: int) -> int:
    """Return the end of the label of the link that begins at `start`."""
    end, state.pos = state.pos, start
    found: int = state.md.helpers.parseLinkLabel(state, start)
    state.pos = end
    return found
