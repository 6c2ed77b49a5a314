"""Sentences in one batch: packed attention, beams that share a cache, and few host waits."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lcm_cli.space import transformer
from lcm_cli.space.decoder import DecoderCache, DecoderConfig, TextDecoder
from lcm_cli.space.encoder import EncoderConfig, TextEncoder
from lcm_cli.space.kernels import AlignedProjection
from lcm_cli.space.logits import largest, log_total
from lcm_cli.space.search import DecodeOptions, search
from lcm_cli.space.transformer import FeedForward, Packed, linear_relu

LAYERS, HEADS, VOCABULARY = 3, 4, 300


class Operators(TorchDispatchMode):
    """Counts the operators that are called, by name; views, which launch nothing, left out."""

    VIEWS = ("view", "expand", "squeeze", "permute", "transpose", "slice", "select.int", "unbind",
             "alias", "detach", "aten.t.", "as_strided", "aten.split")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not any(view in str(func) for view in self.VIEWS):
            self.names[str(func).split(".")[1]] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def operators() -> Iterator[Counter[str]]:
    with Operators() as mode:
        yield mode.names


@pytest.fixture(scope="module")
def decoder() -> TextDecoder:
    torch.manual_seed(0)
    decoder = TextDecoder(DecoderConfig(LAYERS, 32, HEADS, 64, VOCABULARY, 32, 64)).eval()
    torch.nn.init.normal_(decoder.decoder_frontend.embed.weight, std=0.3)
    return decoder


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(EncoderConfig(LAYERS, 32, HEADS, 64, VOCABULARY)).eval()


def rows(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(4, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def masked_attention(calls: list[int]) -> Callable[..., Tensor]:
    """Return what the packed kernel computes, as one dense attention under a mask."""

    def attend(qkv: Tensor, packed: Packed, causal: bool) -> Tensor:
        calls.append(len(qkv))
        q, k, v = qkv.unbind(1)
        starts = packed.starts_R1.tolist()
        mask = torch.zeros(len(q), len(q), dtype=torch.bool)
        for start, end in pairwise(starts):
            mask[start:end, start:end] = True
        mask = mask.tril() if causal else mask
        heads = (t.transpose(0, 1)[None] for t in (q, k, v))
        return F.scaled_dot_product_attention(*heads, mask)[0].transpose(0, 1)

    return attend


def test_the_packed_kernel_is_called_once_per_layer(
    encoder: TextEncoder, decoder: TextDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, concepts, calls = rows(*range(2, 14), 5, 3), torch.randn(14, 32), []
    with torch.no_grad():
        wanted = encoder(batch), decoder(concepts, batch)
        monkeypatch.setattr(transformer, "_joins_maps", lambda x: True)
        monkeypatch.setattr(transformer, "row_kernel", lambda *of: masked_attention(calls))
        found = encoder(batch), decoder(concepts, batch)
    assert len(calls) == 2 * LAYERS
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_relu_within_the_product_is_the_same() -> None:
    layer, x = FeedForward(32, 64).inner_proj, torch.randn(7, 32)
    with torch.no_grad():
        torch.testing.assert_close(linear_relu(x, layer), F.relu(layer(x)))


@pytest.mark.parametrize("width", [1, 3])
def test_beams_that_share_a_cache_see_their_own_tokens(decoder: TextDecoder, width: int) -> None:
    """Each step gives the logits of teacher forcing on the beam's own line of tokens."""
    sentences, generator = 4, torch.Generator().manual_seed(1)
    concepts = torch.randn(sentences, 32, generator=generator)
    kept = torch.arange(sentences)
    with torch.no_grad():
        cross, cache = decoder.cross(concepts), DecoderCache(LAYERS, sentences)
        lines = torch.full((sentences, 1), 3)
        decoder.step(lines[:, 0], cross, cache)
        cross = [c.repeat_interleave(width, dim=0) for c in cross]
        for step in range(DecoderCache.GROWTH + 4):
            beams = torch.randint(0, width if step else 1, (len(kept), width), generator=generator)
            tokens = torch.randint(4, VOCABULARY, (len(kept) * width, 1), generator=generator)
            cache.follow(beams)
            first = torch.arange(len(kept))[:, None] * (width if step else 1)
            lines = torch.cat([lines[(first + beams).flatten()], tokens], dim=1)
            if step == 5:
                kept = kept[[0, 3, 2]]
                cache.keep(kept.tolist())
                lines, cross = (
                    t.unflatten(0, (sentences, width))[kept].flatten(0, 1)
                    for t in (lines, torch.stack(cross, dim=1))
                )
                cross = list(cross.unbind(1))
            found = decoder.step(lines[:, -1], cross, cache)
            hidden = decoder(concepts[kept].repeat_interleave(width, dim=0), lines.tolist())
            wanted = decoder.project(hidden.unflatten(0, lines.shape)[:, -1])
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_the_host_reads_once_per_step(decoder: TextDecoder) -> None:
    """No step reads single numbers, and without finished rows none moves keys and values."""
    options = DecodeOptions(beam=3, min_tokens=20, max_tokens=20)
    with operators() as names:
        search(decoder, torch.randn(4, 32), [10, 11, 12, 13], [20] * 4, options)
    steps = 21
    assert not {"_local_scalar_dense", "equal", "is_nonzero"} & set(names)
    assert names["index_select"] == 0
    # Six products, two norms, an attention and ten others in a layer; 70 around the layers.
    assert sum(names.values()) <= steps * (18 * LAYERS + 70)


