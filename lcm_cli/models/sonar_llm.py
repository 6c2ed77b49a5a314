"""SONAR-LLM (Dragunov et al. 2025, arXiv 2508.05305): Llama blocks, trained through the decoder.

    x^_n = W_out Llama(W_in x_<n) + b          raw concepts, no normalizer
    loss = cross-entropy of sentence n's tokens, decoded from x^_n by SONAR's frozen decoder

It is Base-LCM's computation with other blocks and another loss. What it predicts need not be a
concept that SONAR would encode, so every prediction is decoded and re-encoded before it is read
again: pass `reencode` to `generate`.

Shapes: B documents, S concepts, D concept dim, N targets.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcm_cli.errors import IntegrityError
from lcm_cli.models.base_lcm import BaseLCM, BaseOptions
from lcm_cli.models.config import SonarLLMConfig
from lcm_cli.models.interface import Batch, Loss, Noise

# Predicted concepts (N, D), and the tokens of the sentences that they are to say: the cross-entropy
# of each sentence, (N,).
SentenceLoss = Callable[[Tensor, Sequence[NDArray[np.int32]]], Tensor]


class SonarLLM(BaseLCM):
    """A causal Llama over raw concepts."""

    config: SonarLLMConfig
    end_similarity = 0.98

    def __init__(self, config: SonarLLMConfig) -> None:
        super().__init__(config)
        # Set where it is trained: no part of the model, of its parameters or its checkpoint.
        self.token_loss: SentenceLoss | None = None

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Loss:
        """Return the cross-entropy of every next sentence, or, without `token_loss`, its squared
        error. Raises IntegrityError for a batch that does not hold what its concepts say."""
        if self.token_loss is None:
            return super().loss(batch, generator)
        if batch.tokens is None:
            raise IntegrityError(
                "the data do not say what their concepts mean",
                'learn without it: --set model.loss="squared"',
            )
        chosen_BS = batch.learned(first=self.config.objective.min_context)[:, 1:]
        x_BSD = self.normalized(batch.concepts_BSD)
        prediction_BSD = self(x_BSD, segments_BS=batch.segments_BS)[:, :-1]
        prediction_ND = self.normalizer.denormalize(prediction_BSD[chosen_BS])
        places = chosen_BS.nonzero().tolist()
        errors_N = self.token_loss(
            prediction_ND.float(), [batch.tokens[row][before + 1] for row, before in places]
        )
        return Loss(errors_N.sum(), errors_N.detach())

    def spread(self, mean: Tensor, options: BaseOptions, noise: Noise) -> Tensor:
        """Return points around the predictions: temperature counts in their root mean square.

        Raw concepts have no unit deviation as normalized ones do.
        """
        if options.temperature == 0:
            return mean
        size = (mean**2).mean(dim=-1, keepdim=True).sqrt()
        return mean + options.temperature * size * noise.normal(*mean.shape[1:])
