"""Whether what a model generated may be shown, or shows the signs of a model that lost its way.

A pure function over texts and concepts: it loads nothing but, for the language, the identifier.
What is refused here is replaced by sentences of the source (docs/summarize.md).

Shapes: N sentences of the answer, S sentences of the source, D concept dim.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lcm_cli.space.similarity import cosines
from lcm_cli.text.detect import is_sure, rank_languages, sample_text
from lcm_cli.text.length import count_words

Array = NDArray[np.floating[Any]]
Refusal = Literal["empty", "short", "repetition", "unrelated", "language"]

MEANING: dict[Refusal, str] = {
    "empty": "the model stopped at once",
    "short": "the model stopped too early",
    "repetition": "the model repeats itself",
    "unrelated": "what the model says is not about the text",
    "language": "what the model says is in another language",
}
# Something of up to 40 characters, four times or more in a row.
_LOOP = re.compile(r"(.{1,40}?)\1{3,}", re.DOTALL)


@dataclass(frozen=True)
class Thresholds:
    """When an answer is refused."""

    same: float = 0.95  # cosine from which a sentence says what an earlier one has said
    repeats: float = 0.25  # share of the sentences that may repeat an earlier one, or loop
    loop: float = 0.5  # share of a sentence that may be the same few words over and over
    near: float = 0.4  # cosine from which a sentence is about one of the source: one must be
    about: float = 0.55  # mean over the sentences of the cosine to the nearest of the source


def refuse(
    texts: Mapping[str, Sequence[str]],
    concepts_ND: Array,
    sources_SD: Array,
    thresholds: Thresholds | None = None,
    *,
    least: int = 1,
    languages: Collection[str] = (),
) -> Refusal | None:
    """Return why an answer must not be shown, or None if nothing speaks against it.

    `texts` are its sentences by language, `concepts_ND` those of one of the texts, encoded again:
    a concept that nothing decodes to may look well while the text is not. `least` is the fewest
    sentences that will do; `languages` are the codes that a text might be in instead.
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
    if any(_is_foreign(" ".join(said), code, languages) for code, said in texts.items()):
        return "language"
    return None


def _repeats(said: Sequence[str], concepts_ND: Array, limits: Thresholds) -> bool:
    """Return whether too many sentences say what an earlier one did, or go round in themselves."""
    alike_NN = np.tril(cosines(concepts_ND, concepts_ND), -1) >= limits.same
    words = [" ".join(re.findall(r"\w+", text.casefold())) for text in said]
    count = sum(
        bool(alike_NN[n].any()) or words[n] in words[:n] or _loops(words[n], limits.loop)
        for n in range(len(said))
    )
    return count > limits.repeats * len(said)


def _loops(words: str, share: float) -> bool:
    looped = sum(len(found[0]) for found in _LOOP.finditer(words))
    return looped > share * len(words)


def _is_foreign(text: str, code: str, languages: Collection[str]) -> bool:
    """Return whether `text` is for certain in another of `languages`."""
    words = sample_text(text)
    ranked = rank_languages(words, languages)
    best = ranked[0][0]
    return best != code and best in languages and is_sure(ranked, words)