@pytest.mark.parametrize("columns", [5, 100, 2_560, 3_001, 12_009])
def test_the_largest_values_are_those_of_a_full_search(columns: int) -> None:
    logits = torch.randn(6, columns)
    logits[:, :3] = -torch.inf
    logits[0, 4:] = -torch.inf
    values, indices = largest(logits, 10)
    wanted = logits.topk(min(10, columns), dim=1)
    assert torch.equal(values, wanted.values)
    assert torch.equal(logits.gather(1, indices), values)
    assert torch.equal(indices[1:], wanted.indices[1:])
    assert all(len(set(row)) == len(row) for row in indices.tolist())


def test_the_denominator_is_exact_for_many_rows_and_half_precision() -> None:
    logits = 5 * torch.randn(400, 12_009)
    torch.testing.assert_close(log_total(logits), logits.logsumexp(1, keepdim=True))
    half = logits[:20].bfloat16()
    wanted = half.double().logsumexp(1, keepdim=True).float()
    torch.testing.assert_close(log_total(half), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gpu_kernels_give_the_numbers_of_the_plain_path(
    encoder: TextEncoder, decoder: TextDecoder, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, concepts = rows(*range(2, 40)), torch.randn(38, 32)
    on_gpu = [
        type(net)(net.config).eval().to("cuda", dtype)
        for net in (encoder, decoder)  # type: ignore[arg-type]
    ]
    for own, net in zip(on_gpu, (encoder, decoder), strict=True):
        own.load_state_dict(net.state_dict())
    outputs = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(transformer, "row_kernel", lambda *of: None)
        with torch.inference_mode():
            outputs.append((on_gpu[0](batch), on_gpu[1](concepts.to("cuda", dtype), batch)))
    for kernel, by_length in zip(*outputs, strict=True):
        assert F.cosine_similarity(kernel.float(), by_length.float()).min() > 0.999
    with torch.inference_mode():
        exact = encoder(batch)
    assert F.cosine_similarity(outputs[0][0].float().cpu(), exact).min() > 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("options", [DecodeOptions(beam=3), DecodeOptions(sample=True)])
def test_gpu_search_finds_the_texts_of_the_cpu(
    decoder: TextDecoder, options: DecodeOptions
) -> None:
    on_gpu = TextDecoder(decoder.config).eval()
    on_gpu.load_state_dict(decoder.state_dict())
    on_gpu.to("cuda")
    concepts = 3 * torch.randn(9, 32, generator=torch.Generator().manual_seed(2))
    languages, limits = list(range(10, 19)), [2, 12, 5, 20, 7, 20, 3, 9, 20]
    found = search(on_gpu, concepts.cuda(), languages, limits, options)
    wanted = search(decoder, concepts, languages, limits, options)
    assert [[h.ids for h in row] for row in found] == [[h.ids for h in row] for row in wanted]


@pytest.mark.parametrize("vocabulary", [7, 8, 13])
def test_an_aligned_projection_gives_the_logits_of_the_plain_one(vocabulary: int) -> None:
    weight, hidden = torch.randn(vocabulary, 16), torch.randn(5, 16)
    aligned = AlignedProjection(weight)
    found = aligned(hidden)
    torch.testing.assert_close(found, F.linear(hidden, weight))
    assert found.stride(0) % AlignedProjection.ALIGNED == 0
    assert aligned.weight[vocabulary:].abs().sum() == 0
