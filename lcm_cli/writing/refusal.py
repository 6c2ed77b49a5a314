"""Checks that refuse a generated answer if the model has evidently failed.

They are pure functions of texts and concepts; the only model they load is the language identifier.
A refused answer is replaced by sentences of its source (docs/summarize.md).

Shapes: N answer sentences, S source sentences, D concept dim.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lcm_cli.space.similarity import cosines
from lcm_cli.text.detect import (
    VARIETIES,
    is_sure,
    load_identifier,
    rank_languages,
    resolve_code,
    sample_text,
)
from lcm_cli.text.languages import find_language, language
from lcm_cli.text.length import count_words

Array = NDArray[np.floating[Any]]
Refusal = Literal["empty", "short", "repetition", "unrelated", "language"]

REASONS: dict[Refusal, str] = {
    "empty": "the model stopped at once",
    "short": "the model stopped too early",
    "repetition": "the model repeats itself",
    "unrelated": "the model's answer is not about the text",
    "language": "the model's answer is in another language",
}
LEAST_WORDS = 8  # of a single sentence whose language is checked
# Up to 40 characters, four or more times in a row.
_LOOP = re.compile(r"(.{1,40}?)\1{3,}", re.DOTALL)


@dataclass(frozen=True)
class Thresholds:
    """Limits beyond which an answer is refused."""

    same: float = 0.95  # cosine from which a sentence repeats an earlier one
    repeats: float = 0.25  # highest share of sentences that repeat an earlier one or loop
    loop: float = 0.5  # highest share of a sentence that repeats the same few words
    near: float = 0.4  # lowest cosine to a source sentence that one sentence must reach
    about: float = 0.55  # lowest mean cosine of the sentences to their nearest source sentence


def refuse(
    texts: Mapping[str, Sequence[str]],
    concepts_ND: Array,
    sources_SD: Array,
    thresholds: Thresholds | None = None,
    *,
    least: int = 1,
    languages: Collection[str] = (),
) -> Refusal | None:
    """Return the reason to refuse an answer, or None if it passes.

    `texts` holds its sentences by language. `concepts_ND` are one language's texts encoded again,
    not the model's concepts: these may look sound where their text does not. `least` is the lowest
    number of sentences; `languages` are the codes that a text could be in by mistake.
    """
    limits = thresholds or Thresholds()
    if not len(concepts_ND) or any(count_words(" ".join(said)) == 0 for said in texts.values()):
        return "empty"
    if len(concepts_ND) < least:
        return "short"
    if any(_repeats(said, concepts_ND, limits) for said in texts.values()):
        return "repetition"
    nearest_N = cosines(concepts_ND, sources_SD).max(axis=1)
    if nearest_N.max() < limits.near or nearest_N.mean() < limits.about:
        return "unrelated"
    # Last, since it loads the language identifier.
    if any(is_foreign(" ".join(said), code, languages) for code, said in texts.items()):
        return "language"
    return None


def refuse_sentence(
    text: str, code: str, source: str, languages: Collection[str] = ()
) -> Literal["empty", "repetition", "language"] | None:
    """Return the reason to refuse a translation of the sentence `source`, or None if it passes.

    A translation may repeat the same few words if its source does. The language of a short sentence
    is not checked. `languages` are the codes that the text could be in by mistake.
    """
    count = count_words(text)
    if count == 0:
        return "empty"
    share = Thresholds().loop
    if _loops(_words(text), share) and not _loops(_words(source), share):
        return "repetition"
    if languages and count >= LEAST_WORDS and is_foreign(text, code, languages):
        return "language"
    return None


def _repeats(said: Sequence[str], concepts_ND: Array, limits: Thresholds) -> bool:
    """Return whether too many sentences repeat an earlier one or loop."""
    # The lower triangle compares each sentence with those before it.
    alike_NN = np.tril(cosines(concepts_ND, concepts_ND), -1) >= limits.same
    words = [_words(text) for text in said]
    count = sum(
        bool(alike_NN[n].any()) or words[n] in words[:n] or _loops(words[n], limits.loop)
        for n in range(len(said))
    )
    return count > limits.repeats * len(said)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _loops(words: str, share: float) -> bool:
    looped = sum(len(found[0]) for found in _LOOP.finditer(words))
    return looped > share * len(words)


def is_foreign(text: str, code: str, languages: Collection[str]) -> bool:
    """Return whether `text` is with certainty in another of `languages`.

    A language that the identifier does not know, or merges with another, is never ruled out.
    """
    words = sample_text(text)
    ranked = rank_languages(words, languages)
    best = ranked[0][0]
    return best != code and best in languages and is_sure(ranked, words) and _is_identified(code)


@cache
def _is_identified(code: str) -> bool:
    script = language(code).script
    merged = {variety for varieties in VARIETIES.values() for variety in varieties}
    # The identifier knows each language in its usual script only.
    if code in merged or find_language(code[:3]).code != code:
        return False
    return any(resolve_code(label, script) == code for label in load_identifier().nb_classes)
