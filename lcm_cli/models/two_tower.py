"""Two-Tower diffusion LCM (paper 2.3.4): one tower reads, the other denoises.

    context   = Contextualizer(PreNet(normalize(x_<n)))           causal, rotary positions
    x0_n      = Denoiser(x_t, t | 0, context_<n)                  cross-attention, AdaLN
    AdaLN:  [shift, scale, gate] = SiLU(embed(t)) W + c           eq. 21
            y = x + gate Block((1 + scale) norm(x) + shift)       eq. 22
    loss      = E_t [ w(t) |x0 - Denoiser(a_t x0 + s_t e, t)|^2 ] eq. 16

A zero vector precedes the context, so that the first concept and the unconditional prediction of
guidance have a key to attend to.

The following differs from the official code, with equal results up to rounding:
- A denoiser position sees only itself, so its self-attention is output_proj(v_proj(x)). The q and
  k projections remain in the state dict, frozen.
- Position n sees the zero vector and the concepts before n. Over [0, context] that is plain causal
  attention, which needs no mask.
- Positions trained without context see a single key, so their attention is that key's value.
- In generation, keys and values of the context are computed once per concept, and modulations once
  per run; the unconditional cross-attention is one constant vector per layer.

Shapes: B documents, S concepts, K keys, D concept dim, M model dim, H heads, W head width,
N targets, T steps of the schedule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from lcm_cli.models.config import TransformerConfig, TwoTowerConfig
from lcm_cli.models.diffusion import DiffusionOptions, Predict, halves, timesteps
from lcm_cli.models.diffusion_lcm import DiffusionLCM, DiffusionState
from lcm_cli.models.interface import Batch
from lcm_cli.models.key_value_cache import KeyValueCache
from lcm_cli.models.layers import (
    AddedProjection,
    Attention,
    FeedForward,
    Frontend,
    Projection,
    TimeEmbedding,
    Transformer,
    norm_layer,
    packed_mask,
    positions_in_documents,
)


@dataclass
class Memory:
    """The keys and values of [0, context] for the cross-attention of one denoiser layer.

    Rows of the denoiser beyond those of the memory are unconditional: they see only the zero
    vector.
    """

    k_BHKW: Tensor
    v_BHKW: Tensor
    nothing_M: Tensor  # output of the cross-attention where only the zero vector is seen
    mask: Tensor | None = None  # where a position sees a key, (B or 1, 1, S or 1, K)
    causal: bool = False  # position n sees keys 0 .. n
    dropped_BS: Tensor | None = None  # positions that see only the zero vector


class CrossAttention(Attention):
    """The attention of noisy concepts to the context."""

    def nothing(self, like: Tensor) -> Tensor:
        """Return the output where only the zero vector is seen, (M,), in the dtype of `like`."""
        # A row of its own: some kernels take no single vectors.
        return self.alone(like.new_zeros(1, like.shape[-1]))[0]

    def look(self, x_BSM: Tensor, memory: Memory) -> Tensor:
        """Attend to `memory`, (B, S, M) to (B, S, M); only its rows are computed, others filled."""
        q = self.queries(x_BSM[: len(memory.k_BHKW)])
        return self.answer(q, memory, len(x_BSM))

    def answer(self, q: Tensor, memory: Memory, rows: int) -> Tensor:
        """Return what the queries of the rows of `memory` find; further rows, to B, see nothing."""
        y = self.attend(q, memory.k_BHKW, memory.v_BHKW, memory.mask, memory.causal)
        y_BSM = self.output_proj(y)
        if memory.dropped_BS is not None:
            y_BSM = torch.where(memory.dropped_BS[..., None], memory.nothing_M, y_BSM)
        if len(y_BSM) < rows:
            rest = memory.nothing_M.expand(rows - len(y_BSM), *y_BSM.shape[1:])
            y_BSM = torch.cat([y_BSM, rest])
        return y_BSM


class Modulator(nn.Module):
    """AdaLN: shift, scale and gate of a layer's three sublayers, from the timestep (eq. 21)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, 9 * dim)
        # All gates start at zero, so that every layer of a new denoiser is the identity.
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, time: Tensor) -> Tensor:
        """Map (..., M) to (..., 9 M): shift, 1 + scale and gate of each sublayer.

        The sublayers are self-attention, cross-attention and feed-forward, in this order.
        """
        parts = self.fc(nn.functional.silu(time)).view(*time.shape[:-1], 3, 3, -1)
        shift, scale, gate = parts.unbind(dim=-2)
        # Adding the 1 here, once per timestep, leaves a single addcmul to every layer.
        return torch.stack((shift, 1 + scale, gate), dim=-2).flatten(-3)


class DenoiserLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each modulated by the timestep."""

    def __init__(self, dim: int, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = norm_layer(config.norm, dim)
        self.self_attn = Attention(dim, config)
        self.cross_attention_layer_norm = norm_layer(config.norm, dim)
        self.cross_attention = CrossAttention(dim, config)
        self.ffn_layer_norm = norm_layer(config.norm, dim)
        self.ffn = FeedForward(dim, config)
        self.modulator = Modulator(dim)
        self.dropout = nn.Dropout(config.dropout)
        for unused in (self.self_attn.q_proj, self.self_attn.k_proj):
            unused.requires_grad_(False)

    def forward(self, x_BSM: Tensor, modulation: Tensor, memory: Memory) -> Tensor:
        """Map (B, S, M) to (B, S, M); `modulation` broadcasts to (B, S, 9 M)."""
        parts = modulation.chunk(9, dim=-1)
        x = self._part(x_BSM, parts[:3], self.self_attn_layer_norm, self.self_attn.alone)
        look = partial(self.cross_attention.look, memory=memory)
        x = self._part(x, parts[3:6], self.cross_attention_layer_norm, look)
        return self._part(x, parts[6:], self.ffn_layer_norm, self.ffn)

    def _part(
        self,
        x: Tensor,
        parts: Sequence[Tensor],
        norm: nn.Module,
        block: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return x + gate Block(scale norm(x) + shift) (eq. 22); `scale` already includes the 1."""
        shift, scale, gate = parts
        h = block(torch.addcmul(shift, norm(x), scale))
        return torch.addcmul(x, gate, self.dropout(h))


class Denoiser(nn.Module):
    """The second tower: denoises concepts against the contextualizer's output."""

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        dim, stack = config.model_dim, config.denoiser
        self.embed_time = TimeEmbedding(dim)
        self.initial_proj = Projection(config.concept_dim, dim)
        self.layers = nn.ModuleList(DenoiserLayer(dim, stack) for _ in range(stack.layers))
        self.layer_norm = norm_layer(stack.norm, dim) if stack.final_norm else nn.Identity()
        self.dropout = nn.Dropout(stack.final_dropout)
        self.final_proj = Projection(dim, config.concept_dim)
        self.estimate_proj: AddedProjection | None = None
        if config.self_conditioning:
            self.estimate_proj = AddedProjection(config.concept_dim, dim)

    def modulations(self, timesteps: Tensor) -> list[Tensor]:
        """Return the modulation of each layer at `timesteps` (...), (..., 9 M) each."""
        time = self.embed_time(timesteps)
        return [layer.modulator(time) for layer in self.layers]  # type: ignore[operator]

    def cross_attentions(self) -> list[CrossAttention]:
        """Return the cross-attention of each layer."""
        return [layer.cross_attention for layer in self.layers]  # type: ignore[misc]

    def forward(
        self,
        x_BSD: Tensor,
        modulations: Sequence[Tensor] | Tensor,
        memories: Sequence[Memory],
        estimate_BSD: Tensor | None = None,
    ) -> Tensor:
        """Denoise concepts (B, S, D), given the modulation and memory of each layer."""
        x_BSM = self.initial_proj(x_BSD)
        if self.estimate_proj is not None and estimate_BSD is not None:
            x_BSM = x_BSM + self.estimate_proj(estimate_BSD)
        for layer, modulation, memory in zip(self.layers, modulations, memories, strict=True):
            x_BSM = layer(x_BSM, modulation, memory)
        return self.final_proj(self.dropout(self.layer_norm(x_BSM)))


