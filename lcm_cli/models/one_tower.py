"""One-Tower diffusion LCM (paper 2.3.3): clean and noisy concepts in one backbone.

    input  = PreNet([x | embed(t)]) + position       t = 0 for clean concepts
    x0_n   = PostNet(Transformer(clean x_<n, noisy x_n))

With self-conditioning, embed(t) of a noisy concept has the projected estimate of its x0 added.

Training denoises every sentence of a document at once, under this attention mask (figure 7):
- every position sees itself and the clean concepts of earlier sentences;
- no position sees a noisy concept other than itself;
- a noisy concept trained without context sees only itself.

The paper interleaves clean and noisy concepts. Here all clean ones come first, then all noisy
ones. The computation is the same, since positions are explicit: a sentence's clean and noisy
concepts both have its position in the document. During generation, clean concepts are read once
and cached; each denoising step writes the noisy concept behind them and does not advance the cache.

Quant-LCM (paper 2.3.5) uses the same backbone with tags other than time: see `SharedBackbone`.

Shapes: B documents, S concepts, K clean concepts, D concept dim, E tag dim, M model dim.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lcm_cli.models.config import OneTowerConfig, QuantConfig
from lcm_cli.models.diffusion import DiffusionOptions, Predict, halves, timesteps
from lcm_cli.models.diffusion_lcm import DiffusionLCM, DiffusionState
from lcm_cli.models.interface import Batch
from lcm_cli.models.key_value_cache import KeyValueCache
from lcm_cli.models.layers import (
    AddedProjection,
    Frontend,
    Projection,
    TimeEmbedding,
    Transformer,
    packed_mask,
    positions_in_documents,
)


class SharedBackbone(nn.Module):
    """A Transformer over clean and unfinished concepts, told apart by their tags."""

    def __init__(self, config: OneTowerConfig | QuantConfig) -> None:
        super().__init__()
        dim, stack = config.model_dim, config.transformer
        self.frontend = Frontend(config.concept_dim + dim, dim, stack, config.max_length)
        self.transformer = Transformer(dim, stack)

    def forward(
        self,
        clean: tuple[Tensor, Tensor],
        noisy: tuple[Tensor, Tensor],
        places_BS: Tensor,
        dropped_BS: Tensor | None = None,
        segments_BS: Tensor | None = None,
    ) -> Tensor:
        """Contextualize the noisy concepts of whole documents, (B, S, M).

        `clean` and `noisy` are concepts (B, K, D) and (B, S, D) with tags that broadcast to
        (B, K, E) and (B, S, E). `places_BS`, (B or 1, S), are the noisy concepts' places in the
        row. `segments_BS`, (B, K + 1), numbers the documents of packed rows.
        """
        x_BKD, x_BSD = clean[0], noisy[0]
        rows, known = x_BKD.shape[:2]
        places_BK = torch.arange(known, device=x_BKD.device).expand(rows, known)
        places_BS = places_BS.expand(rows, -1)
        mask = training_mask(known, places_BS, dropped_BS, segments_BS)
        # From here on places are positions, which restart with each document; the mask above
        # needed the places in the row.
        if segments_BS is not None:
            stand_BS = positions_in_documents(segments_BS)
            places_BK, places_BS = stand_BS[:, :known], stand_BS.gather(1, places_BS)
        h_BSM = torch.cat([self.embed(*clean, places_BK), self.embed(*noisy, places_BS)], dim=1)
        positions = torch.cat([places_BK, places_BS], dim=1)
        out_BSM = self.transformer(h_BSM, positions, mask)
        return out_BSM[:, -x_BSD.shape[1] :]

    def embed(self, x_BSD: Tensor, tags: Tensor, places_BS: Tensor) -> Tensor:
        """Return the PreNet of concepts concatenated with their tags, (B, S, M)."""
        tags_BSE = tags.expand(*x_BSD.shape[:-1], -1)
        return self.frontend(torch.cat([x_BSD, tags_BSE], dim=-1), places_BS)

    def read(self, x_BKD: Tensor, tag_E: Tensor, cache: KeyValueCache) -> Tensor:
        """Write clean concepts behind those in `cache`, which the caller advances.

        Returns the backbone's output, (B, K, M).
        """
        places = cache.lengths_B[:, None] + torch.arange(x_BKD.shape[1], device=x_BKD.device)
        return self.transformer(self.embed(x_BKD, tag_E, places), places, cache=cache)

    def try_next(self, x_BD: Tensor, tags: Tensor, cache: KeyValueCache, guided: bool) -> Tensor:
        """Contextualize one unfinished concept per row, (B, M); `tags` are (E,) or (B, 1, E).

        If `guided`, returns (2 B, M), the second half computed without context.
        """
        # With guidance, the second half of the rows exceeds those of the cache, and so is computed
        # without context (see `Attention.forward`).
        places = cache.lengths_B[:, None]
        h_BSM = self.embed(x_BD[:, None], tags, places)
        if guided:
            h_BSM, places = torch.cat([h_BSM, h_BSM]), torch.cat([places, places])
        out_BSM = self.transformer(h_BSM, places, cache=cache)
        return out_BSM[:, 0]

    def try_all(self, x_BSD: Tensor, tags: Tensor, cache: KeyValueCache, guided: bool) -> Tensor:
        """Like `try_next`, for concepts 1 .. S at once, each against the clean ones before it."""
        count = x_BSD.shape[1]
        places = torch.arange(1, count + 1, device=x_BSD.device).expand(len(x_BSD), count)
        h_BSM = self.embed(x_BSD, tags, places)
        mask = _noisy_mask(count, places[:1])
        if guided:
            h_BSM, places = torch.cat([h_BSM, h_BSM]), torch.cat([places, places])
        return self.transformer(h_BSM, places, mask, cache)


def training_mask(
    known: int,
    places_BS: Tensor,
    dropped_BS: Tensor | None,
    segments_BS: Tensor | None = None,
) -> Tensor:
    """Return the mask over K clean concepts followed by S noisy ones, (B, 1, K + S, K + S)."""
    rows, count = places_BS.shape
    clean = torch.ones(known, known, dtype=torch.bool, device=places_BS.device).tril()
    if segments_BS is not None:
        clean = packed_mask(segments_BS[:, :known])
    clean = nn.functional.pad(clean, (0, count)).expand(rows, 1, known, known + count)
    noisy = _noisy_mask(known, places_BS, dropped_BS, segments_BS)
    return torch.cat([clean, noisy], dim=2)


def _noisy_mask(
    known: int,
    places_BS: Tensor,
    dropped_BS: Tensor | None = None,
    segments_BS: Tensor | None = None,
) -> Tensor:
    """Return the mask rows of noisy concepts, (B, 1, S, K + S).

    They see the clean concepts strictly before them, and themselves.
    """
    rows, count = places_BS.shape
    # Strictly: a sentence's own clean concept is what its noisy one is to become.
    earlier = torch.arange(known, device=places_BS.device) < places_BS[..., None]
    if segments_BS is not None:
        own_BS = segments_BS.gather(1, places_BS)
        earlier = earlier & (own_BS[..., None] == segments_BS[:, None, :known])
    if dropped_BS is not None:
        earlier = earlier & ~dropped_BS[..., None]
    own = torch.eye(count, dtype=torch.bool, device=places_BS.device).expand(rows, count, count)
    return torch.cat([earlier, own], dim=-1)[:, None]


@dataclass
class OneTowerState(DiffusionState):
    """The context read so far, and the time embeddings of a whole run."""

    tags: dict[int, Tensor]  # timestep -> (E,)


class OneTowerLCM(DiffusionLCM):
    """A single Transformer that reads clean concepts and denoises the next."""

    config: OneTowerConfig

    def __init__(self, config: OneTowerConfig) -> None:
        super().__init__(config)
        self.embed_time = TimeEmbedding(config.model_dim)
        self.backbone = SharedBackbone(config)
        self.postnet = Projection(config.model_dim, config.concept_dim)
        self.estimate_proj: AddedProjection | None = None
        if config.self_conditioning:
            self.estimate_proj = AddedProjection(config.concept_dim, config.model_dim)

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
        # No position would see the last clean concept.
        clean = x_BSD[:, :-1], self._tag(0)
        noisy = noisy_BSD, self._with_estimate(self.embed_time(timesteps_BS), estimate_BSD)
        if places_BS is None:
            places_BS = torch.arange(x_BSD.shape[1], device=x_BSD.device)[None]
        h_BSM = self.backbone(clean, noisy, places_BS, dropped_BS, segments_BS)
        return self.postnet(h_BSM)

    def _tag(self, t: int) -> Tensor:
        return self.embed_time(torch.tensor(t, device=self.device))

    def _with_estimate(self, tags: Tensor, estimate_BSD: Tensor | None) -> Tensor:
        """Return the tags of noisy concepts, (..., E), with projected estimates of x0 added."""
        if self.estimate_proj is None or estimate_BSD is None:
            return tags
        return tags + self.estimate_proj(estimate_BSD.to(tags.dtype))

    @torch.inference_mode()
    def begin(self, prompts: Batch, capacity: int, options: DiffusionOptions) -> OneTowerState:
        """Read the prompts in one pass; see ConceptModel.begin."""
        rows = len(prompts.lengths_B)
        # One entry more than the documents need, for the noisy concept.
        room, layers = self._room(capacity + 1), self.config.transformer.layers
        cache = KeyValueCache(layers, rows, room, self.device)
        self.backbone.read(self.normalized(prompts.concepts_BSD), self._tag(0), cache)
        cache.advance(prompts.lengths_B)
        visited = timesteps(self.config.schedule.steps, options)
        tags = self.embed_time(torch.tensor(visited, device=self.device))
        return OneTowerState(options, cache, dict(zip(visited, tags, strict=True)))

    @torch.inference_mode()
    def extend(self, state: DiffusionState, concepts_BD: Tensor) -> None:
        """Append one concept to each row; see ConceptModel.extend."""
        self._fix(state)
        read = partial(self.backbone.read, cache=state.cache)
        self._launch(
            state, "read", False, read, self.normalized(concepts_BD)[:, None], self._tag(0)
        )
        state.cache.advance(1)

    def reader(self, state: DiffusionState) -> Predict:
        """Return the denoiser of one concept per row; see DiffusionLCM.reader."""
        assert isinstance(state, OneTowerState)
        self._fix(state)
        cache, conditioned = state.cache, self.estimate_proj is not None

        def predict(
            x_BD: Tensor, t: int, guided: bool, estimate_BD: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            tag = state.tags[t] if t in state.tags else self._tag(t)
            estimate_BD = estimate_BD if conditioned else None
            denoise = partial(self._denoise_rows, cache, guided)
            out_BD = self._launch(state, "denoise", guided, denoise, x_BD, tag, estimate_BD)
            return halves(out_BD, guided)

        return predict

    def _denoise_rows(
        self,
        cache: KeyValueCache,
        guided: bool,
        x_BD: Tensor,
        tag_E: Tensor,
        estimate_BD: Tensor | None = None,
    ) -> Tensor:
        """Denoise concepts (B, D); return (2 B, D) if `guided`: first those with context."""
        estimate_BSD = None if estimate_BD is None else estimate_BD[:, None]
        tags = self._with_estimate(tag_E, estimate_BSD)
        h_BM = self.backbone.try_next(x_BD.to(self.dtype), tags, cache, guided)
        return self.postnet(h_BM).float()

    def teacher(self, x_BSD: Tensor, options: DiffusionOptions) -> Predict:
        """Return the denoiser of all positions at once; see DiffusionLCM.teacher."""
        known = x_BSD.shape[1] - 1
        layers = self.config.transformer.layers
        # Room for the clean concepts and, behind them, as many noisy ones.
        cache = KeyValueCache(layers, len(x_BSD), 2 * known, self.device)
        self.backbone.read(x_BSD[:, :-1], self._tag(0), cache)
        cache.advance(known)

        def predict(
            x_BSD: Tensor, t: int, guided: bool, estimate_BSD: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            x_BSD, tags = x_BSD.to(self.dtype), self._with_estimate(self._tag(t), estimate_BSD)
            h_BSM = self.backbone.try_all(x_BSD, tags, cache, guided)
            return halves(self.postnet(h_BSM).float(), guided)

        return predict
