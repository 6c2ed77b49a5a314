"""Languages in the API: those that a request names, and guesses."""

from collections.abc import Sequence
from dataclasses import dataclass

from lcm_cli.serving.requests import refusing
from lcm_cli.text.detect import rank_languages, sample_text
from lcm_cli.text.languages import find_language
from lcm_cli.writing.writer import MODEL_LANG

AUTO = "auto"
LEAST_SHARE = 0.01  # of the odds, for a guess to be listed


@dataclass(frozen=True)
class Guess:
    """A possible language of a text; `share` is its share of the odds, from 0 to 1."""

    code: str
    share: float


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
