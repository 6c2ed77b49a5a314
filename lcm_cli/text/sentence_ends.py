"""Rules that decide whether a sentence ends at a place: abbreviations, ordinals, initials.

Most rules need the tables of the language (see `abbreviations`). Where no rule applies, sentencex
decides (see `corrections`).
"""

import re

from lcm_cli.text.abbreviations import LISTED, RULES, Rules, word_set

CLOSERS = r"[\"'”’»›)\]」』）】》]*"
PICTURES = "[\u2600-\u27bf\U0001f300-\U0001faff\ufe0f\u200d]"  # emoji, with what joins them

_OPENERS = "\"'“”„‚‘’«»‹›([{¿¡-–—"
_ELISION = re.compile(r"^(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu)['’]", re.IGNORECASE)
_ELLIPSIS = re.compile(rf"(?:…|\.\.){CLOSERS}$")
_PICTURE = re.compile(rf"{PICTURES}$")
_NO_END = re.compile("[♥❣❤\U0001f493-\U0001f49f\U0001f5a4\U0001f90d\U0001f90e\U0001f9e1\ufe0f]+$")
_CLOSED = re.compile(r"[.!?…][\"'”’»“]$")
_CLITIC = re.compile(r"['’](?:[tskmnr]|ns)\s")  # Dutch, with a capital after it
_SITE = re.compile(r"[\w-]{2,}\.[a-zA-Z]{2,}(?:/\S*)?$|@")
_ACRONYM = re.compile(r"(?:[^\W\d_]\.-?)+[^\W\d_]")
_ROMAN = re.compile(r"[IVXL]{2,}|[VX]")
_DIGITS = re.compile(r"\d{1,3}")
_FIRST = re.compile(r"[^\W_]+")
_LAST = re.compile(r"([^\W_]+)\.$")
_BEFORE_ORDINAL = word_set(
    "der die das den dem des am im vom zum zur beim ins ein eine einen einem einer eines und oder "
    "bis jeder jede jedes jeden jedem sein seine seinen seinem seiner ihr ihre ihren ihrem ihrer "
    "mein meine meinen meinem meiner unser unsere unseren dieser diese dieses diesen diesem in"
)
_MONTHS = word_set(
    "januar jänner februar märz april mai juni juli august september oktober november dezember"
)


def ends_plainly(before: str, after: str, code: str) -> bool:
    """Return whether `before` ends in a common word and `after` begins with a capital.

    Spares the rules, none of which applies, for most places in prose.
    """
    tail = before.rstrip()
    if tail == before or not after[0].isupper():
        return False
    word = tail[tail.rfind(" ") + 1 :]
    if word[-1] != ".":
        return word[-1] in "!?"
    word = word[:-1]
    return len(word) > 1 and word.isalpha() and word.islower() and word not in LISTED.get(code, ())


def decide(before: str, after: str, code: str) -> bool | None:
    """Return whether a sentence ends between `before` and `after`, None if no rule applies.

    `before` is the sentence so far or its tail, with the white space that follows; `code` is the
    language's ISO 639 code.
    """
    tail = before.rstrip()
    if tail == before:
        return _glued(tail, after)
    start = after.lstrip(_OPENERS)[:1]
    if code == "nl" and _CLITIC.match(after) and tail[-1] in ".!?…'’\"”":
        return True
    if not start:
        return None
    rules = RULES.get(code)
    if tail[-1] == "." and not tail.endswith("..") and rules:
        return _after_full_stop(tail, after, start, code, rules)
    return _after_other(tail, after, start, code, rules)


def _glued(tail: str, after: str) -> bool | None:
    """Decide where no space follows: "ran home.The cat" is a slip, "System.Text" a name."""
    if after.startswith(("-", "º", "ª")):
        return False  # "Dipl.-Ing.", "2.º piso"
    if not tail.endswith(".") or not after[:1].isalpha() or after[0] > "\u024f":
        return None
    word = _LAST.search(tail[-40:])
    if not word or not word[1].isalpha():
        return None
    return word[1].islower() and len(word[1]) > 1 and after[0].isupper()


