"""Base-LCM: regression on the next concept (paper 2.3.1).

    PreNet(x)  = normalize(x) W_pre + b_pre
    PostNet(h) = denormalize(h W_post + b_post)
    loss       = sum over n of |normalize(x_n) - Transformer(PreNet(x_<n)) W_post - b_post|^2

The loss compares normalized concepts and is summed over channels, as in the official code. Such a
model learns the mean of all plausible next sentences. It is deterministic by default;
`temperature` adds Gaussian noise around the mean.

Shapes: B documents, S concepts, D concept dim, M model dim, N targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lcm_cli.errors import UsageError
from lcm_cli.models.config import BaseConfig
from lcm_cli.models.interface import Batch, ConceptModel, Loss, Noise, State, squared_error
from lcm_cli.models.key_value_cache import KeyValueCache
from lcm_cli.models.layers import (
    Frontend,
    Projection,
    Transformer,
    packed_mask,
    positions_in_documents,
)
from lcm_cli.models.normalizer import Normalizer


@dataclass(frozen=True)
class BaseOptions:
    """Generation options of Base-LCM."""

    temperature: float = 0.0  # standard deviation of the noise added to each normalized channel

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UsageError(f"temperature {self.temperature} must not be negative")


@dataclass
class BaseState(State):
    """The keys and values of the concepts read, and the prediction of the next."""

    options: BaseOptions
    cache: KeyValueCache
    mean_BD: Tensor  # normalized

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.cache.keep(rows)
        self.mean_BD = self.mean_BD[rows]


class BaseLCM(ConceptModel):
    """A causal Transformer over concepts."""

    Options = BaseOptions

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.config: BaseConfig = config
        self.normalizer = Normalizer(config.normalizer, config.concept_dim)
        self.frontend = Frontend(
            config.concept_dim,
            config.model_dim,
            config.transformer,
            config.max_length,
            scale=config.model_dim**0.5 if config.scale_input else 1.0,
            weight_norm=config.input_weight_norm,
        )
        self.lcm = Transformer(config.model_dim, config.transformer)
        self.postnet = Projection(config.model_dim, config.concept_dim, config.output_activation)

    def forward(
        self,
        x_BSD: Tensor,
        cache: KeyValueCache | None = None,
        segments_BS: Tensor | None = None,
        last_B: Tensor | None = None,
    ) -> Tensor:
        """Map normalized concepts (B, S, D) to the normalized prediction after each, (B, S, D).

        With a `cache`, the concepts follow those it holds; call `cache.advance` to keep them.
        `segments_BS` numbers the documents of packed rows. With `last_B` (see Transformer.forward),
        only the prediction after this concept of each row is returned, (B, 1, D).
        """
        count, mask = x_BSD.shape[1], None
        positions = torch.arange(count, device=x_BSD.device)
        if cache is not None:
            positions = cache.positions(count)
        elif segments_BS is not None:
            positions, mask = positions_in_documents(segments_BS), packed_mask(segments_BS)
        h_BSM = self.lcm(self.frontend(x_BSD, positions), positions, mask, cache, last_B)
        return self.postnet(h_BSM)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Loss:
        """Return the squared error of each next concept, in normalized space.

        Dropout is the only randomness; `generator` is not used.
        """
        objective = self.config.objective
        x_BSD = self.normalized(batch.concepts_BSD)
        target_BS = batch.learned(first=objective.min_context)
        # The first concept has no context and is never predicted: drop its column, so that column
        # s of the mask and of the predictions belongs to concept s + 1.
        chosen_BS = target_BS[:, 1:]
        prediction_ND = self(x_BSD, segments_BS=batch.segments_BS)[:, :-1][chosen_BS]
        errors_N = squared_error(prediction_ND, x_BSD[:, 1:][chosen_BS], objective.root)
        return Loss(errors_N.sum(), errors_N.detach())

    @torch.inference_mode()
    def predict(self, batch: Batch, options: BaseOptions, noise: Noise) -> Tensor:
        """Predict raw concepts 1 .. S - 1, each from the true ones before it, (B, S - 1, D).

        Each document draws from its own row of `noise`.
        """
        mean_BSD = self(self.normalized(batch.concepts_BSD))[:, :-1].float()
        return self.normalizer.denormalize(self.tempered(mean_BSD, options, noise))

    def tempered(self, mean: Tensor, options: BaseOptions, noise: Noise) -> Tensor:
        """Return the normalized predictions (B, ..., D), with noise added by temperature."""
        if options.temperature == 0:
            return mean
        return mean + options.temperature * noise.normal(*mean.shape[1:])

    @torch.inference_mode()
    def begin(self, prompts: Batch, capacity: int, options: BaseOptions) -> BaseState:
        """Read the prompts in one pass; see ConceptModel.begin."""
        rows = len(prompts.lengths_B)
        cache = KeyValueCache(self.config.transformer.layers, rows, capacity, self.device)
        last_B = prompts.lengths_B - 1  # padding is on the right
        means_BSD = self(self.normalized(prompts.concepts_BSD), cache, last_B=last_B)
        cache.advance(prompts.lengths_B)
        return BaseState(options, cache, means_BSD[:, 0].float())

    @torch.inference_mode()
    def next(self, state: BaseState, noise: Noise) -> Tensor:
        """Propose the predicted mean, with noise added by temperature, (B, D)."""
        return self.normalizer.denormalize(self.tempered(state.mean_BD, state.options, noise))

    @torch.inference_mode()
    def extend(self, state: BaseState, concepts_BD: Tensor) -> None:
        """Append one concept to each row; see ConceptModel.extend."""
        means_BSD = self(self.normalized(concepts_BD)[:, None], state.cache)
        state.cache.advance(1)
        state.mean_BD = means_BSD[:, -1].float()

    @torch.inference_mode()
    def likelihood(self, state: BaseState, concepts_BD: Tensor) -> Tensor:
        """Return the log density of a unit Gaussian around the prediction, up to a constant."""
        return -0.5 * squared_error(self.normalizer.normalize(concepts_BD), state.mean_BD)