@dataclass
class TwoTowerState(DiffusionState):
    """The context read so far, for both towers, and the modulations of a whole run."""

    memory: KeyValueCache  # keys and values of [0, context] for the denoiser's cross-attention
    nothing: list[Tensor]  # each layer's cross-attention output without context, (M,)
    modulations: dict[int, list[Tensor]]  # timestep -> modulation of each layer, (9 M,)
    stacked: dict[int, Tensor] = field(default_factory=dict, kw_only=True)  # the same, (layers, 9M)
    # Which keys of `memory` are seen, (B, 1, 1, K), where CUDA graphs read it.
    filled: Tensor | None = field(default=None, kw_only=True)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        super().keep(rows)
        self.memory.keep(rows)
        self.filled = None

    def fix(self) -> None:
        """Keep the context where it is, for CUDA graphs, until `keep`."""
        super().fix()
        self.memory.fix()
        filled = self.memory.filled()
        assert filled is not None
        self.filled = filled if self.filled is None else self.filled.copy_(filled)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.cache.nbytes + self.memory.nbytes

    def bare(self) -> "TwoTowerState":
        """Return what the graphs need of this state."""
        return replace(self, watch=None, modulations={}, stacked={})

    def take(self, other: "TwoTowerState") -> None:
        """Move to the tensors and the graphs of a state of the same shapes."""
        super().take(other)
        other.memory.copy(self.memory)
        for place_M, nothing_M in zip(other.nothing, self.nothing, strict=True):
            place_M.copy_(nothing_M)
        self.memory, self.nothing, self.filled = other.memory, other.nothing, other.filled


