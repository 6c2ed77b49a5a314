"""Languages: the 202 of SONAR, and their lookup by code, tag or name in any spelling."""

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from lcm_cli.errors import NotFoundError
from lcm_cli.text.language_table import SCRIPTS, TABLE, TRUE_SCRIPT, USUAL_SCRIPT


@dataclass(frozen=True)
class Language:
    """A language in one script, under the code that spaces use."""

    code: str  # "fra_Latn"
    name: str  # "French"
    autonym: str  # "français"
    script: str  # "Latn", ISO 15924
    script_name: str  # "Latin"
    iso639_3: str  # "fra"
    iso639_1: str  # "fr", or "" where there is none
    aliases: tuple[str, ...] = ()


def _row(line: str) -> Language:
    code, name, autonym, two, *aliases = (cell.strip() for cell in line.split("|"))
    three, script = code.split("_")
    script = TRUE_SCRIPT.get(code, script)
    others = tuple(alias.strip() for alias in "".join(aliases).split(";") if alias)
    return Language(code, name, autonym, script, SCRIPTS[script], three, two, others)


_ALL: dict[str, Language] = {row.code: row for row in map(_row, TABLE.splitlines())}

# Scripts without spaces between words.
UNSPACED = ("Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt")
_NO_GAP = ("Hans", "Hant", "Jpan")  # scripts without spaces between sentences

SONAR: tuple[str, ...] = tuple(_ALL)  # in the order of the card, which is that of the language ids


def language(code: str) -> Language:
    """Return the language with exactly this code. Raises NotFoundError if there is none."""
    if code not in _ALL:
        raise _unknown(code)
    return _ALL[code]


def gap(code: str) -> str:
    """Return what separates the sentences of a language: a space, or nothing."""
    return "" if language(code).script in _NO_GAP else " "


def short_tag(code: str, within: Collection[str] = SONAR) -> str:
    """Return the shortest tag that names a language among `within`: "fr", "zh-Hant", "ast"."""
    one = language(code)
    script = code.partition("_")[2]
    tags = (one.iso639_1, one.iso639_1 and f"{one.iso639_1}-{script}", one.iso639_3)
    return next((tag for tag in tags if tag and _names(tag, code, within)), code)


def _names(tag: str, code: str, within: Collection[str]) -> bool:
    try:
        return find_language(tag, within).code == code
    except NotFoundError:
        return False


def find_language(query: str, within: Collection[str] | None = None, where: str = "") -> Language:
    """Return the language that `query` names by code, tag or name, in any spelling.

    `fr`, `fra`, `fre`, `fra_Latn`, `fra-Latn`, `French`, `français`, `fr-CA` and `FR_ca` all name
    fra_Latn. A macrolanguage stands for its usual member (`ar` for arb_Arab), and a language
    without a script for its usual script (`zh` for zho_Hans), unless `within` has only another.

    `within` are the codes of the space called `where`. Raises NotFoundError if `query` is unknown,
    is ambiguous, or names a language that the space does not have.
    """
    codes = [query] if query in _ALL else _candidates(query)
    if not codes:
        raise _unknown(query)
    held = [code for code in codes if within is None or code in within]
    if len({_ALL[code].iso639_3 for code in held or codes}) > 1:
        raise _ambiguous(query, held or codes)
    if not held:
        raise _lacking(_ALL[_usual(codes)], within or (), where)
    return _ALL[_usual(held)]


def is_listed(name: str) -> bool:
    """Return whether the table lists exactly this code or name, apart from case."""
    wanted = name.strip().casefold()
    return any(wanted == key.casefold() for one in _ALL.values() for key in _keys(one))


def search_languages(query: str) -> list[Language]:
    """Return the languages with `query` in a code, a name, or the name of their script.

    Languages that `query` names in full come first. An empty query returns all languages.
    """
    part = fold(query)
    exact = _candidates(query)
    if query and not part:
        return []
    hits = [
        one
        for one in _ALL.values()
        if any(part in _fold_name(key) for key in (*_keys(one), one.script_name))
    ]
    return sorted(hits, key=lambda one: one.code not in exact) or [_ALL[code] for code in exact]


