"""The quality of a space: auto-encoding, translation, retrieval and robustness to noise.

Shapes: S sentences, D concept dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lcm_cli.evaluation.metrics import chrf
from lcm_cli.search.margin import NEIGHBOURS, ratio_margin
from lcm_cli.space import DecodeOptions, Space
from lcm_cli.space.similarity import cosines

Line = Mapping[str, str]  # a sentence and its translations, by language code


@dataclass(frozen=True)
class SpaceQuality:
    """Scores from 0 to 100 by language, or by pair such as "eng_Latn-fra_Latn"; higher is better.

    `autoencoding` and `translation` are chrF, `noisy` is the chrF of auto-encoding with noise added
    to the concepts, and `xsim` is the percentage of sentences nearest to their translation.
    """

    autoencoding: dict[str, float]
    noisy: dict[str, float]
    translation: dict[str, float]
    xsim: dict[str, float]

    def means(self) -> dict[str, float]:
        """Return the mean of each score over its languages or pairs; NaN if it has none."""
        return {
            name: float(np.mean(list(scores.values()))) if scores else float("nan")
            for name, scores in vars(self).items()
        }


def evaluate_space(
    space: Space,
    lines: Sequence[Line],
    *,
    limit: int = 200,
    noise: float = 0.3,
    beam: int = 1,
    seed: int = 0,
) -> SpaceQuality:
    """Measure `space` on translations, with at most `limit` sentences per language or pair.

    The most frequent language is the pivot: translation and retrieval pair every other one with it.
    `noise` is the standard deviation of the added noise, as a multiple of that of the concepts in
    each dimension.
    """
    count = {code: sum(code in line for line in lines) for code in space.languages}
    pivot = max(count, key=lambda code: count[code])
    options = DecodeOptions(beam=beam)
    rng = np.random.default_rng(seed)
    quality = SpaceQuality({}, {}, {}, {})
    for code in (c for c in space.languages if count[c]):
        texts = [line[code] for line in lines if code in line][:limit]
        concepts = space.encode(texts, code).concepts
        # One generator for all languages, in the order of the space's.
        noisy = concepts + noise * concepts.std(axis=0) * rng.standard_normal(concepts.shape)
        # Decoded in one call, so that clean and noisy concepts share batches.
        both = np.concatenate([concepts, noisy.astype(np.float32)])
        limits = space.limits(texts, code)
        hypotheses = space.decode(both, [code], options, limits=limits * 2)[code]
        decoded = [best[0].text for best in hypotheses]
        quality.autoencoding[code] = chrf(decoded[: len(texts)], texts)
        quality.noisy[code] = chrf(decoded[len(texts) :], texts)
    for code in (c for c in space.languages if count[c] and c != pivot):
        pairs = [line for line in lines if code in line and pivot in line][:limit]
        if pairs:
            _measure_pair(space, pairs, pivot, code, options, quality)
    return quality


def _measure_pair(
    space: Space,
    pairs: Sequence[Line],
    left: str,
    right: str,
    options: DecodeOptions,
    quality: SpaceQuality,
) -> None:
    concepts = {}
    for source, target in ((left, right), (right, left)):
        texts = [pair[source] for pair in pairs]
        concepts[source] = space.encode(texts, source).concepts
        limits = space.limits(texts, source)
        hypotheses = space.decode(concepts[source], [target], options, limits=limits)[target]
        decoded = [best[0].text for best in hypotheses]
        references = [pair[target] for pair in pairs]
        quality.translation[f"{source}-{target}"] = chrf(decoded, references)
    quality.xsim[f"{left}-{right}"] = xsim(concepts[left], concepts[right])


def xsim(left_SD: np.ndarray, right_SD: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """Return the percentage of sentences nearest to their translation, averaged over directions.

    Row n of one matrix translates row n of the other. Nearness is the ratio margin with this number
    of neighbours (see lcm_cli.search.margin).
    """
    cosine_SS = cosines(left_SD, right_SD)
    k = min(neighbours, len(cosine_SS))
    # Means over the k nearest in the other language, the translation itself included.
    near_a_S = np.sort(cosine_SS, axis=1)[:, -k:].mean(axis=1)
    near_b_S = np.sort(cosine_SS, axis=0)[-k:].mean(axis=0)
    margin_SS = ratio_margin(cosine_SS, near_a_S[:, None], near_b_S[None, :])
    own_S = np.arange(len(margin_SS))
    forward, backward = margin_SS.argmax(axis=1) == own_S, margin_SS.argmax(axis=0) == own_S
    return 50.0 * float(forward.mean() + backward.mean())
