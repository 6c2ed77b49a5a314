"""Quant-LCM (paper 2.3.5): the next concept, one codebook at a time.

A residual vector quantizer approximates a concept by a sum of centroids, one from each of C
codebooks, chosen greedily:  x ~ sum_k c_k,  where c_k is the unit of codebook k nearest to the
residual x - c_1 - ... - c_(k-1).

The model is the One-Tower's backbone; the partial sum of the first k - 1 centroids replaces the
noisy concept, and k, which is drawn uniformly in training, replaces the timestep. It has one of two
heads:
- discrete (-d): softmax over the units of codebook k, trained by cross-entropy;
- continuous (-c): the whole concept, trained by squared error; unit i is then drawn with
  probability p(c_i | r) ~ exp(-|c_i - r|^2 / temperature), r = prediction - partial sum (eq. 23).

Concepts are quantized and distances taken in raw space, the space of the decoder's input; only the
network sees normalized concepts.

Shapes: B documents, S concepts, N concepts in all, C codebooks, U units, D concept dim, M model
dim.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.errors import UsageError
from lcm_cli.models.config import QuantConfig, QuantizerConfig
from lcm_cli.models.interface import Batch, ConceptModel, Loss, Noise, State, squared_error
from lcm_cli.models.key_value_cache import KeyValueCache
from lcm_cli.models.layers import Projection
from lcm_cli.models.normalizer import Normalizer
from lcm_cli.models.one_tower import SharedBackbone
from lcm_cli.progress import Progress

CHUNK = 1 << 24  # number of distances computed at a time, to bound memory

# Contextualize partial sums (..., D) with tag number k. If guided, the result has twice the rows:
# the second half is computed without context.
Contextualize = Callable[[Tensor, int, bool], Tensor]

# The codebook (from 0) that each concept is trained on, (B, S), and a mask of the concepts trained
# without context, (B, S) or None.
QuantDraws = tuple[Tensor, Tensor | None]


class ResidualQuantizer(nn.Module):
    """C codebooks of U centroids, each fitted on the residuals of those before it."""

    codebooks_CUD: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.codebooks, config.units, config.concept_dim
        self.register_buffer("codebooks_CUD", torch.zeros(shape))

    def nearest(self, codebook: int, x: Tensor) -> Tensor:
        """Return the index of the centroid nearest to each row of (N, D), (N,)."""
        closest = [self.closeness(codebook, part).argmax(dim=-1) for part in self.parts(x)]
        return torch.cat(closest)

    def closeness(self, codebook: int, x: Tensor) -> Tensor:
        """Return the negative squared distance of (..., D) to every centroid, (..., U) float32."""
        units_UD = self.codebooks_CUD[codebook]
        x = x.float()
        # -|x - c|^2 expanded: a matrix product instead of a (..., U, D) tensor of differences.
        x_squares, unit_squares_U = (x**2).sum(dim=-1, keepdim=True), (units_UD**2).sum(dim=-1)
        return 2 * x @ units_UD.T - x_squares - unit_squares_U

    def encode(self, x_ND: Tensor) -> Tensor:
        """Return the code of each concept (N, D), one unit per codebook, (N, C)."""
        codes, residual_ND = [], x_ND.float()
        for codebook in range(self.config.codebooks):
            code_N = self.nearest(codebook, residual_ND)
            residual_ND = residual_ND - self.codebooks_CUD[codebook][code_N]
            codes.append(code_N)
        return torch.stack(codes, dim=-1)

    def decode(self, codes_NC: Tensor, depth_N: Tensor | None = None) -> Tensor:
        """Return the sum of each code's centroids, (N, D), or only of its first `depth_N`."""
        sum_ND = self.codebooks_CUD.new_zeros(len(codes_NC), self.config.concept_dim)
        for codebook, code_N in enumerate(codes_NC.unbind(dim=1)):
            centroid_ND = self.codebooks_CUD[codebook][code_N]
            if depth_N is not None:
                centroid_ND = centroid_ND * (codebook < depth_N)[:, None]
            sum_ND = sum_ND + centroid_ND
        return sum_ND

    def errors(self, x_ND: Tensor) -> list[float]:
        """Return the share of variance unexplained by the first 1 .. C codebooks; 0 is exact."""
        residual_ND, codes_NC = x_ND.float(), self.encode(x_ND)
        total = float(((residual_ND - residual_ND.mean(dim=0)) ** 2).sum())
        lost = []
        for codebook, code_N in enumerate(codes_NC.unbind(dim=1)):
            residual_ND = residual_ND - self.codebooks_CUD[codebook][code_N]
            lost.append(float((residual_ND**2).sum()) / max(total, 1e-30))
        return lost

    def parts(self, x_ND: Tensor) -> list[Tensor]:
        """Split (N, D) into parts of at most `CHUNK` distances to the units of a codebook."""
        return list(torch.split(x_ND, max(1, CHUNK // self.config.units)))


def fit_quantizer(
    x_ND: Tensor,
    config: QuantizerConfig,
    *,
    iterations: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> ResidualQuantizer:
    """Fit each codebook by k-means on the residuals of those before it.

    `x_ND` are raw concepts. `progress` is called with 1 after each codebook. Raises UsageError if
    there are fewer concepts than units.
    """
    if len(x_ND) < config.units:
        raise UsageError(
            f"{len(x_ND)} concepts are too few for codebooks of {config.units} units",
            "embed more text, or choose fewer units",
        )
    quantizer = ResidualQuantizer(config).to(x_ND.device)
    generator = torch.Generator().manual_seed(seed)
    residual_ND = x_ND.float()
    for codebook in range(config.codebooks):
        chosen_U = torch.randperm(len(x_ND), generator=generator)[: config.units]
        quantizer.codebooks_CUD[codebook] = residual_ND[chosen_U.to(x_ND.device)]
        for _ in range(iterations):
            _kmeans_step(quantizer, codebook, residual_ND)
        # Assigned once more, since the last step has moved the centroids.
        residual_ND = (
            residual_ND
            - quantizer.codebooks_CUD[codebook][quantizer.nearest(codebook, residual_ND)]
        )
        if progress is not None:
            progress(1)
    return quantizer


def _kmeans_step(quantizer: ResidualQuantizer, codebook: int, x_ND: Tensor) -> None:
    """Move every centroid to the mean of the vectors nearest to it.

    Centroids without any move to the vectors with the largest error.
    """
    closest = [quantizer.closeness(codebook, part).max(dim=-1) for part in quantizer.parts(x_ND)]
    code_N = torch.cat([best.indices for best in closest])
    error_N = -torch.cat([best.values for best in closest])
    units_UD = quantizer.codebooks_CUD[codebook]  # a view: assignments below change the codebook
    count_U = code_N.bincount(minlength=len(units_UD))
    sums_UD = torch.zeros_like(units_UD).index_add(0, code_N, x_ND)
    units_UD.copy_(sums_UD / count_U.clamp(min=1)[:, None])
    empty_U = (count_U == 0).nonzero()[:, 0]
    units_UD[empty_U] = x_ND[error_N.topk(len(empty_U)).indices]


@dataclass(frozen=True)
class QuantOptions:
    """Generation options of Quant-LCM; None is the paper's value for long texts, by head."""

    # Of the softmax (-d: 1) or of eq. 23 (-c: 0.005); 0 always takes the best unit.
    temperature: float | None = None
    top_k: int | None = None  # number of units to draw from; -d: 3, -c: 5
    guidance: float | None = None  # classifier-free guidance scale, 1: none; -d: 1, -c: 1.5

    def __post_init__(self) -> None:
        for name in ("temperature", "guidance"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UsageError(f"{name} {value} must not be negative")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top k {self.top_k} must be at least 1")

    def resolved(self, flavour: str) -> "QuantOptions":
        """Return the options with every None replaced by the paper's value for `flavour`."""
        temperature, top_k, guidance = (1.0, 3, 1.0) if flavour == "discrete" else (0.005, 5, 1.5)
        return QuantOptions(
            temperature if self.temperature is None else self.temperature,
            self.top_k or top_k,
            guidance if self.guidance is None else self.guidance,
        )


@dataclass
class QuantState(State):
    """The context read so far."""

    options: QuantOptions
    cache: KeyValueCache

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.cache.keep(rows)


class QuantLCM(ConceptModel):
    """The One-Tower's backbone, building up a concept one centroid at a time."""

    Options = QuantOptions

    def __init__(self, config: QuantConfig) -> None:
        super().__init__()
        self.config: QuantConfig = config
        self.normalizer = Normalizer(config.normalizer, config.concept_dim)
        self.quantizer = ResidualQuantizer(
            QuantizerConfig(
                concept_dim=config.concept_dim, codebooks=config.codebooks, units=config.units
            )
        )
        # Tag 0 marks a clean concept; tag k a partial sum whose k-th centroid is to be predicted.
        self.embed_index = nn.Embedding(config.codebooks + 1, config.model_dim)
        nn.init.normal_(self.embed_index.weight, std=0.02)
        self.backbone = SharedBackbone(config)
        outputs = config.units if config.flavour == "discrete" else config.concept_dim
        self.head = Projection(config.model_dim, outputs)

    def draw(self, shape: torch.Size, generator: torch.Generator | None = None) -> QuantDraws:
        """Draw the codebook and the condition dropping of each concept, for a (B, S) `shape`."""
        device = self.device if generator is None else generator.device
        depth_BS = torch.randint(
            self.config.codebooks, shape, device=device, generator=generator
        ).to(self.device)
        return depth_BS, self._dropped(depth_BS, generator)

    def loss(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        draws: QuantDraws | None = None,
    ) -> Loss:
        """Return the cross-entropy (-d) or squared error (-c) at a random codebook per concept.

        `draws` replaces the numbers otherwise drawn from `generator`.
        """
        raw_BSD = batch.concepts_BSD.to(self.device)
        x0_BSD, target_BS = batch.targets(raw_BSD)
        depth_BS, dropped_BS = draws or self.draw(target_BS.shape, generator)
        # Padding is quantized, too: `target_BS` removes it from the result.
        codes_NC = self.quantizer.encode(x0_BSD.flatten(0, 1))
        partial_ND = self.quantizer.decode(codes_NC, depth_BS.flatten())
        partial_BSD = partial_ND.view_as(x0_BSD)
        clean = self.normalized(raw_BSD[:, :-1]), self.embed_index.weight[0]
        unfinished = self.normalized(partial_BSD), self.embed_index(depth_BS + 1)
        h_BSM = self.backbone(clean, unfinished, batch.places(), dropped_BS, batch.segments_BS)
        out_BSV = self.head(h_BSM)
        out_NV, chosen_N = out_BSV[target_BS].float(), target_BS.flatten()
        if self.config.flavour == "discrete":
            code_N = codes_NC.gather(1, depth_BS.flatten()[:, None])[chosen_N, 0]
            errors_N = F.cross_entropy(out_NV, code_N, reduction="none")
        else:
            errors_N = squared_error(out_NV, self.normalizer.normalize(x0_BSD[target_BS]))
        return Loss(errors_N.sum(), errors_N.detach())

    def _dropped(self, depth_BS: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Draw the positions trained without context, (B, S); None outside training."""
        chance = self.config.condition_dropping
        if not self.training or chance == 0:
            return None
        device = self.device if generator is None else generator.device
        chances_BS = torch.rand(depth_BS.shape, device=device, generator=generator)
        return (chances_BS < chance).to(self.device)

    @torch.inference_mode()
    def predict(self, batch: Batch, options: QuantOptions, noise: Noise) -> Tensor:
        """Predict concepts 1 .. S - 1 together, each from the true ones before, (B, S - 1, D)."""
        x_BSD = self.normalized(batch.concepts_BSD)
        known = x_BSD.shape[1] - 1
        # Room for the clean concepts and, behind them, as many partial sums.
        cache = KeyValueCache(self.config.transformer.layers, len(x_BSD), 2 * known, self.device)
        self.backbone.read(x_BSD[:, :-1], self.embed_index.weight[0], cache)
        cache.advance(known)

        def contextualize(x: Tensor, number: int, guided: bool) -> Tensor:
            return self.backbone.try_all(x, self.embed_index.weight[number], cache, guided)

        start_BSD = torch.zeros_like(batch.concepts_BSD[:, 1:], device=self.device)
        return self._build(contextualize, start_BSD, options, lambda: noise.uniform(known))

    @torch.inference_mode()
    def begin(self, prompts: Batch, capacity: int, options: QuantOptions) -> QuantState:
        """Read the prompts in one pass; see ConceptModel.begin."""
        rows = len(prompts.lengths_B)
        # One entry more than the documents need, for the partial sum.
        cache = KeyValueCache(self.config.transformer.layers, rows, capacity + 1, self.device)
        clean_BSD = self.normalized(prompts.concepts_BSD)
        self.backbone.read(clean_BSD, self.embed_index.weight[0], cache)
        cache.advance(prompts.lengths_B)
        return QuantState(options, cache)

    @torch.inference_mode()
    def extend(self, state: QuantState, concepts_BD: Tensor) -> None:
        """Append one concept to each row; see ConceptModel.extend."""
        clean_BSD = self.normalized(concepts_BD)[:, None]
        self.backbone.read(clean_BSD, self.embed_index.weight[0], state.cache)
        state.cache.advance(1)

    @torch.inference_mode()
    def next(self, state: QuantState, noise: Noise) -> Tensor:
        """Choose one centroid of every codebook for each row; return their sum, (B, D)."""
        start_BD = torch.zeros(state.cache.rows, self.config.concept_dim, device=self.device)
        return self._build(self._contextualizer(state), start_BD, state.options, noise.uniform)

    @torch.inference_mode()
    def likelihood(self, state: QuantState, concepts_BD: Tensor) -> Tensor:
        """Return the log probability of each concept's code, (B,)."""
        codes_BC = self.quantizer.encode(concepts_BD.to(self.device))
        options = state.options.resolved(self.config.flavour)
        partial_BD, sum_B = torch.zeros_like(concepts_BD), concepts_BD.new_zeros(len(concepts_BD))
        # At the paper's temperature, whatever that of sampling.
        scale = QuantOptions().resolved(self.config.flavour).temperature
        assert scale is not None
        for codebook, code_B in enumerate(codes_BC.unbind(dim=1)):
            scores_BU = self._scores(self._contextualizer(state), partial_BD, codebook, options)
            logs_BU = (scores_BU / scale).log_softmax(dim=-1)
            sum_B = sum_B + logs_BU.gather(1, code_B[:, None])[:, 0]
            partial_BD = partial_BD + self.quantizer.codebooks_CUD[codebook][code_B]
        return sum_B

    def _contextualizer(self, state: QuantState) -> Contextualize:
        def contextualize(x_BD: Tensor, number: int, guided: bool) -> Tensor:
            tag_E = self.embed_index.weight[number]
            return self.backbone.try_next(x_BD, tag_E, state.cache, guided)

        return contextualize

    def _build(
        self,
        contextualize: Contextualize,
        sums: Tensor,
        options: QuantOptions,
        draw: Callable[[], Tensor],
    ) -> Tensor:
        """Add a centroid of every codebook to `sums`, zeros (..., D), and return the result."""
        options = options.resolved(self.config.flavour)
        for codebook in range(self.config.codebooks):
            scores = self._scores(contextualize, sums, codebook, options)
            unit = choose_codes(scores, options, draw)
            sums = sums + self.quantizer.codebooks_CUD[codebook][unit]
        return sums

    def _scores(
        self, contextualize: Contextualize, sums: Tensor, codebook: int, options: QuantOptions
    ) -> Tensor:
        """Return the score of each unit of a codebook, (..., U).

        Scores are logits (-d), or the negative squared distances of equation 23 (-c).
        """
        guided = options.guidance != 1.0
        out = self.head(contextualize(self.normalized(sums), codebook + 1, guided)).float()
        if guided:  # eq. 20
            conditional, unconditional = out.chunk(2)
            out = unconditional + options.guidance * (conditional - unconditional)
        if self.config.flavour == "discrete":
            return out
        # The residual r of equation 23, in raw space.
        return self.quantizer.closeness(codebook, self.normalizer.denormalize(out) - sums)


def choose_codes(scores: Tensor, options: QuantOptions, draw: Callable[[], Tensor]) -> Tensor:
    """Draw a unit per position from scores (..., U), among the `top_k` best, (...).

    `draw` returns uniform numbers in [0, 1), (...); it is not called at temperature 0.
    """
    assert options.temperature is not None and options.top_k is not None
    if options.temperature == 0:
        return scores.argmax(dim=-1)
    best = scores.topk(min(options.top_k, scores.shape[-1]), dim=-1)
    shares = (best.values / options.temperature).softmax(dim=-1)
    # Inverse CDF. Rounding may leave the last sum below 1 and the drawn number above it: clamp.
    place = (shares.cumsum(dim=-1) <= draw()[..., None]).sum(dim=-1, keepdim=True)
    return best.indices.gather(-1, place.clamp(max=best.indices.shape[-1] - 1))[..., 0]
