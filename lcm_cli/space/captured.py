"""Decoding steps as CUDA graphs: the host launches the hundreds of kernels of a step at once.

A graph reads and writes fixed addresses, so all state of a step is in buffers of fixed shapes: for
the keys and values of as many positions as there is room for, not only of those so far, and for
a number of sentences of which some may have left. What a beam may not see, a mask hides. When the
room is full or few sentences are left, the state moves to the buffers of another graph. Graphs are
kept for the next batch.

Shapes: S sentences that fit a graph, of which the first R are decoded, B beams of each, N = S B
rows, P positions that there is room for, L layers, M model dim, H heads, d head dim, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lcm_cli.cuda_graph import Repeated
from lcm_cli.space import beam_attention
from lcm_cli.space.decoder import TextDecoder, attend_slots
from lcm_cli.space.logits import log_total
from lcm_cli.space.transformer import Joined, to_device

Outputs = tuple[Tensor, Tensor]  # logits (N, V) and the logarithm of their total (N, 1)
Repeat = Callable[[torch.device], Repeated[Outputs]]

ROOM = 32  # positions in the smallest graph; each larger one has twice as many
SHRINK = 4  # a graph for fewer sentences has room for a quarter
FEWEST_ROWS = 64  # of a graph: with fewer, a step takes as long
HIDDEN = -1  # in place of the slot of a position that has not been reached


class StaticCache:
    """Keys and values in a buffer of a fixed size, (L, 2, S, P, B, H, d), with all that selects.

    It is used as a `DecoderCache` is: every beam writes to its own slot, `slots_SBP` holds the
    slots of its ancestors, and a beam attends to all slots of its sentence under a mask. Here the
    mask covers all positions, and the current one is a number on the device. Where a kernel reads
    the slots itself, there is no mask.
    """

    def __init__(
        self,
        decoder: TextDecoder,
        sentences: int,
        beams: int,
        room: int,
        joined: Sequence[Joined | None],
    ) -> None:
        config, like = decoder.config, decoder.decoder_frontend.embed.weight
        heads = (config.heads, config.model_dim // config.heads)
        # Zeros: a hidden value counts 0 times, which is not a number for what memory may hold.
        self.kv = like.new_zeros(config.layers, 2, sentences, room, beams, *heads)
        self.position_1 = torch.zeros(1, dtype=torch.long, device=like.device)
        self._own_B = torch.arange(beams, device=like.device)
        self._own_SB1 = self._own_B.expand(sentences, -1)[..., None].contiguous()
        self.slots_SBP = self._own_SB1.new_full((sentences, beams, room), HIDDEN)
        self.parents_SB = self._own_SB1[..., 0].clone()
        self._joined = joined
        self._has_kernel = beam_attention.suits(self.kv)

    def clear(self) -> None:
        """Forget all tokens."""
        if not self._has_kernel:  # which reads nothing but what was written since
            self.kv.zero_()
        self.position_1.zero_()
        self.slots_SBP.fill_(HIDDEN)
        self.parents_SB.copy_(self._own_SB1[..., 0])

    def take(self, other: "StaticCache", sentences: Tensor, length: int) -> None:
        """Continue with these sentences of another cache, which has `length` positions."""
        self.clear()
        count = len(sentences)
        for mine, theirs in zip(self.kv, other.kv, strict=True):
            mine[:, :count, :length] = theirs[:, :, :length].index_select(1, sentences)
        self.slots_SBP[:count, :, :length] = other.slots_SBP[sentences, :, :length]
        self.parents_SB[:count] = other.parents_SB[sentences]
        self.position_1.copy_(other.position_1)

    def branch(self) -> None:
        """Continue the beams `parents_SB`, each in its own slot at the current position."""
        index = self.parents_SB[..., None].expand_as(self.slots_SBP)
        self.slots_SBP.copy_(self.slots_SBP.gather(1, index))
        self.slots_SBP.index_copy_(2, self.position_1, self._own_SB1)

    def joined(self, layer: int) -> Joined | None:
        """Return the layer's joined maps to queries, keys and values, if they are kept."""
        return self._joined[layer]

    def position(self, ids_N: Tensor) -> Tensor:
        """Return the position of the next tokens, the same for all, (1,)."""
        return self.position_1

    def mask(self, like: Tensor) -> Tensor | None:
        """Return what to add to the next position's scores, (S, 1, B, P B), in `like`'s dtype.

        None: nothing.
        """
        if self._has_kernel:
            return None
        hidden = (self.slots_SBP[..., None] != self._own_B).flatten(2)
        mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        return mask.masked_fill_(hidden, -torch.inf)[:, None]

    def attend(
        self, layer: int, q_NHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Write one position of a layer; return the attention of its queries, (N, M)."""
        if self._has_kernel:
            return beam_attention.attend_beams(
                q_NHd, k_NHd, v_NHd, self.kv[layer], self.slots_SBP, self.position_1
            )
        return attend_slots(q_NHd, *self._append(layer, k_NHd, v_NHd), mask)

    def _append(self, layer: int, k_NHd: Tensor, v_NHd: Tensor) -> tuple[Tensor, Tensor]:
        """Write one position of a layer; return its keys and values, (S, H, P B, d) each."""
        kv = self.kv[layer]
        for place, new in zip(kv, (k_NHd, v_NHd), strict=True):
            new_S1BHd = new.unflatten(0, self.parents_SB.shape)[:, None]
            place.index_copy_(1, self.position_1, new_S1BHd)
        k, v = kv.flatten(2, 3).transpose(2, 3)
        return k, v

    def advance(self) -> None:
        """Go on to the next position."""
        self.position_1.add_(1)


class _Step:
    """A step of S sentences of B beams with room for P positions, and all that it reads.

    `memory` is about how many bytes it takes, with its output.
    """

    def __init__(
        self, decoder: TextDecoder, cache: StaticCache, repeated: Repeated[Outputs], memory: int
    ) -> None:
        self._decoder = decoder
        self.cache = cache
        self.repeated = repeated
        self.memory = memory
        layers, _, self.sentences, self.room, beams = cache.kv.shape[:5]
        self.cross_LSBM = cache.kv.new_zeros(
            layers, self.sentences, beams, decoder.config.model_dim
        )
        self.ids_N = cache.parents_SB.new_zeros(self.sentences * beams)

    def start(self, cross: Sequence[Tensor]) -> None:
        """Begin with new sentences; `cross` is their cross-attention per layer, (R, M)."""
        self.cache.clear()
        for place_SBM, cross_RM in zip(self.cross_LSBM, cross, strict=True):
            place_SBM[: len(cross_RM)] = cross_RM[:, None]

    def take(self, other: "_Step", sentences: Tensor, length: int) -> None:
        """Continue with these sentences of another step, after `length` positions."""
        self.cache.take(other.cache, sentences, length)
        self.cross_LSBM[:, : len(sentences)] = other.cross_LSBM[:, sentences]

    def run(self) -> Outputs:
        """Feed `ids_N`; return the logits and their totals, which the next call overwrites."""
        return self.repeated(self._work)

    def _work(self) -> Outputs:
        # Whatever is computed here must be kernels alone: nothing that the host decides or reads.
        self.cache.branch()
        cross = self.cross_LSBM.flatten(1, 2).unbind(0)
        logits_NV = self._decoder.step(self.ids_N, cross, self.cache)
        return logits_NV, log_total(logits_NV)


class CapturedSteps:
    """The steps of a beam search, for one batch after the other of at most `most` sentences.

    All graphs and buffers are freed with it.
    """

    def __init__(
        self, decoder: TextDecoder, most: int, beams: int, repeat: Repeat = Repeated
    ) -> None:
        self._decoder, self._most, self._beams, self._repeat = decoder, most, beams, repeat
        self._device = decoder.decoder_frontend.embed.weight.device
        self._steps: dict[tuple[int, int], _Step] = {}  # the one used last is at the end
        self._step: _Step | None = None
        self._rows = self._length = self._need = 0
        with torch.inference_mode():
            joins = self._device.type == "cuda"
            self._joined = decoder.join() if joins else [None] * decoder.config.layers

    @property
    def captured(self) -> int:
        """How many steps are CUDA graphs by now."""
        return sum(step.repeated.captured for step in self._steps.values())

    def start(self, concepts_RD: Tensor, need: int) -> None:
        """Begin a batch, of which at most `need` tokens per sentence will be fed."""
        self._rows, self._length, self._need = len(concepts_RD), 0, need
        self._step = self._suitable()
        self._step.start(self._decoder.cross(concepts_RD))

    def feed(self, ids: Tensor) -> Outputs:
        """Feed one token to each beam, (R B,); return logits (R B, V) and their totals (R B, 1).

        The next call overwrites both.
        """
        step = self._current
        if self._length == step.room:
            step = self._move(range(self._rows))
        step.ids_N[: len(ids)].copy_(ids)
        self._length += 1
        logits_NV, total_N1 = step.run()
        return logits_NV[: len(ids)], total_N1[: len(ids)]

    def follow(self, beams_RB: Tensor) -> None:
        """Continue beam `beams_RB` of each sentence."""
        self._current.cache.parents_SB[: len(beams_RB)].copy_(beams_RB)

    def gains(self, going: int) -> bool:
        """Return whether steps would be faster if only `going` sentences were kept."""
        return self._size(going) < self._current.sentences

    def keep(self, sentences: Sequence[int]) -> None:
        """Keep these sentences, in this order."""
        self._rows = len(sentences)
        self._move(sentences)

    @property
    def _current(self) -> _Step:
        assert self._step is not None
        return self._step

    def _move(self, sentences: Sequence[int]) -> _Step:
        old = self._current
        self._step = self._suitable()
        kept = to_device(torch.tensor(sentences), self._device)
        self._step.take(old, kept, self._length)
        return self._step

    def _suitable(self) -> _Step:
        """Return a step for the sentences and positions of now, other than the current one."""
        size, room = self._size(self._rows), self._room()
        step = self._steps.pop((size, room), None) or self._made(size, room)
        self._steps[size, room] = step
        return step

    def _made(self, size: int, room: int) -> _Step:
        config, weight = self._decoder.config, self._decoder.decoder_frontend.embed.weight
        numbers = 2 * config.layers * config.model_dim * room + config.vocabulary
        memory = numbers * size * self._beams * weight.element_size()
        self._drop(_budget(self._device) - memory)
        cache = StaticCache(self._decoder, size, self._beams, room, self._joined)
        return _Step(self._decoder, cache, self._repeat(self._device), memory)

    def _drop(self, budget: int) -> None:
        """Free the steps that were used longest ago until the rest takes at most `budget` bytes."""
        while self._steps and sum(step.memory for step in self._steps.values()) > budget:
            del self._steps[next(iter(self._steps))]

    def _size(self, sentences: int) -> int:
        # Few sizes, the same in each batch, so that their graphs are used again.
        size = max(self._most, sentences)
        while size > 1 and size * self._beams > FEWEST_ROWS and -(-size // SHRINK) >= sentences:
            size = -(-size // SHRINK)
        return size

    def _room(self) -> int:
        room = ROOM
        while room <= self._length:
            room *= 2
        # A few positions more are not worth another graph. The rows of a mask must start at
        # multiples of 8 numbers, as the memory-efficient kernel needs.
        return -(-self._need // 8) * 8 if self._need <= 1.5 * room else room


def _budget(device: torch.device) -> int:
    """Return how many bytes the steps that are not in use may take."""
    if device.type != "cuda":
        return 1 << 30
    return torch.cuda.get_device_properties(device).total_memory // 4
