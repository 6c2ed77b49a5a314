"""SONAR-LLM (Dragunov et al. 2025, arXiv 2508.05305): Llama blocks, trained through the decoder.

    x^_n = W_out Llama(W_in x_<n) + b          raw concepts, no normalizer
    loss = cross-entropy of sentence n's tokens, decoded from x^_n by SONAR's frozen decoder

The computation is that of Base-LCM with other blocks and another loss. A predicted concept need not
be one that SONAR would encode, so each is decoded and re-encoded before the model reads it: pass
`reencode` to `generate_concepts`.

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

# Map predicted concepts (N, D) and the token ids of their target sentences to the cross-entropy of
# each sentence, (N,).
SentenceLoss = Callable[[Tensor, Sequence[NDArray[np.int32]]], Tensor]


class SonarLLM(BaseLCM):
    """A causal Llama over raw concepts."""

    config: SonarLLMConfig
    end_similarity = 0.98  # as in its official code

    def __init__(self, config: SonarLLMConfig) -> None:
        super().__init__(config)
        # Set by training; not part of the model's parameters or its checkpoint.
        self.token_loss: SentenceLoss | None = None

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Loss:
        """Return the cross-entropy of each next sentence, or the squared error of its concept.

        The squared error serves where `token_loss` is not set. Raises IntegrityError if the
        cross-entropy is wanted and the batch has no tokens.
        """
        if self.token_loss is None:
            return super().loss(batch, generator)
        if batch.tokens is None:
            raise IntegrityError(
                "the data hold no tokens of their sentences, which model.loss 'tokens' needs",
                'train on the concepts alone: --set model.loss="squared"',
            )
        chosen_BS = batch.learned(first=self.config.objective.min_context)[:, 1:]
        x_BSD = self.normalized(batch.concepts_BSD)
        prediction_BSD = self(x_BSD, segments_BS=batch.segments_BS)[:, :-1]
        prediction_ND = self.normalizer.denormalize(prediction_BSD[chosen_BS])
        # Column s belongs to concept s + 1, as in BaseLCM.loss.
        places = chosen_BS.nonzero().tolist()
        errors_N = self.token_loss(
            prediction_ND.float(), [batch.tokens[row][before + 1] for row, before in places]
        )
        return Loss(errors_N.sum(), errors_N.detach())

    def tempered(self, mean: Tensor, options: BaseOptions, noise: Noise) -> Tensor:
        """Return the predictions (B, ..., D), with noise of `temperature` times their RMS added.

        Raw concepts, unlike normalized ones, do not have unit deviation.
        """
        if options.temperature == 0:
            return mean
        size = (mean**2).mean(dim=-1, keepdim=True).sqrt()
        return mean + options.temperature * size * noise.normal(*mean.shape[1:])
