"""Concepts of the sentences put before, between and after the documents of training data."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.training.data.columns import Column
from lcm_cli.training.data.packing import Affixes, prompt_of
from lcm_cli.training.data.row_groups import Sentences
from lcm_cli.training.data_options import DataSet

Encode = Callable[[Sequence[str]], Tensor]


class AffixEncoder:
    """Encodes the sentences put before, between and after documents, each of them once."""

    def __init__(
        self,
        encode: Encode | None,
        dim: int,
        prefix: Sequence[str],
        suffix: Sequence[str],
        prompts: Mapping[str, str],
    ) -> None:
        self._encode, self._dim = encode, dim
        self._prefix, self._suffix, self._prompts = prefix, suffix, prompts
        self._known: dict[str, NDArray[np.float32]] = {}
        self._concepts([*prefix, *suffix])  # fails without a space before files are scanned

    def affixes(self, data_set: DataSet, columns: Sequence[Column]) -> Affixes:
        """Return the affixes of a data set's documents, with columns."""
        prompt = prompt_of(data_set, self._prompts)
        parts = [
            Sentences(
                self._concepts(texts), {column.name: column.of_texts(texts) for column in columns}
            )
            for texts in (self._prefix, prompt, self._suffix)
        ]
        return Affixes(*parts)

    def paragraph_break(self, text: str, columns: Sequence[Column]) -> Sentences:
        """Return the paragraph break, one sentence, with columns."""
        return Sentences(
            self._concepts([text]), {column.name: column.of_break(text) for column in columns}
        )

    def _concepts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(sentences) if text not in self._known]
        if new:
            self._known |= zip(new, self._encoded(new), strict=True)
        rows = [self._known[text] for text in sentences]
        return np.stack(rows) if rows else np.zeros((0, self._dim), np.float32)

    def _encoded(self, sentences: list[str]) -> NDArray[np.float32]:
        if self._encode is None:
            raise UsageError(
                f"without a space, {sentences[0]!r} cannot be encoded",
                "name a space, or set [data] suffix = []",
            )
        concepts: NDArray[np.float32] = self._encode(sentences).detach().float().cpu().numpy()
        if concepts.shape != (len(sentences), self._dim):
            raise IntegrityError(
                f"the space's concepts have {concepts.shape[-1]} dimensions, the model's"
                f" {self._dim}",
                "the model and its data belong to another space",
            )
        return concepts
