"""Offline language detection: returns a language only if it is certain."""

import math
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lcm_cli.errors import NotFoundError, UsageError
from lcm_cli.paths import cache_dir
from lcm_cli.text import languages
from lcm_cli.text.language_table import SCRIPTS

SAMPLE = 2000  # maximum number of characters examined
SURE = 0.7  # see `is_sure`
# Varieties that the library often confuses with the standard language: if that ranks first, their
# odds are added to it.
VARIETIES = {
    "arb_Arab": ("ary_Arab", "arz_Arab"),
    "zho_Hans": ("?wuu", "?yue"),
    "zho_Hant": ("yue_Hant", "?wuu"),
}
OUTSIDER = 0.2  # prior weight of a language outside the space, relative to one inside


def detect(text: str, within: Collection[str], where: str = "") -> str:
    """Return the code of the language of `text`, one of `within`, the codes of a space.

    `where` is the name of that space. Raises UsageError, with the best guesses, if the language is
    uncertain, and NotFoundError if it is certain but not in the space.
    """
    words = sample_text(text)
    if not any(map(str.isalpha, words)):
        raise UsageError(
            "the language cannot be detected: the text has no words",
            "name the language, for example --from fr",
        )
    ranked = rank_languages(words, within)
    if not is_sure(ranked, words):
        raise _unsure(ranked)
    code = ranked[0][0]
    try:
        return languages.find_language(code, within, where).code
    except NotFoundError as error:
        name = languages.language(code).name
        hint = f"{error.hint}; if the text is not {name}, name its language with --from"
        raise NotFoundError(f"the text seems to be {name}, but {error.message}", hint) from None


def sample_text(text: str) -> str:
    """Return the first words of `text`, each once: repetitions are not further evidence."""
    return " ".join(dict.fromkeys(text[: 10 * SAMPLE].split()))[:SAMPLE]


def rank_languages(text: str, within: Collection[str]) -> list[tuple[str, float]]:
    """Return the most likely languages with their odds (not normalized), best first.

    A language that SONAR does not have in the script of `text` is listed as "?label".
    """
    script = script_of(text)
    odds: dict[str, float] = {}
    for label, probability in load_identifier().rank(text)[:10]:
        code = resolve_code(label, script) or f"?{label}"
        weight = 1.0 if code in within else OUTSIDER
        odds[code] = odds.get(code, 0.0) + weight * probability
    best = max(odds, key=odds.__getitem__)
    odds[best] += sum(odds.pop(variety, 0.0) for variety in VARIETIES.get(best, ()))
    return sorted(odds.items(), key=lambda item: -item[1])


def is_sure(ranked: list[tuple[str, float]], text: str, sure: float = SURE) -> bool:
    """Return whether the best language is one of SONAR's and clearly ahead of the second.

    The library tempers its probabilities by the length of the text, so that the log-odds of the
    right language grow slowly with the length. Where the library does not know the right language,
    those of a relative of it grow less. The required margin therefore rises with the length. It is
    calibrated with benchmarks/detect.py; see docs/languages.md.
    """
    (best, odds), (_, second) = ranked[0], (*ranked, ("", 0.0))[1]
    margin = math.log(odds / second) if second > 0 else math.inf
    return not best.startswith("?") and margin >= sure * len(text.encode()) ** 0.25


@cache
def resolve_code(label: str, script: str) -> str:
    """Return the code for the library's label ("zh", "deu") of a text in `script`, or ""."""
    try:
        usual = languages.find_language(label)
    except NotFoundError:
        return ""
    # "zh" does not specify the script, and SONAR does not have Serbian in Latin script.
    same = (
        one for one in map(languages.language, languages.SONAR) if one.code[:3] == usual.code[:3]
    )
    fitting = [one.code for one in same if one.script == script]
    if script in ("Hans", "Hant") and usual.script == "Jpan":  # a short text may be without kana
        fitting = [usual.code]
    return fitting[0] if fitting else ""


def script_of(text: str) -> str:
    """Return the ISO 15924 code of the script of most letters of `text`, or ""."""
    counts = Counter(map(_script, filter(str.isalpha, text)))
    if 10 * counts["Jpan"] > counts["Han"]:  # only Japanese mixes kana with Han characters
        counts["Jpan"] += counts.pop("Han", 0)
    script = max(counts, key=counts.__getitem__, default="")
    return _simplified_or_traditional(text) if script == "Han" else script


# The first word of a letter's Unicode name identifies its script.
_BY_NAME = {name.upper(): code for code, name in SCRIPTS.items()}
_BY_NAME |= {"ORIYA": "Orya", "OL": "Olck", "HIRAGANA": "Jpan", "KATAKANA": "Jpan", "CJK": "Han"}


@cache
def _script(letter: str) -> str:
    return _BY_NAME.get(unicodedata.name(letter, "").split(" ")[0], "")


def _simplified_or_traditional(text: str) -> str:
    """Return "Hans" or "Hant", whichever national character set covers more of `text`."""
    simplified = len(text.encode("gb2312", "ignore").decode("gb2312"))
    traditional = len(text.encode("big5", "ignore").decode("big5"))
    return "Hant" if traditional > simplified else "Hans"


@cache
def load_identifier() -> Any:
    """Return py3langid's identifier.

    Unpacking its tables takes 0.4 s and 70 MB of memory. They are therefore kept unpacked in lcm's
    cache folder, and memory-mapped from there.
    """
    from py3langid.langid import (  # type: ignore[import-untyped]
        MODEL_DIR,
        MODEL_FILE,
        LanguageIdentifier,
    )

    packed = (MODEL_DIR / MODEL_FILE).stat()
    folder = cache_dir() / "langid" / f"{packed.st_size}-{packed.st_mtime_ns}"
    try:
        return _map_tables(folder, LanguageIdentifier)
    except (OSError, ValueError):  # not there, or damaged
        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    with suppress(OSError):  # a cache that cannot be written
        _keep_tables(identifier, folder)
    return identifier


_TABLES = ("nb_ptc", "nb_pc", "nb_classes", "tk_nextmove", "tk_output", "tk_row")


def _map_tables(folder: Path, build: Callable[..., Any]) -> Any:
    import numpy as np

    files = (folder / f"{name}.npy" for name in _TABLES)
    tables: list[Any] = [np.asarray(np.load(file, mmap_mode="r")) for file in files]
    ptc, pc, classes, moves, output, row = tables
    # A memoryview yields Python's integers, which numpy's indexing would make slowly.
    small = (classes.tolist(), memoryview(moves), output.tolist())
    return build(ptc, pc, *small, norm_probs=True, tk_row=row.tolist())


def _keep_tables(identifier: Any, folder: Path) -> None:
    """Write the tables of an identifier to `folder`, in place of those of other versions."""
    import numpy as np

    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent.parent) as name:
        new = Path(name) / folder.name
        new.mkdir()
        for table in _TABLES:
            np.save(new / f"{table}.npy", np.asarray(getattr(identifier, table)))
        for old in folder.parent.iterdir():
            shutil.rmtree(old, ignore_errors=True)
        new.rename(folder)


def _unsure(ranked: list[tuple[str, float]]) -> UsageError:
    guesses = [languages.language(code) for code, _ in ranked if not code.startswith("?")][:3]
    named = ", ".join(f"{one.name} ({one.code})" for one in guesses)
    name_it = "name it with --from"
    hint = f"perhaps {named}: {name_it}" if named else name_it
    return UsageError("the language of the text is uncertain", hint)
