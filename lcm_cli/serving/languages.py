"""Languages in the API: short codes as LibreTranslate's clients use them, and guesses."""

from collections.abc import Sequence
from dataclasses import dataclass

from lcm_cli.errors import NotFoundError
from lcm_cli.serving.requests import refusing
from lcm_cli.text.detect import rank_languages, sample_text
from lcm_cli.text.languages import find_language, language
from lcm_cli.writing.writer import MODEL_LANG

AUTO = "auto"
LEAST_SHARE = 0.01  # of the odds, for a guess to be listed


@dataclass(frozen=True)
class Guess:
    """A possible language of a text; `share` is its share of the odds, from 0 to 1."""

    code: str
    share: float


def short_code(code: str, within: Sequence[str]) -> str:
    """Return the shortest tag that names a language in a space: "fr", "zh-Hant", "ast"."""
    one = language(code)
    script = code.partition("_")[2]
    tags = (one.iso639_1, one.iso639_1 and f"{one.iso639_1}-{script}", one.iso639_3)
    return next((tag for tag in tags if tag and _names(tag, code, within)), code)


def _names(tag: str, code: str, within: Sequence[str]) -> bool:
    try:
        return find_language(tag, within).code == code
    except NotFoundError:
        return False


def resolve(query: str, within: Sequence[str], where: str) -> str:
    """Return the code of the language that `query` names. Raises RefusedError (400)."""
    with refusing():
        return find_language(query, within, where).code


def guesses(text: str, within: Sequence[str]) -> list[Guess]:
    """Return the most likely languages of a text in a space, best first, at least one.

    Without evidence, the guess is English, if the space has it, with a share of 0.
    """
    fallback = Guess(MODEL_LANG if MODEL_LANG in within else within[0], 0.0)
    words = sample_text(text)
    if not any(map(str.isalpha, words)):
        return [fallback]
    ranked = rank_languages(words, within)
    total = sum(odds for _, odds in ranked) or 1.0
    found = [Guess(code, odds / total) for code, odds in ranked if code in within]
    return [guess for guess in found if guess.share >= LEAST_SHARE] or found[:1] or [fallback]


def resolve_or_guess(query: str, text: str, within: Sequence[str], where: str) -> Guess:
    """Return the language that `query` names, with share 1, or the best guess if it is "auto"."""
    if query == AUTO:
        return guesses(text, within)[0]
    return Guess(resolve(query, within, where), 1.0)
