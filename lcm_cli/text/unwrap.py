"""Joining of wrapped lines, with or without a space, keeping or dropping hyphens at their ends."""

import re
from collections import Counter
from functools import cached_property
from itertools import pairwise

from lcm_cli.text import languages
from lcm_cli.text.abbreviations import word_set

_CASED = ("Latn", "Cyrl", "Grek", "Armn")  # scripts in which words are hyphenated

_HYPHENATED = re.compile(r"([^\W_]+(?:[-'’\u2010][^\W_]+)*)([-\u2010])$")
_FIRST = re.compile(r"[^\W_]+")
_WORD = re.compile(r"[\w\u2010-]+")
_LONGEST_WORD = 60
_HYPHEN_AT_END = re.compile("[-\u2010\u00ad][^\\S\n]*\n")
_HYPHENS = ("-", "\u2010", "\u00ad")

# Before these, the hyphen stands for the rest of a compound: "Haus- und Gartenarbeit".
_CONJUNCTIONS = {
    "eng": word_set("and"),
    "deu": word_set("und oder bzw sowie u"),
    "nld": word_set("en of"),
}
# First parts of compounds, unless a suffix follows ("self-ish").
_FIRST_PARTS = {
    "eng": word_set(
        "all eighty fifty forty good half high ill long low ninety self seventy sixty "
        "thirty three twenty two well"
    ),
    "fra": word_set(
        "abat après arrière avant celle celles celui ceux chef demi peut quarante "
        "rendez soixante vice vingt week"
    ),
    "spa": word_set("económico franco físico histórico político químico teórico"),
}
_SUFFIXES = word_set("able ened hood less ment ness ship ward wards")
# French words that a hyphen attaches, often depending on the end of the word before it.
_FRENCH = re.compile(
    r".*[td]-(?:ils?|elles?|on|ce)|.*[sxz]-(?:tu|en|y|nous|vous)|.*-(?:moi|toi|là|mêmes?|t)|"
    r"(?:ai|dois|puis|suis|vais|peux|sais|veux|dis|fais|crois)-je|(?:celui|celles?|ceux)-ci|"
    r"au-(?:dessus|dessous|delà|devant|dedans|dehors)|ci-(?:dessus|dessous|joint|contre|après)|"
    r"dix-(?:sept|huit|neuf)"
)
_DUTCH_CLASH = re.compile(r".*(?:a-[aeiu]|e-[eiu]|i-[ei]|o-[eiou]|u-[iu]|[ij]-j)")  # "zee-eend"


class Unwrapper:
    """Joins the lines of blocks of a text.

    A hyphen at the end of a line may belong to the word ("well-known") or not ("mar-ket"). The form
    that occurs more often in the text is used. If neither does, the hyphen stays before a capital
    or a digit, and where the tables of the language require it.
    """

    def __init__(self, text: str, lang: str) -> None:
        one = languages.language(lang)
        self.text, self.script, self.language = text, one.script, one.iso639_3

    def joined(self, block: str) -> str:
        """Return the text of a block on one line."""
        if "\n" not in block:
            return block
        lines = list(map(str.strip, block.split("\n")))
        if self.script not in languages.UNSPACED and not _HYPHEN_AT_END.search(block):
            return " ".join(lines)
        parts = [lines[0]]
        for before, after in pairwise(lines):
            kept, gap = self._seam(before, after)
            parts[-1] = kept + gap
            parts.append(after)
        return "".join(parts)

    def _seam(self, before: str, after: str) -> tuple[str, str]:
        """Return the line before a line end, perhaps without its hyphen, and the gap after it."""
        if before.endswith("\u00ad"):
            return before, ""
        if before.endswith(_HYPHENS) and self.script not in (*_CASED, *languages.UNSPACED):
            return before, "" if before[-2:-1].strip("- ") else " "
        if before.endswith(_HYPHENS) and self.script in _CASED:
            found = _HYPHENATED.search(before[-_LONGEST_WORD:])
            follows = _FIRST.match(after)
            if found and follows:
                return self._hyphen(before, found[1], follows.group())
        if self.script not in languages.UNSPACED:
            return before, " "
        return before, " " if before[-1:].isascii() and after[:1].isascii() else ""

    def _hyphen(self, before: str, left: str, right: str) -> tuple[str, str]:
        """Decide whether the hyphen between `left` and `right`, perhaps parts of a word, stays."""
        if right.casefold() in _CONJUNCTIONS.get(self.language, ()):
            return before, " "
        if not right[0].islower() or not left[-1].isalpha():
            return before, ""
        with_hyphen = self.words[f"{left}-{right}".casefold()]
        without = self.words[f"{left}{right}".casefold()]
        if with_hyphen > without or (with_hyphen == without and self._compound(left, right)):
            return before, ""
        return before[:-1], ""

    def _compound(self, left: str, right: str) -> bool:
        """Return whether a word with these parts has a hyphen, by the tables of the language."""
        whole = f"{left}-{right}".casefold()
        if self.language == "fra" and _FRENCH.fullmatch(whole):
            return True
        if self.language == "nld" and _DUTCH_CLASH.match(f"{left[-2:]}-{right[0]}".casefold()):
            return True
        last = _FIRST.findall(left)[-1].casefold()
        suffix = len(right) < 4 or right.casefold() in _SUFFIXES
        return last in _FIRST_PARTS.get(self.language, ()) and not suffix

    @cached_property
    def words(self) -> Counter[str]:
        """The words of the text with their counts."""
        return Counter(_WORD.findall(self.text.casefold()))