def _after_other(tail: str, after: str, start: str, code: str, rules: Rules | None) -> bool | None:
    """Decide after an ellipsis, a picture, or a mark followed by a quotation mark."""
    if _ELLIPSIS.search(tail):
        if start.islower():
            return False
        sure = rules and start.isupper() and (code != "de" or _starts(after, rules))
        return True if sure else None
    if _PICTURE.search(tail):
        return False if start.islower() else True if _pictured_end(tail, after, rules) else None
    if tail.startswith("(") and tail.endswith((".)", "!)", "?)")) and start.isupper():
        return True
    if code == "nl" and tail.endswith((".'", "!'", "?'", ".’", "!’", "?’")) and start.isupper():
        return True
    return False if _CLOSED.search(tail) and after[0].islower() else None


def _pictured_end(tail: str, after: str, rules: Rules | None) -> bool:
    """Return whether a capital after a picture begins a sentence: not in "I ♥ Paris"."""
    if _NO_END.search(tail) or not after.lstrip(_OPENERS)[:1].isupper():
        return False
    return len(tail.split(maxsplit=2)) > 2 or (rules is not None and _starts(after, rules))


def _after_full_stop(tail: str, after: str, start: str, code: str, rules: Rules) -> bool | None:
    """Decide after a full stop by the word before it."""
    *_, earlier, last = ["", "", *tail[-80:].split()[-2:]]
    word = _word(last)
    if not word:
        return None
    keys = [word] if len(word) == 1 else [word, word.casefold()]
    if earlier.endswith("."):
        keys.insert(0, _word(earlier).casefold() + "." + word.casefold())
    for key in keys:
        if key in rules.never:
            return False
        if key in rules.number:
            return _after_number_word(key, after, start, rules)
        if key in rules.always:
            return start.isupper() or (None if start.isdecimal() else False)
        if key in rules.name:
            return _after_name(after, start, rules)
    return _after_unlisted(word, earlier, after, start, code, rules)


def _word(token: str) -> str:
    """Return a token without opening marks, elided article and full stop."""
    return _ELISION.sub("", token.lstrip(_OPENERS), count=1).removesuffix(".")


def _after_number_word(key: str, after: str, start: str, rules: Rules) -> bool | None:
    numeral = _FIRST.match(after)
    if start.isdecimal() or (numeral and _ROMAN.fullmatch(numeral.group())):
        return False
    if start.islower():
        return None if key in rules.words else False
    return start.isupper() or None


def _after_name(after: str, start: str, rules: Rules) -> bool | None:
    if start.isdecimal():
        return None
    return start.isupper() and _starts(after, rules)


def _after_unlisted(
    word: str, earlier: str, after: str, start: str, code: str, rules: Rules
) -> bool | None:
    """Decide after letters, acronyms, numbers, addresses and common words."""
    if len(word) == 1 and word.isalpha():
        return _after_letter(word, earlier, after, start, code, rules)
    if _ACRONYM.fullmatch(word):
        return False if start.isdecimal() else _after_name(after, start, rules)
    if _ROMAN.fullmatch(word):
        return start.isupper() and (code != "de" or _starts(after, rules))
    if _DIGITS.fullmatch(word) and code == "de":
        return _after_ordinal(earlier, after, start, rules)
    if _SITE.search(word):
        return start.isupper() or None
    if start.isdecimal() and word.isalpha() and len(word) > 3:
        return not (code == "de" and word.endswith("str"))
    return False if after[0] == "-" else None


def _after_letter(
    word: str, earlier: str, after: str, start: str, code: str, rules: Rules
) -> bool | None:
    """Decide after a single letter: an initial, the pronoun I, or a letter as in "plan B"."""
    if start.isupper() and word.isupper() and _word(earlier).casefold() in rules.letter:
        return True
    if code == "en" and word == "I" and earlier.islower():
        return True
    if start.isupper() and _starts(after, rules):
        return True
    return None if start.isupper() and word.islower() else False


def _after_ordinal(earlier: str, after: str, start: str, rules: Rules) -> bool | None:
    """Decide after a number in German, where "2." may be an ordinal and nouns have capitals."""
    counted = _word(earlier).casefold() in rules.number  # "Nr. 5"
    ordinal = not counted and (earlier[-1:] in ("", ".") or earlier.casefold() in _BEFORE_ORDINAL)
    if start.isdecimal():
        return False if ordinal else None
    if not start.isupper():
        return False
    if _first(after) in _MONTHS:
        return False
    return _starts(after, rules) or not ordinal


def _starts(after: str, rules: Rules) -> bool:
    """Return whether the next word is one that has a capital only at the start of a sentence."""
    return _first(after) in rules.starters


def _first(after: str) -> str:
    found = _FIRST.search(after)
    return found.group().casefold() if found else ""
