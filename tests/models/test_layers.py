"""The key-value cache with rows of any length, grouped heads and rotary positions."""

import pytest
import torch
from rounding import additions, assert_near
from torch import nn

from lcm_cli.models.config import RopeScaling, TransformerConfig
from lcm_cli.models.key_value_cache import KeyValueCache
from lcm_cli.models.layers import (
    Attention,
    Transformer,
    complex_rope,
    norm_layer,
    rope,
    rope_rates,
    rotate,
)

DIM = 16


@pytest.fixture(params=[{}, {"kv_heads": 2}, {"positions": "none", "qk_norm": True}])
def stack(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(0)
    return Transformer(DIM, TransformerConfig(**request.param)).eval()


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [[3, 3, 3], [5, 1, 3]])
def test_cached_rows_equal_whole_ones(stack: Transformer, lengths: list[int]) -> None:
    """Prompts are read in one pass, then single concepts; rows are dropped and reordered."""
    x = torch.randn(3, 9, DIM)
    whole = stack(x)
    cache = KeyValueCache(2, rows=3, capacity=9)
    first = stack(x[:, : max(lengths)], cache=cache)
    cache.advance(torch.tensor(lengths))
    for row, length in enumerate(lengths):
        assert_near(first[row, :length], whole[row, :length], additions(stack))
    rows = [0, 1, 2]
    for step in range(4):
        at = torch.tensor([lengths[row] + step for row in rows])
        assert torch.equal(cache.lengths_B, at)
        given = x[torch.tensor(rows), at][:, None]
        out = stack(given, cache=cache)
        assert_near(out[:, 0], whole[torch.tensor(rows), at], additions(stack))
        cache.advance(1)
        if step == 1:
            rows = [2, 0]
            cache.keep(torch.tensor(rows))


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [[4, 4, 4], [5, 1, 3]])
def test_only_the_last_output_of_each_row(stack: Transformer, lengths: list[int]) -> None:
    """The cache is then that of a whole pass, and so is what follows."""
    x, last_B = torch.randn(3, 6, DIM), torch.tensor(lengths) - 1
    whole, rows = stack(x), torch.arange(3)
    cache = KeyValueCache(2, rows=3, capacity=6)
    out = stack(x[:, : max(lengths)], cache=cache, last_B=last_B)
    for each in (out, stack(x, last_B=last_B)):  # without a cache as well
        assert each.shape == (3, 1, DIM)
        assert_near(each[:, 0], whole[rows, last_B], additions(stack))
    cache.advance(last_B + 1)
    following = stack(x[rows, last_B + 1][:, None], cache=cache)
    assert_near(following[:, 0], whole[rows, last_B + 1], additions(stack))


@torch.inference_mode()
def test_entries_not_advanced_over_leave_no_trace(stack: Transformer) -> None:
    x = torch.randn(2, 6, DIM)
    cache = KeyValueCache(2, rows=2, capacity=6)
    stack(x[:, :4], cache=cache)
    cache.advance(4)
    for _ in range(3):
        stack(torch.randn(2, 1, DIM), cache=cache)
    assert_near(stack(x[:, 4:5], cache=cache), stack(x[:, :5])[:, 4:], additions(stack))


@torch.inference_mode()
def test_rows_beyond_the_cache_see_themselves(stack: Transformer) -> None:
    x, new = torch.randn(2, 4, DIM), torch.randn(2, 1, DIM)
    cache = KeyValueCache(2, rows=2, capacity=6)
    stack(x, cache=cache)
    cache.advance(4)
    out = stack(torch.cat([new, new]), torch.full((4, 1), 4), cache=cache)
    assert_near(out[:2], stack(torch.cat([x, new], dim=1))[:, -1:], additions(stack))
    assert_near(out[2:], stack(new, torch.full((2, 1), 4)), additions(stack))


def test_alone_is_attention_to_one_key() -> None:
    for config in (TransformerConfig(), TransformerConfig(kv_heads=1, head_dim=6)):
        attention, x = Attention(DIM, config), torch.randn(3, 1, DIM)
        assert_near(attention(x), attention.alone(x), additions(attention))


def test_rotation_keeps_angles_between_positions() -> None:
    q, k = torch.randn(2, 8)
    rates = rope_rates(8, 10_000.0)
    scores, farthest = [], 103
    for shift in (0, 7, 100):
        turned = rotate(torch.stack([q, k]), rope(torch.tensor([3.0 + shift, 1.0 + shift]), rates))
        scores.append((turned[0] * turned[1]).sum())
    # The rounding error of an angle grows with its position.
    size = farthest * float(q.norm() * k.norm())
    assert_near(torch.stack(scores), scores[0].expand(3), terms=8, size=size)


def test_rotation_by_complex_numbers_is_that_of_real_factors() -> None:
    positions, rates = torch.arange(5), rope_rates(8, 10_000.0)
    x = torch.randn(2, 5, 3 * 8).view(2, 5, 3, 8).transpose(1, 2)
    turned = rotate(x, rope(positions, rates))
    assert_near(rotate(x, complex_rope(positions, rates)), turned, terms=2)
    for turns in (rope(positions, rates), complex_rope(positions, rates)):
        half = rotate(x.bfloat16(), turns)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), turned, atol=0.02, rtol=0.02)


def test_llama_scaling_slows_only_low_frequencies() -> None:
    plain, scaled = (rope_rates(64, 500_000.0, s) for s in (None, RopeScaling()))
    ratio = plain / scaled
    assert ratio[0] == 1
    assert ratio[-1].item() == pytest.approx(32)
    assert bool((ratio.diff() >= -1e-4).all())


@pytest.mark.filterwarnings("error:Mismatch dtype")
def test_rms_norm_takes_half_precision_with_float32_weights() -> None:
    """One dtype: torch warns that it cannot use its fused kernel for two."""
    norm, x = norm_layer("rms", 16), torch.randn(5, 16)
    nn.init.normal_(norm.weight)
    wanted = norm(x)
    torch.testing.assert_close(wanted, nn.functional.rms_norm(x, (16,), norm.weight, 1e-5))
    found = norm(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0.05, rtol=0.02)
    found.float().sum().backward()
    assert norm.weight.grad.dtype == torch.float32
