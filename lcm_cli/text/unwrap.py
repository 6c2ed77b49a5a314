"""Joining of wrapped lines, with or without a space, and with or without the hyphen at their end."""

import re
from collections import Counter
from functools import cached_property
from itertools import pairwise

from lcm_cli.text import languages

UNSPACED = ("Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt")
_CASED = ("Latn", "Cyrl", "Grek", "Armn")  # scripts in which words are hyphenated

_HYPHENATED = re.compile(r"([^\W_]+(?:[-'’\u2010][^\W_]+)*)([-\u2010])$")
_FIRST = re.compile(r"[^\W_]+")
_WORD = re.compile(r"\w+(?:[-\u2010]\w+)*")
_LINE_ENDS = re.compile(r"\s*\n\s*")

# After these, "Haus-" is short for a compound: "Haus- und Gartenarbeit".
_CONJUNCTIONS = {
    "eng": {"and", "or", "to"},
    "deu": {"und", "oder", "bzw", "bis", "sowie", "wie", "u"},
    "nld": {"en", "of", "tot", "dan"},
}
# First parts of compounds that keep their hyphen.
_FIRST_PARTS = {
    "eng": set(
        "all brother cross daughter double eighty ex far father fifty forty fully good half hard "
        "high ill kind know left long low mid mother much near ninety non old part quick quite "
        "right second self seventy short single sister sixty so son spare thirty three twenty two "
        "up well wide year".split()
    ),
    "fra": set(
        "abat après arc arrière au avant celle celles celui cent ceux chef ci cinquante contre "
        "demi dix elle elles eux ex grand là lui mi mille moi non nous peut porte quarante quatre "
        "rendez sept soi soixante sous trente toi vice vingt vous week".split()
    ),
    "spa": set(
        "anglo económico ex franco físico hispano histórico político químico teórico".split()
    ),
    "nld": {"ex", "niet", "oud", "noord", "oost", "west", "zuid"},
}
# French words that a hyphen attaches, by the end of the word before it: "est-ce", "dit-il".
_FRENCH = re.compile(
    r".*[td]-(?:il|ils|elle|elles|on|ce)|.*[sxz]-(?:tu|en|y|nous|vous)|.*-(?:moi|toi|là|mêmes?|t)|"
    r"(?:ai|dois|puis|suis|vais|peux|sais|veux|dis|fais|crois)-je|(?:ce|ceu|cel)\w*-ci"
)
_DUTCH_CLASH = re.compile(r".*(?:a-[aeiu]|e-[eiu]|i-[ei]|o-[eiou]|u-[iu]|[ij]-j)")


class Unwrapper:
    """Joins the lines of blocks of a text.

    A hyphen at the end of a line belongs to the word ("well-known") or not ("mar-ket"). Whichever
    form occurs elsewhere in the text is taken. Otherwise the hyphen stays before a capital or a
    digit, and where the tables of the language say so.
    """

    def __init__(self, text: str, lang: str) -> None:
        one = languages.language(lang)
        self.text, self.script, self.language = text, one.script, one.iso639_3

    def joined(self, block: str) -> str:
        """Return the text of a block on one line."""
        if "\n" not in block:
            return block
        lines = _LINE_ENDS.split(block)
        parts = [lines[0]]
        for before, after in pairwise(lines):
            kept, gap = self._seam(before, after)
            parts[-1] = parts[-1].removesuffix(before) + kept + gap
            parts.append(after)
        return "".join(parts)

    def _seam(self, before: str, after: str) -> tuple[str, str]:
        """Return the line before a line end, perhaps without its hyphen, and the gap after it."""
        if before.endswith("\u00ad"):
            return before, ""
        found = _HYPHENATED.search(before)
        follows = _FIRST.match(after)
        if found and follows and self.script in _CASED:
            return self._hyphen(before, found[1], follows.group())
        if self.script not in UNSPACED:
            return before, " "
        return before, " " if before[-1:].isascii() and after[:1].isascii() else ""

    def _hyphen(self, before: str, left: str, right: str) -> tuple[str, str]:
        """Decide on the hyphen between two parts, `left` and `right`, of what may be a word."""
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
        return last in _FIRST_PARTS.get(self.language, ())

    @cached_property
    def words(self) -> Counter[str]:
        """The words of the text, with how often they occur."""
        return Counter(word.casefold() for word in _WORD.findall(self.text))
