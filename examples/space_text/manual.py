"""Microsoft's Business Central documentation: Markdown in one repository for each language.

A translated file has the path of the English one. Older translations also have the English
sentences, each after its translation; in the others, lines are matched by their position under the
headings.
"""

import html
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from clean import Line, is_sentence, sentences, tidy
from parallel import Pair, grouped, like_long

ORIGINAL = "dynamics365smb-docs"
TRANSLATIONS = {
    "dynamics365smb-docs-pr.de-de": "deu_Latn",
    "dynamics365smb-docs-pr.fr-fr": "fra_Latn",
    "dynamics365smb-docs-pr.es-es": "spa_Latn",
    "dynamics365smb-docs-pr.nl-nl": "nld_Latn",
}


def business_docs(folder: Path) -> Iterator[Line]:
    """Yield English sentences with their translations."""
    pairs: list[Pair] = []
    for repository, code in TRANSLATIONS.items():
        for path in sorted((folder / repository).glob("business-central/**/*.md")):
            original = folder / ORIGINAL / path.relative_to(folder / repository)
            pairs += [(english, code, other) for english, other in _file_pairs(original, path)]
    return grouped(list(dict.fromkeys(pairs)))


_SIDE_BY_SIDE = re.compile(
    r'<span data-ttu-id="[^"]*">(?P<other>.*?)</span>'
    r'<span class="sxs-lookup"><span data-stu-id="[^"]*">(?P<english>.*?)</span></span>'
)


def _file_pairs(original: Path, translation: Path) -> Iterator[tuple[str, str]]:
    """Yield pairs (English sentence, translation) from two files."""
    text = translation.read_text(encoding="utf-8")
    if both := list(_SIDE_BY_SIDE.finditer(text)):
        pairs = [(match["english"], match["other"]) for match in both]
    elif original.is_file():
        pairs = list(_matched(original.read_text(encoding="utf-8"), text))
    else:
        return
    for left, right in pairs:
        english = sentences(plain(left, original))
        other = sentences(plain(right, translation))
        if len(english) == len(other):
            yield from (pair for pair in zip(english, other, strict=True) if _agree(*pair))


def _agree(english: str, other: str) -> bool:
    """Return whether two sentences may be translations: similar lengths and the same numbers."""
    if "\0" in english + other or not (is_sentence(english) and is_sentence(other)):
        return False
    same_numbers = _numbers(english) == _numbers(other)
    return same_numbers and english != other and like_long(english, other)


def _numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+", text))


def _matched(original: str, translation: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs of Markdown lines at the same position in two files."""
    left, right = _parts(original), _parts(translation)
    if len(left) != len(right):
        return
    for one, other in zip(left, right, strict=True):
        if len(one) == len(other):
            yield from zip(one, other, strict=True)


def _body(markdown: str) -> str:
    """Return the content of a file after its front matter."""
    return re.sub(r"\A\ufeff?---\n.*?\n---\n", "", markdown.replace("\r\n", "\n"), flags=re.S)


def _parts(markdown: str) -> list[list[str]]:
    """Return the lines of the text under each heading, without tables, code and comments."""
    body = re.sub(r"^\s*```.*?^\s*```|<!--.*?-->", "", _body(markdown), flags=re.S | re.M)
    parts: list[list[str]] = [[]]
    for line in map(str.strip, body.split("\n")):
        if line.startswith("#"):
            parts.append([])
        elif tidy(line.lstrip("> ")) and not re.match(r"[>\s]*(\||\[!\w+\]$)", line):
            parts[-1].append(line)
    return parts


def plain(markdown: str, path: Path) -> str:
    """Return a line of Markdown from the file `path` as plain text.

    Included files are inserted; "\\0" marks a missing one.
    """
    text = re.sub(r"^[>\s]*(?:[-*+]|\d+\.)?\s+", "", f" {markdown}")
    text = re.sub(
        r"\[!INCLUDE\s*\[[^\]]*\]\s*\(([^)]*)\)\]",
        lambda m: _included(path, m[1]),
        text,
        flags=re.I,
    )
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|\[!\w+\]", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<[^>]+>|[*`]|(?<!\w)_+|_+(?!\w)", "", text)
    text = html.unescape(re.sub(r"\\([^\w\s])", r"\1", text))
    return re.sub(r" (?=[,.](?:\s|$))", "", tidy(text))


@cache
def _read(path: str) -> str:
    file = Path(path)
    if not file.is_file():
        return "\0"
    return _SIDE_BY_SIDE.sub(r"\g<other>", _body(file.read_text(encoding="utf-8")))


def _included(path: Path, name: str) -> str:
    return _read(os.path.normpath(path.parent / name.strip()))
