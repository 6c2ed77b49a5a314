"""How good is a space: auto-encoding, translation, retrieval, robustness to noise.

Shapes: S sentences, D concept dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lcm_cli.evaluation.metrics import chrf
from lcm_cli.space import DecodeOptions, Space

Line = Mapping[str, str]


@dataclass(frozen=True)
class SpaceQuality:
    """Scores by language, or by (from, to) written "eng_Latn-fra_Latn"; all 0 to 100.

    `autoencoding` and `translation` are chrF; `noisy` is auto-encoding chrF after noise on the
    concepts; `xsim` is the share of sentences whose translation is the nearest of all.
    """

    autoencoding: dict[str, float]
    noisy: dict[str, float]
    translation: dict[str, float]
    xsim: dict[str, float]

    def means(self) -> dict[str, float]:
        """Return the mean of each score over its languages or pairs."""
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
    """Measure `space` on translations, at most `limit` sentences a language.

    The language in most lines is the pivot: translation and retrieval pair each other one with it.
    `noise` is in units of the concepts' standard deviation in each dimension.
    """
    count = {code: sum(code in line for line in lines) for code in space.languages}
    pivot = max(count, key=lambda code: count[code])
    options = DecodeOptions(beam=beam)
    rng = np.random.default_rng(seed)
    quality = SpaceQuality({}, {}, {}, {})
    for code in (c for c in space.languages if count[c]):
        texts = [line[code] for line in lines if code in line][:limit]
        concepts = space.encode(texts, code).concepts
        shaken = concepts + noise * concepts.std(axis=0) * rng.standard_normal(concepts.shape)
        both = np.concatenate([concepts, shaken.astype(np.float32)])
        limits = space.limits(texts, code)
        found = space.decode(both, [code], options, limits=limits * 2)[code]
        decoded = [best[0].text for best in found]
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
        found = space.decode(concepts[source], [target], options, limits=limits)[target]
        wanted = [pair[target] for pair in pairs]
        quality.translation[f"{source}-{target}"] = chrf([best[0].text for best in found], wanted)
    quality.xsim[f"{left}-{right}"] = xsim(concepts[left], concepts[right])


def xsim(left_SD: np.ndarray, right_SD: np.ndarray, neighbours: int = 4) -> float:
    """Return the percentage of rows whose counterpart is their nearest, both ways averaged.

    Nearness is the ratio margin of Artetxe and Schwenk (2019): cosine over the mean cosine of both
    sides to their nearest neighbours.
    """
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left_SD, right_SD))
    cosine = a @ b.T
    k = min(neighbours, len(cosine))
    near_a = np.sort(cosine, axis=1)[:, -k:].mean(axis=1)
    near_b = np.sort(cosine, axis=0)[-k:].mean(axis=0)
    margin = cosine / ((near_a[:, None] + near_b[None, :]) / 2)
    here = np.arange(len(margin))
    hits = (margin.argmax(axis=1) == here).mean() + (margin.argmax(axis=0) == here).mean()
    return 50.0 * float(hits)