def fold(text: str) -> str:
    """Return `text` without case, accents, punctuation and special letters: "Māori " -> "maori"."""
    plain = unicodedata.normalize("NFKD", text.casefold()).translate(_PLAIN)
    bare = "".join(c if _counts(c) else " " for c in plain if not unicodedata.combining(c))
    return " ".join(bare.split())


_fold_name = cache(fold)  # only for names in the table: what users write has no end


def _counts(character: str) -> bool:
    # The vowel signs of Indic scripts are marks, not letters, but without them names coincide.
    return character.isalnum() or unicodedata.category(character).startswith("M")


# Letters that Unicode does not decompose, and the various apostrophes.
_PLAIN = str.maketrans(
    {**dict(zip("øłđıəħŋɛɔɣð", "oldiehneogd", strict=True)), "æ": "ae", "œ": "oe", "þ": "th"}
    | dict.fromkeys("'’‘ʼʻ`´", "")
)

# A language tag (RFC 5646), folded: language, script, region, variants. The last two are ignored.
_VARIANT = "( [a-z0-9]{5,8}| [0-9][a-z0-9]{3})"
_TAG = re.compile(
    rf"([a-z]{{2,3}}( [a-z]{{3}})?( [a-z]{{4}})?)( [a-z]{{2}}| [0-9]{{3}})?{_VARIANT}*"
)


def _candidates(query: str) -> list[str]:
    """Return the codes that `query` may name.

    The region of a tag is ignored unless the table lists the tag with it (`zh_TW`).
    """
    key, index = fold(query), _index()
    tag = _TAG.fullmatch(key) if not re.search("[ ,]", query.strip()) else None
    if key not in index and tag:
        key = tag[1]
    return index.get(key, [])


def _keys(one: Language) -> Iterator[str]:
    """Yield every code and name of a language."""
    yield from (one.code, one.iso639_3, one.name, one.autonym, *one.aliases)
    if one.iso639_1:
        yield from (one.iso639_1, f"{one.iso639_1}_{one.script}")


@cache
def _index() -> Mapping[str, list[str]]:
    index: dict[str, list[str]] = {}
    for one in _ALL.values():
        for key in dict.fromkeys(map(_fold_name, _keys(one))):
            index.setdefault(key, []).append(one.code)
    return index


def _usual(codes: Collection[str]) -> str:
    return next((code for code in codes if code in USUAL_SCRIPT), next(iter(codes)))


def _named(codes: Collection[str], limit: int = 12) -> str:
    """Return a list such as "French (fra_Latn), German (deu_Latn)", cut after `limit`."""
    names = [f"{_ALL[code].name} ({code})" if code in _ALL else code for code in codes]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _unknown(query: str) -> NotFoundError:
    near = _nearest_codes(query)
    meant = f"did you mean {_named(near)}? " if near else ""
    return NotFoundError(f"unknown language {query!r}", f"{meant}`lcm languages` lists them all")


def _nearest_codes(query: str) -> list[str]:
    """Return the languages whose codes or names are closest to `query`."""
    from lcm_cli.schema import nearest

    index = _index()
    key = fold(query)
    # For a tag such as "sr Latn", SONAR may have the language in another script.
    same_language = index.get(key.split(" ")[0], []) if _TAG.fullmatch(key) else []
    near = [_usual(index[word]) for word in nearest(key, list(index))]
    return same_language or list(dict.fromkeys(near))


def _ambiguous(query: str, codes: Collection[str]) -> NotFoundError:
    return NotFoundError(f"{query!r} is ambiguous: {_named(codes)}", "choose one by its code")


def _lacking(one: Language, within: Collection[str], where: str) -> NotFoundError:
    space = f"space {where}" if where else "this space"
    message = f"{space} has no {one.name} ({one.code})"
    return NotFoundError(message, f"it has {_named(within)}; --space sonar has {one.name}")
