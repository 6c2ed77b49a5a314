"""Decode the output of a model in training: samples, and predictions scored as text.

Shapes: N concepts, D concept dim.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lcm_cli.evaluation.next_concept import (
    CONTEXT,
    Reconstruct,
    mutual_information,
    of_sentences,
)
from lcm_cli.models.generate import GenerateOptions, generate_concepts
from lcm_cli.models.interface import Batch, ConceptModel, Noise
from lcm_cli.space import DecodeOptions, Space
from lcm_cli.writing.writer import own_language

if TYPE_CHECKING:
    from lcm_cli.evaluation.judges import LanguageModel

PROMPT = 4  # concepts given of a document without a source
LENGTH = 4  # concepts generated for a sample
TOKENS = 64  # limit of a decoded sentence: early in training many do not end
RECONSTRUCTED = 256  # predictions for which l2-r is computed
JUDGED = 16  # documents for which MI is computed
PREDICTED = 8  # predictions per such document, at most


class Sampler:
    """Decodes concepts with a space, into the language `to`; by default English, if it has that.

    The language model `lm`, which judges predictions, should know that language. Raises
    NotFoundError for a language that the space does not know.
    """

    def __init__(
        self, space: Space, to: str, end_text: str, lm: "LanguageModel | None" = None
    ) -> None:
        self.space, self.end_text, self.lm = space, end_text, lm
        self.to = space.find_language(to) if to else own_language(space)

    def text(self, concepts_ND: Tensor) -> list[str]:
        """Decode concepts, greedily."""
        numbers = concepts_ND.float().cpu().numpy()
        limits = [TOKENS] * len(numbers)
        found = self.space.decode(numbers, [self.to], DecodeOptions(beam=1), limits=limits)
        return [best[0].text for best in found[self.to]]

    def concepts(self, texts: list[str]) -> np.ndarray:
        """Encode sentences of the language."""
        return self.space.encode(texts, self.to).concepts

    def _own(self, text: str) -> Tensor:
        """Encode a marker, such as the end of text, in the language used for training data."""
        return torch.from_numpy(self.space.encode([text], own_language(self.space)).concepts[0])

    def _reencode(self, concepts_ND: Tensor) -> Tensor:
        """Decode concepts and encode the texts, (N, D) on the CPU."""
        return torch.from_numpy(self.concepts(self.text(concepts_ND)))

    def reconstruction(self, total: int) -> Reconstruct:
        """Return a function that decodes concepts and encodes them again, for a few of `total`.

        These are spread evenly over all calls, since documents come sorted by length; the function
        returns NaN for all others.
        """
        chosen = np.linspace(0, total, min(RECONSTRUCTED, total), endpoint=False, dtype=int)
        seen = 0

        def reconstruct(concepts_ND: Tensor) -> Tensor:
            nonlocal seen
            again_ND = torch.full_like(concepts_ND, torch.nan)
            own = chosen[(chosen >= seen) & (chosen < seen + len(concepts_ND))] - seen
            seen += len(concepts_ND)
            if len(own):
                again_ND[own] = self._reencode(concepts_ND[own]).to(again_ND.device)
            return again_ND

        return reconstruct

    def mutual_information(self, model: ConceptModel, batches: list[Batch], seed: int) -> float:
        """Return the MI of predicted sentences (paper, section 2.4.1) in nats per token.

        It is the mean over a few documents, spread over all of them; NaN if there are no
        predictions. Their context, too, is decoded from concepts.
        """
        assert self.lm is not None
        rows = [(batch, row) for batch in batches for row in range(len(batch.lengths_B))]
        count = min(JUDGED, len(rows))
        pieces, truths, guesses = [], [], []
        for number, place in enumerate(np.linspace(0, len(rows), count, endpoint=False, dtype=int)):
            one = rows[place][0].rows([rows[place][1]])
            noise = Noise([seed + number], model.device)
            predicted_BSD = model.predict(one.to(model.device), model.options(), noise)
            predicted_BSD, one = of_sentences(predicted_BSD.cpu(), one)
            first = 1 if one.sources_B is None else max(int(one.sources_B[0]), 1)
            length, start = min(int(one.lengths_B[0]), first + PREDICTED), max(0, first - CONTEXT)
            # A piece is the number of sentences, context included, and of those in the context.
            # Predictions begin with concept 1, so that of concept n is at n - 1.
            if first < length:
                pieces.append((length - start, first - start))
                truths.append(one.concepts_BSD[0, start:length].float())
                guesses.append(predicted_BSD[0, first - 1 : length - 1])
        if not pieces:
            return float("nan")
        # Two calls for all documents, whose texts are then taken off piece by piece.
        texts, said = self.text(torch.cat(truths)), self.text(torch.cat(guesses))
        scores: list[tuple[float, float, int]] = []
        for length, first in pieces:
            scores += self.lm.scores(texts[:length], said[: length - first], first)
            texts, said = texts[length:], said[length - first :]
        return mutual_information(*(list(part) for part in zip(*scores, strict=True)))

    def sample(self, model: ConceptModel, batches: list[Batch], number: int) -> dict[str, Any]:
        """Continue a document, chosen by `number`; return prompt, text and truth."""
        rows = [(batch, row) for batch in batches for row in range(len(batch.lengths_B))]
        if not rows:
            return {}
        batch, row = rows[number % len(rows)]
        length = int(batch.lengths_B[row])
        given = min(PROMPT, length // 2)
        if batch.sources_B is not None:
            given = int(batch.sources_B[row])
        document_SD = batch.concepts_BSD[row, :length].float()
        prompt_SD, rest_SD = document_SD[: max(given, 1)], document_SD[max(given, 1) :]
        end_D = self._own(self.end_text)
        options = GenerateOptions(max_concepts=LENGTH)
        reencode = self._reencode if model.config.reencode else None
        break_text = model.config.break_text
        break_D = self._own(break_text) if break_text else None
        found = generate_concepts(
            model, [prompt_SD], options, end=end_D, breaks=break_D, reencode=reencode
        )
        made = found[0].concepts_SD
        return {
            "prompt": self.text(prompt_SD),
            "text": self.text(made) if len(made) else [],
            "truth": self.text(rest_SD[:LENGTH]) if len(rest_SD) else [],
        }
