"""The base class of One-Tower and Two-Tower: the loss, and the sampling of concepts from noise.

A subclass implements `forward`, which denoises all concepts of a document at once for training,
and `reader` and `teacher`, whose `Predict` functions denoise against a context already read.

Shapes: B documents, S concepts, D concept dim, N targets.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lcm_cli import cuda_graph
from lcm_cli.models.config import OneTowerConfig, TwoTowerConfig
from lcm_cli.models.diffusion import Denoised, DiffusionOptions, Predict, Schedule, sample
from lcm_cli.models.diffusion_training import Draws, TimestepSampling, dropped_rows
from lcm_cli.models.interface import Batch, ConceptModel, Loss, Noise, State, squared_error
from lcm_cli.models.key_value_cache import KeyValueCache
from lcm_cli.models.normalizer import Normalizer
from lcm_cli.models.retained import Retained, addresses

# Share of rows that read an estimate in training (Chen et al. 2022, arXiv 2208.04202, 3.2).
ESTIMATED = 0.5
# A captured function: its name, whether it is guided, and which of its arguments are given.
GraphKey = tuple[str, bool, tuple[bool, ...]]
PROBES = 8  # number of noise levels at which `likelihood` measures the denoising error
BLOCK = 16  # GPU kernels read as many keys at once, and copy a mask of another width
S = TypeVar("S", bound="DiffusionState")


@dataclass
class DiffusionState(State):
    """The context read so far; `watch` is called at every denoising step."""

    options: DiffusionOptions
    cache: KeyValueCache
    watch: Callable[[Denoised], None] | None = field(default=None, kw_only=True)
    graphs: dict[GraphKey, cuda_graph.Captured] = field(default_factory=dict, kw_only=True)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.graphs.clear()  # they are of other shapes, and of memory that is about to be freed
        self.cache.keep(rows)

    def fix(self) -> None:
        """Keep the context where it is, for CUDA graphs, until `keep`."""
        self.cache.fix()

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.cache.nbytes

    def bare(self: S) -> S:
        """Return what the graphs need of this state."""
        return replace(self, watch=None)

    def take(self: S, other: S) -> None:
        """Move to the tensors and the graphs of a state of the same shapes."""
        other.cache.copy(self.cache)
        self.cache, self.graphs = other.cache, other.graphs


class DiffusionLCM(ConceptModel):
    """A model that denoises the next concept."""

    Options = DiffusionOptions
    config: OneTowerConfig | TwoTowerConfig

    def __init__(self, config: OneTowerConfig | TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.normalizer = Normalizer(config.normalizer, config.concept_dim)
        self.schedule = Schedule(config.schedule)
        self.levels = TimestepSampling(config.objective, self.schedule)
        self._warm: set[tuple[object, ...]] = set()  # what need not warm up before its capture
        self._retained = Retained()

    def options(self, **given: Any) -> DiffusionOptions:
        """Return sampling options: those `given`, and the config's defaults for the others."""
        return DiffusionOptions(**asdict(self.config.sampling) | given)

    @abstractmethod
    def forward(
        self,
        x_BSD: Tensor,
        noisy_BSD: Tensor,
        timesteps_BS: Tensor,
        places_BS: Tensor | None = None,
        dropped_BS: Tensor | None = None,
        segments_BS: Tensor | None = None,
        estimate_BSD: Tensor | None = None,
    ) -> Tensor:
        """Denoise every concept of a document against those before it.

        `x_BSD` are the clean normalized concepts. `noisy_BSD` are the same concepts, or only those
        at `places_BS`, noised at `timesteps_BS`. Positions in `dropped_BS` see no context.
        `segments_BS` numbers the documents of packed rows. `estimate_BSD` is an estimate of x0 for
        each noisy concept, which a model without self-conditioning ignores; None means zeros.
        Returns the network's predictions, shaped as `noisy_BSD`.
        """

    @abstractmethod
    def reader(self, state: DiffusionState) -> Predict:
        """Return the denoiser of the concept after each row's context; its x is (B, D)."""

    def _captures(self) -> bool:
        """Return whether passes of generation are captured as CUDA graphs."""
        return not self.training and cuda_graph.available(self.device)

    def _fix(self, state: DiffusionState) -> None:
        """Prepare `state` for graphs: with those of the last run, if it has the same shapes."""
        if not self._captures():
            return
        if state.cache.fixed:
            state.fix()
            return
        shapes = state.cache.rows, state.cache.capacity, self.dtype, self.device
        key = shapes, addresses(self)
        last = self._retained.pop(key, type(state))
        # If rows have left it since it was put there, its shapes are not those of `key`.
        if last is not None and last.cache.fixed:
            state.take(last)
        state.fix()
        self._retained.put(key, state, state.bare())

    def _room(self, capacity: int) -> int:
        """Return the number of entries to hold `capacity` in: whole blocks where all are read."""
        return -(-capacity // BLOCK) * BLOCK if self._captures() else capacity

    def _launch(
        self,
        state: DiffusionState,
        name: str,
        guided: bool,
        function: Callable[..., Tensor],
        *inputs: Tensor | None,
    ) -> Tensor:
        """Call `function` on those `inputs` that are not None.

        On GPUs it becomes a CUDA graph that lasts until rows leave `state`. The first `function` of
        each name is captured: what it holds must be fixed.
        """
        given = [part for part in inputs if part is not None]
        if not self._captures():
            return function(*given)
        key = name, guided, tuple(part is not None for part in inputs)
        if key not in state.graphs:
            # The kernels depend on the shapes; those seen before are loaded.
            shapes = key, state.cache.rows, state.cache.capacity, self.dtype, self.device
            state.graphs[key] = cuda_graph.Captured(function, warm_up=int(shapes not in self._warm))
            self._warm.add(shapes)
        return state.graphs[key](*given)

    @abstractmethod
    def teacher(self, x_BSD: Tensor, options: DiffusionOptions) -> Predict:
        """Return the denoiser of concepts 1 .. S - 1, each against the true ones before it.

        `x_BSD` are clean normalized concepts; the denoiser's x is (B, S - 1, D).
        """

    def draw(self, x0_BSD: Tensor, generator: torch.Generator | None, *, shared: bool) -> Draws:
        """Draw noise, timesteps and condition dropping for targets `x0_BSD`.

        `shared` affects only "official" dropping: it drops the same positions in all documents.
        """
        objective, shape = self.config.objective, x0_BSD.shape[:2]
        # A CPU generator gives the same numbers on every device; a GPU generator is faster.
        device = x0_BSD.device if generator is None else generator.device
        noise_BSD = torch.randn(x0_BSD.shape, generator=generator, device=device)
        timesteps_BS = self.levels.draw(shape, device, generator)
        dropped_BS = None
        # The official code drops conditions in validation as well.
        if objective.condition_dropping > 0 and (self.training or objective.dropping == "official"):
            dropped_BS = dropped_rows(objective, shape, device, generator, shared=shared)
        estimated_B = None
        if self.config.self_conditioning and self.training:
            estimated_B = torch.rand(shape[:1], generator=generator, device=device) < ESTIMATED
        return Draws(noise_BSD, timesteps_BS, dropped_BS, estimated_B).to(x0_BSD.device)

    def loss(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> Loss:
        """Return the weighted squared error of every concept, each at its own noise level.

        This is equation 16 with the weights of equation 17 or 19. `draws` replaces the numbers
        otherwise drawn from `generator`. A model with self-conditioning reads its own estimate in
        half of the rows; in all of them outside training.
        """
        x_BSD = self.normalized(batch.concepts_BSD)
        x0_BSD, target_BS = batch.targets(x_BSD)
        if draws is None:
            draws = self.draw(x0_BSD, generator, shared=batch.sources_B is None)
        # In the network's dtype, so that the target has the very noise of the input.
        noise_BSD, t_BS = draws.noise_BSD.to(x_BSD.dtype), draws.timesteps_BS
        noisy_BSD = self.schedule.noised(x0_BSD, noise_BSD, t_BS).to(x_BSD.dtype)
        places_BS = None if batch.sources_B is None else batch.places()
        given = x_BSD, noisy_BSD, t_BS, places_BS, draws.dropped_BS, batch.segments_BS
        out_BSD = self(*given, self._estimate(given, draws.estimated_B))
        goal_BSD = self.schedule.target(x0_BSD, noise_BSD, t_BS)
        fragility_N = None
        if batch.fragility_BS is not None:
            fragility_N = batch.targets(batch.fragility_BS)[0][target_BS]
        return self._weigh(out_BSD[target_BS], goal_BSD[target_BS], t_BS[target_BS], fragility_N)

    def _estimate(
        self, given: tuple[Tensor | None, ...], estimated_B: Tensor | None
    ) -> Tensor | None:
        """Return the x0 that the model predicts from the arguments `given` to `forward`.

        It has no gradient, and is zero in rows outside `estimated_B`. None without
        self-conditioning.
        """
        if not self.config.self_conditioning:
            return None
        noisy_BSD, t_BS = given[1], given[2]
        assert noisy_BSD is not None and t_BS is not None
        if estimated_B is None:
            estimated_B = torch.ones_like(t_BS[:, 0], dtype=torch.bool)
        # At least one row, whose estimate is then discarded: the processes of a sharded model must
        # all make this pass.
        rows_N = estimated_B.nonzero()[:, 0] if estimated_B.any() else torch.zeros_like(t_BS[:1, 0])
        with torch.no_grad():
            out = self(*(None if part is None else part[rows_N] for part in given))
        # Autocast would reuse the weights that it cast in this pass, which have no gradient.
        torch.clear_autocast_cache()
        estimate_BSD = torch.zeros_like(noisy_BSD)
        x0 = self.schedule.clean(out.float(), noisy_BSD[rows_N].float(), t_BS[rows_N])
        estimate_BSD[rows_N] = x0.to(noisy_BSD.dtype)
        return estimate_BSD.masked_fill(~estimated_B[:, None, None], 0.0)

    def _weigh(
        self, out_ND: Tensor, goal_ND: Tensor, timesteps_N: Tensor, fragility_N: Tensor | None
    ) -> Loss:
        """Return the loss of N targets, given the outputs and their goals, (N, D) each."""
        root = self.config.objective.root
        errors_N = squared_error(out_ND, goal_ND, root)
        weights_N = self.levels.weights(timesteps_N, fragility_N)
        raw_ND, raw_goal_ND = map(self.normalizer.denormalize, (out_ND.detach(), goal_ND))
        terms = {"unnormalized": squared_error(raw_ND, raw_goal_ND, root).sum()}
        value = errors_N.sum() if weights_N is None else (errors_N * weights_N).sum()
        mean_weight = self.levels.mean_weight(timesteps_N)
        return Loss(value, errors_N.detach(), timesteps_N, terms, weights_N, mean_weight)

    @torch.inference_mode()
    def predict(self, batch: Batch, options: DiffusionOptions, noise: Noise) -> Tensor:
        """Predict concepts 1 .. S - 1 together, each from the true ones before, (B, S - 1, D)."""
        x_BSD = self.normalized(batch.concepts_BSD)
        if x_BSD.shape[1] == 1:
            return x_BSD[:, 1:].float()
        shape = x_BSD.shape[1] - 1, x_BSD.shape[2]
        return self._denoise(self.teacher(x_BSD, options), options, noise, shape)

    @torch.inference_mode()
    def next(self, state: DiffusionState, noise: Noise) -> Tensor:
        """Sample one concept per row by denoising, (B, D)."""
        shape = (self.config.concept_dim,)
        return self._denoise(self.reader(state), state.options, noise, shape, state.watch)

    def _denoise(
        self,
        predict: Predict,
        options: DiffusionOptions,
        noise: Noise,
        shape: tuple[int, ...],
        watch: Callable[[Denoised], None] | None = None,
    ) -> Tensor:
        def draw() -> Tensor:
            return noise.normal(*shape)

        x0 = sample(self.schedule, options, draw(), predict, draw, watch)
        return self.normalizer.denormalize(x0)

    @torch.inference_mode()
    def likelihood(self, state: DiffusionState, concepts_BD: Tensor) -> Tensor:
        """Return the negative mean denoising error over `PROBES` noise levels, (B,).

        This is a coarse, unweighted sample of the variational bound of diffusion models. All rows
        get the same noise, so that their scores are comparable. With self-conditioning, the
        estimate is zero at each level, as at the first step of sampling.
        """
        x0_BD, total = self.normalizer.normalize(concepts_BD), self.config.schedule.steps
        noise, predict = Noise([0], self.device), self.reader(state)
        error_B = x0_BD.new_zeros(len(x0_BD))
        for probe in range(PROBES):
            # The middle of each of PROBES equal ranges of timesteps.
            t = (2 * probe + 1) * total // (2 * PROBES)
            e_BD = noise.normal(x0_BD.shape[-1]).expand_as(x0_BD)
            level = torch.tensor(t, device=self.device)
            x_BD = self.schedule.noised(x0_BD, e_BD, level)
            output_BD, _ = predict(x_BD, t, False)
            guess_BD = self.schedule.clean(output_BD, x_BD, t)
            error_B = error_B + squared_error(guess_BD, x0_BD)
        return -error_B / PROBES
