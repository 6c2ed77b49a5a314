"""Fragility of concepts: how easily noise changes the decoded sentence (paper 2.5.2, eq. 26-28).

    x_(a,e)      = denormalize(sqrt(1 - a) normalize(x) + sqrt(a) e)       e of N(0, 1)
    fragility(w) = - E over a of U(0, 1), e [BLEU(decode(x_(a,e)), w)]

It ranges from -1 (the sentence is always decoded exactly) to 0 (never even in part). The mean is
over DRAWS values of a, one from each DRAWS-th of (0, 1): this stratified sample has less variance
than as many independent draws. The normalizer is the mean and the deviation of each channel. A
sentence's noise depends only on its language and text, so that equal sentences have equal scores.

Shapes: S sentences, D concept dim.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lcm_cli.documents.document import Concepts, Document
from lcm_cli.errors import UsageError
from lcm_cli.progress import Progress
from lcm_cli.text.bleu import sentence_bleu

if TYPE_CHECKING:
    from lcm_cli.space import Space

DRAWS = 4  # noisy copies of each concept
SAMPLE = 4096  # maximum number of sentences for the channels' mean and deviation

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ChannelStatistics:
    """The distribution of concepts: mean and standard deviation of each channel."""

    mean_D: Floats
    std_D: Floats

    def noised(
        self, x_SD: Concepts, share_S1: NDArray[np.float64], noise_SD: NDArray[np.float64]
    ) -> Floats:
        """Return concepts (S, D) with a share of their variance, (S, 1), replaced by noise."""
        # Equation 27 with normalization written out: x = mean + std * normalized x.
        kept_SD = np.sqrt(1 - share_S1) * (x_SD - self.mean_D)
        mixed_SD = self.mean_D + kept_SD + np.sqrt(share_S1) * self.std_D * noise_SD
        return np.asarray(mixed_SD, dtype=np.float32)


def channel_statistics(documents: Sequence[Document], space: "Space") -> ChannelStatistics:
    """Measure the concepts of the documents' first `SAMPLE` sentences; each needs its language.

    Raises UsageError if they have no sentences: those of recordings are not known yet.
    """
    sentences = [sentence for document in documents for sentence in document.sentences][:SAMPLE]
    codes = [document.lang for document in documents for _ in document.sentences][:SAMPLE]
    if not sentences:
        raise UsageError(
            "the noise for --fragility is measured on text, and the first documents are recordings",
            "embed the recordings without --fragility",
        )
    x_SD = space.encode(sentences, codes).concepts
    return ChannelStatistics(x_SD.mean(axis=0), x_SD.std(axis=0))


def score(
    documents: Sequence[Document],
    space: "Space",
    around: ChannelStatistics,
    progress: Progress | None = None,
) -> None:
    """Set the fragility of each sentence of documents with concepts, and of their targets.

    `progress` receives the number of sentences decoded: `DRAWS` for each distinct sentence.
    """
    parts = [part for each in documents for part in (each, each.target) if part is not None]
    keys = [(part.lang, sentence) for part in parts for sentence in part.sentences]
    concepts = [x_D for part in parts for x_D in part.concepts]  # type: ignore[union-attr]
    different = dict(zip(keys, concepts, strict=True))
    found = dict(zip(different, fragility(different, space, around, progress), strict=True))
    for part in parts:
        scores = [found[part.lang, sentence] for sentence in part.sentences]
        part.fragility = np.array(scores, dtype=np.float32)


def fragility(
    concepts: dict[tuple[str, str], Floats],
    space: "Space",
    around: ChannelStatistics,
    progress: Progress | None = None,
) -> Floats:
    """Return the fragility of sentences, (S,); `concepts` maps (language, sentence) to (D,)."""
    from lcm_cli.space import DecodeOptions

    scores_S, keys = np.zeros(len(concepts), np.float32), list(concepts)
    for lang in dict.fromkeys(code for code, _ in keys):
        places = [place for place, (code, _) in enumerate(keys) if code == lang]
        sentences = [keys[place][1] for place in places]
        noisy = [with_noise(concepts[keys[place]], keys[place], around) for place in places]
        limits = [limit for limit in space.limits(sentences, lang) for _ in range(DRAWS)]
        options = DecodeOptions(beam=1)
        decoded = space.decode(
            np.concatenate(noisy), [lang], options, limits=limits, progress=progress
        )[lang]
        # The copies of a sentence are neighbours.
        bleu = [
            sentence_bleu(texts[0].text, sentences[number // DRAWS], lang)
            for number, texts in enumerate(decoded)
        ]
        scores_S[places] = -np.reshape(bleu, (-1, DRAWS)).mean(axis=1) / 100
    return scores_S


def with_noise(x_D: Floats, key: tuple[str, str], around: ChannelStatistics) -> Floats:
    """Return `DRAWS` noisy copies of a sentence's concept, (DRAWS, D); `key` seeds the noise."""
    digest = hashlib.sha256("\0".join(key).encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    shares = (np.arange(DRAWS) + rng.uniform(size=DRAWS)) / DRAWS
    noise = rng.standard_normal((DRAWS, len(x_D)))
    return around.noised(x_D, shares[:, None], noise)
