"""How little noise the concept of a sentence bears: its fragility (paper 2.5.2, eq. 26-28).

    x_(a,e)      = denormalize(sqrt(1 - a) normalize(x) + sqrt(a) e)       e of N(0, 1)
    fragility(w) = - E over a of U(0, 1), e [BLEU(decode(x_(a,e)), w)]

from -1, nothing can change what comes out, to 0, it never comes out. The mean is over DRAWS shares
of noise, one from each DRAWS-th of (0, 1), which spread less than as many of (0, 1). The normalizer
is the mean and the deviation of each channel. A sentence's noise depends on its text alone, so
that its score is the same wherever it stands.

Shapes: S sentences, D concept dim.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lcm_cli.documents.document import Concepts, Document
from lcm_cli.progress import Progress
from lcm_cli.text.bleu import sentence_bleu

if TYPE_CHECKING:
    from lcm_cli.space import Space

DRAWS = 4  # of noise for each sentence
SAMPLE = 4096  # sentences that the mean and the deviation of the channels are measured on

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Cloud:
    """Where concepts lie: mean and standard deviation of each channel."""

    mean_D: Floats
    std_D: Floats

    def noised(
        self, x_SD: Concepts, share_S1: NDArray[np.float64], noise_SD: NDArray[np.float64]
    ) -> Floats:
        """Return concepts of which a share of the variance, (S, 1), is noise (eq. 27)."""
        kept_SD = np.sqrt(1 - share_S1) * (x_SD - self.mean_D)
        mixed_SD = self.mean_D + kept_SD + np.sqrt(share_S1) * self.std_D * noise_SD
        return np.asarray(mixed_SD, dtype=np.float32)


def cloud(documents: Sequence[Document], space: "Space") -> Cloud:
    """Measure where the sentences of documents, of which the language is known, lie."""
    sentences = [sentence for document in documents for sentence in document.sentences][:SAMPLE]
    codes = [document.lang for document in documents for _ in document.sentences][:SAMPLE]
    x_SD = space.encode(sentences, codes).concepts
    return Cloud(x_SD.mean(axis=0), x_SD.std(axis=0))


def score(
    documents: Sequence[Document], space: "Space", around: Cloud, progress: Progress | None = None
) -> None:
    """Give documents with concepts, and their targets, the fragility of each sentence.

    `progress` is told the number of sentences decoded, DRAWS for each one that is different.
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
    around: Cloud,
    progress: Progress | None = None,
) -> Floats:
    """Return the fragility of sentences, (S,), given the concept (D,) of (language, sentence)."""
    from lcm_cli.space import DecodeOptions

    scores_S, keys = np.zeros(len(concepts), np.float32), list(concepts)
    for lang in dict.fromkeys(code for code, _ in keys):
        places = [place for place, (code, _) in enumerate(keys) if code == lang]
        sentences = [keys[place][1] for place in places]
        noisy = [with_noise(concepts[keys[place]], keys[place], around) for place in places]
        limits = [limit for limit in space.limits(sentences, lang) for _ in range(DRAWS)]
        options = DecodeOptions(beam=1)
        said = space.decode(
            np.concatenate(noisy), [lang], options, limits=limits, progress=progress
        )[lang]
        bleu = [
            sentence_bleu(texts[0].text, sentences[number // DRAWS], lang)
            for number, texts in enumerate(said)
        ]
        scores_S[places] = -np.reshape(bleu, (-1, DRAWS)).mean(axis=1) / 100
    return scores_S


def with_noise(x_D: Floats, key: tuple[str, str], around: Cloud) -> Floats:
    """Return a sentence's concept with DRAWS shares of noise, (DRAWS, D)."""
    digest = hashlib.sha256("\0".join(key).encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    shares = (np.arange(DRAWS) + rng.uniform(size=DRAWS)) / DRAWS
    noise = rng.standard_normal((DRAWS, len(x_D)))
    return around.noised(x_D, shares[:, None], noise)