class TwoTowerLCM(DiffusionLCM):
    """A contextualizer of clean concepts and a denoiser of the next."""

    config: TwoTowerConfig

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__(config)
        dim, stack = config.model_dim, config.contextualizer
        self.encoder_frontend = Frontend(config.concept_dim, dim, stack, config.max_length)
        self.context_encoder = Transformer(dim, stack)
        self.denoiser = Denoiser(config)

    def contextualize(
        self, x_BSD: Tensor, cache: KeyValueCache | None = None, segments_BS: Tensor | None = None
    ) -> Tensor:
        """Map normalized concepts (B, S, D) to their context vectors (B, S, M)."""
        count, mask = x_BSD.shape[1], None
        positions = torch.arange(count, device=x_BSD.device)
        if cache is not None:
            positions = cache.positions(count)
        elif segments_BS is not None:
            positions, mask = positions_in_documents(segments_BS), packed_mask(segments_BS)
        x_BSM = self.encoder_frontend(x_BSD, positions)
        return self.context_encoder(x_BSM, positions, mask, cache)

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
        """Denoise every concept against those before it; see DiffusionLCM.forward."""
        context_BSM = self.contextualize(x_BSD, segments_BS=segments_BS)
        if places_BS is None and segments_BS is not None:
            places_BS = torch.arange(x_BSD.shape[1], device=x_BSD.device).expand(len(x_BSD), -1)
        # No mask: the memories are causal.
        mask = None if places_BS is None else sees(places_BS, x_BSD.shape[1], segments_BS)
        memories = self._memories(context_BSM, mask, dropped_BS)
        modulations = self._modulations_everywhere(timesteps_BS)
        return self.denoiser(noisy_BSD, modulations, memories, estimate_BSD)

    def _modulations_everywhere(self, timesteps_BS: Tensor) -> list[Tensor]:
        """Return the modulation of each layer at every position's timestep, (B, S, 9 M) each."""
        total = self.config.schedule.steps
        if timesteps_BS.numel() < total:
            return self.denoiser.modulations(timesteps_BS)
        # Fewer timesteps than positions: compute each modulation once, then look it up.
        tables = self.denoiser.modulations(torch.arange(total, device=timesteps_BS.device))
        return [nn.functional.embedding(timesteps_BS, table) for table in tables]

    def _memories(
        self, context_BSM: Tensor, mask: Tensor | None, dropped_BS: Tensor | None = None
    ) -> list[Memory]:
        """Return the memory of [0, context] for each layer; no position sees the last concept."""
        memory_BKM = after_zero(context_BSM[:, :-1])
        return [
            Memory(
                *part.keys_values(memory_BKM),
                part.nothing(memory_BKM),
                mask,
                mask is None,
                dropped_BS,
            )
            for part in self.denoiser.cross_attentions()
        ]

    @torch.inference_mode()
    def begin(self, prompts: Batch, capacity: int, options: DiffusionOptions) -> TwoTowerState:
        """Read the prompts in one pass; see ConceptModel.begin."""
        rows, config = len(prompts.lengths_B), self.config
        room, towers = self._room, (config.contextualizer, config.denoiser)
        cache = KeyValueCache(towers[0].layers, rows, room(capacity), self.device)
        # One entry more than the context has: the zero vector.
        memory = KeyValueCache(towers[1].layers, rows, room(capacity + 1), self.device)
        context_BSM = self.contextualize(self.normalized(prompts.concepts_BSD), cache)
        nothing = [part.nothing(context_BSM) for part in self.denoiser.cross_attentions()]
        state = TwoTowerState(options, cache, memory, nothing, self._modulations_of_run(options))
        self._remember(memory, after_zero(context_BSM))
        cache.advance(prompts.lengths_B)
        memory.advance(prompts.lengths_B + 1)
        return state

    def _modulations_of_run(self, options: DiffusionOptions) -> dict[int, list[Tensor]]:
        """Return the modulations of all timesteps that `options` visits, computed in one pass."""
        visited = timesteps(self.config.schedule.steps, options)
        layers = self.denoiser.modulations(torch.tensor(visited, device=self.device))
        return {t: [layer[index] for layer in layers] for index, t in enumerate(visited)}

    def _remember(self, memory: KeyValueCache, context_BSM: Tensor) -> None:
        """Write the denoiser's keys and values of new context vectors; the caller advances."""
        for number, part in enumerate(self.denoiser.cross_attentions()):
            memory.put(number, *part.keys_values(context_BSM))

    @torch.inference_mode()
    def extend(self, state: TwoTowerState, concepts_BD: Tensor) -> None:
        """Append one concept to each row; see ConceptModel.extend."""
        self._fix(state)
        # Not `state`, which would hold itself by its graphs.
        cache, memory = state.cache, state.memory

        def read(x_BSD: Tensor) -> Tensor:
            context_BSM = self.contextualize(x_BSD, cache)
            self._remember(memory, context_BSM)
            return context_BSM

        self._launch(state, "read", False, read, self.normalized(concepts_BD)[:, None])
        state.cache.advance(1)
        state.memory.advance(1)

    def reader(self, state: DiffusionState) -> Predict:
        """Return the denoiser of one concept per row; see DiffusionLCM.reader."""
        assert isinstance(state, TwoTowerState)
        self._fix(state)
        filled = state.memory.filled() if state.filled is None else state.filled
        memories = [
            Memory(*state.memory.read(layer), nothing_M, filled)
            for layer, nothing_M in enumerate(state.nothing)
        ]
        if self._captures():
            predict = self._captured_predictor(state, memories)
        else:
            predict = self.predictor(memories, state.modulations)

        def single(
            x_BD: Tensor, t: int, guided: bool, estimate_BD: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            estimate_BSD = None if estimate_BD is None else estimate_BD[:, None]
            with_context, without = predict(x_BD[:, None], t, guided, estimate_BSD)
            return with_context[:, 0], None if without is None else without[:, 0]

        return single

    def _captured_predictor(self, state: TwoTowerState, memories: list[Memory]) -> Predict:
        """Return what `predictor` returns, its passes captured as CUDA graphs."""
        conditioned = self.denoiser.estimate_proj is not None

        def predict(
            x_BSD: Tensor, t: int, guided: bool, estimate_BSD: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            denoise = partial(self._denoise_rows, memories, guided)
            estimate_BSD = estimate_BSD if conditioned else None
            inputs = x_BSD, self._stacked(state, t), estimate_BSD
            return halves(self._launch(state, "denoise", guided, denoise, *inputs), guided)

        return predict

    def _stacked(self, state: TwoTowerState, t: int) -> Tensor:
        """Return the modulations of all layers at timestep `t`, (layers, 9 M)."""
        if t not in state.stacked:
            layers = self._modulations_at(state.modulations, t)
            state.stacked[t] = torch.stack([layer.flatten() for layer in layers])
        return state.stacked[t]

    def teacher(self, x_BSD: Tensor, options: DiffusionOptions) -> Predict:
        """Return the denoiser of all positions at once; see DiffusionLCM.teacher."""
        count = x_BSD.shape[1]
        places_BS = torch.arange(1, count, device=x_BSD.device)[None]
        memories = self._memories(self.contextualize(x_BSD), sees(places_BS, count))
        return self.predictor(memories, self._modulations_of_run(options))

    def predictor(self, memories: list[Memory], modulations: dict[int, list[Tensor]]) -> Predict:
        """Return the denoiser against `memories`; missing `modulations` are added when needed."""

        def predict(
            x_BSD: Tensor, t: int, guided: bool, estimate_BSD: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            at_t = self._modulations_at(modulations, t)
            out_BSD = self._denoise_rows(memories, guided, x_BSD, at_t, estimate_BSD)
            return halves(out_BSD, guided)

        return predict

    def _modulations_at(self, modulations: dict[int, list[Tensor]], t: int) -> list[Tensor]:
        """Return the modulation of each layer at timestep `t`, adding those missing."""
        if t not in modulations:
            modulations[t] = self.denoiser.modulations(torch.tensor([t], device=self.device))
        return modulations[t]

    def _denoise_rows(
        self,
        memories: Sequence[Memory],
        guided: bool,
        x_BSD: Tensor,
        modulations: Sequence[Tensor] | Tensor,
        estimate_BSD: Tensor | None = None,
    ) -> Tensor:
        """Denoise concepts (B, S, D); return (2 B, S, D) if `guided`: first those with context."""
        # The second half of the rows, beyond those of the memories, is unconditional.
        both, estimates = (
            part if part is None else part.to(self.dtype).repeat(1 + guided, 1, 1)
            for part in (x_BSD, estimate_BSD)
        )
        return self.denoiser(both, modulations, memories, estimates).float()


def sees(places_BS: Tensor, keys: int, segments_BS: Tensor | None = None) -> Tensor:
    """Return which of the `keys` entries of [0, context] each place sees, (B, 1, S, K).

    A place sees the zero vector and the concepts before it, in packed rows only those of its own
    document.
    """
    # Entry k is concept k - 1: entries up to n are the zero vector and the concepts before n.
    seen_BSK = torch.arange(keys, device=places_BS.device) <= places_BS[..., None]
    if segments_BS is not None:
        own_BS = segments_BS.gather(1, places_BS)
        same_BSK = own_BS[..., None] == segments_BS[:, None, : keys - 1]
        seen_BSK = seen_BSK & nn.functional.pad(same_BSK, (1, 0), value=True)
    return seen_BSK[:, None]


def after_zero(context_BSM: Tensor) -> Tensor:
    """Prepend the zero vector to the context, (B, S, M) to (B, S + 1, M)."""
    return nn.functional.pad(context_BSM, (0, 0, 1, 0))
