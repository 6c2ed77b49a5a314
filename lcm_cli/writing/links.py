"""URLs and e-mail addresses in a sentence, which translation leaves unchanged.

A space has no concept for a link and mangles it together with the rest of the sentence. Before a
sentence is encoded, a name therefore takes the place of each link; where the name survives in the
translation, the link replaces it (docs/translate.md).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

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
_BRACKETS = {")": "(", "]": "[", "}": "{"}
_END = re.compile(r"[\s.!?…。！？]*$")


@dataclass(frozen=True)
class Masked:
    """A sentence whose `links` are hidden: in `text`, one of `names` replaces each link.

    Surplus links, for which there is no name, are left out of `text`.
    """

    text: str
    links: tuple[str, ...]
    names: tuple[str, ...]

    def count_lost(self, translation: str) -> int:
        """Return how many of the names a translation lacks or repeats."""
        return sum(not _occurs_once(name, translation) for name in self.names)

    def restore(self, translation: str) -> str:
        """Put the links into a translation of `text`, at its end if their name is lost."""
        lost = list(self.links[len(self.names) :])
        for name, link in zip(self.names, self.links, strict=False):
            if _occurs_once(name, translation):
                before, after = re.split(rf"\b{name}\b", translation)
                translation = f"{before}{link}{after}"
            else:
                lost.append(link)
        return _appended(translation, lost)


def mask(text: str) -> Masked:
    """Hide the links of a sentence."""
    found = find_links(text)
    # Names that the sentence has already could not be told from those put in.
    names = [name for name in NAMES if not re.search(rf"\b{name}\b", text, re.IGNORECASE)]
    used = tuple(names[: len(found)])
    parts, start = [], 0
    for i, (begin, link) in enumerate(found):
        parts += [text[start:begin], used[i] if i < len(used) else ""]
        start = begin + len(link)
    links = tuple(link for _, link in found)
    return Masked("".join([*parts, text[start:]]), links, used)


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
    if not links:
        return text
    end = _END.search(text)
    assert end is not None
    listed = ", ".join(links)
    return f"{text[: end.start()]} ({listed}){end[0]}".lstrip()
