"""The int8 products of the CPU: two implementations that must agree."""

import math

import pytest
import torch
from torch.nn import functional as F

from lcm_cli import int8
from lcm_cli.int8 import Int8Linear, by_dtype, by_onednn, has_dtypes, has_onednn

PRODUCTS = [
    pytest.param(by_dtype, marks=pytest.mark.skipif(not has_dtypes(), reason="no dtypes")),
    pytest.param(by_onednn, marks=pytest.mark.skipif(not has_onednn(), reason="no oneDNN")),
]


def random_map(rows: int = 48, columns: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator)
    return weight, torch.randn(rows, generator=generator)


def row_scales(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().amax(dim=1) / 127


@pytest.mark.parametrize("make", PRODUCTS)
def test_the_weights_are_the_nearest_multiples_of_the_scales(make):
    """The inputs 0 and 1 are quantized exactly."""
    weight, bias = random_map()
    scales = row_scales(weight)
    numbers = (weight / scales[:, None]).round()
    used = make(weight, scales, bias)(torch.eye(weight.shape[1])) - bias
    assert (used.t() / scales[:, None] - numbers).abs().max() < 1e-3


@pytest.mark.parametrize("make", PRODUCTS)
@pytest.mark.parametrize("inputs", ["signed", "positive", "constant", "zero", "large"])
def test_the_error_is_that_of_rounding_the_inputs(make, inputs):
    weight, bias = random_map()
    scales = row_scales(weight)
    rounded = (weight / scales[:, None]).round() * scales[:, None]
    x = torch.randn(17, weight.shape[1], generator=torch.Generator().manual_seed(1))
    x = {
        "signed": x,
        "positive": x.relu(),
        "constant": torch.full_like(x, 2.0),
        "zero": torch.zeros_like(x),
        "large": 1e6 * x,
    }[inputs]
    spread = max(x.max().item(), 0) - min(x.min().item(), 0)
    step = spread / 127
    # Each input moves by at most half a step, and the zero point by half a step more at the ends.
    most = step * rounded.abs().sum(dim=1) + 1e-5 * (1 + spread) * math.sqrt(weight.shape[1])
    exact = F.linear(x, rounded, bias)
    assert ((make(weight, scales, bias)(x) - exact).abs() <= most).all()


@pytest.mark.skipif(not (has_dtypes() and has_onednn()), reason="needs both")
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_the_implementations_agree(rows):
    weight, bias = random_map(64, 256)
    x = torch.randn(2, rows, 256, generator=torch.Generator().manual_seed(2))
    first, second = (make(weight, row_scales(weight), bias)(x) for make in (by_dtype, by_onednn))
    assert first.shape == second.shape == (2, rows, 64)
    exact = F.linear(x, weight, bias)
    errors = [(found - exact).norm() / exact.norm() for found in (first, second)]
    assert max(errors) < 0.03
    assert (first - second).norm() < 0.3 * (first - exact).norm()  # ties alone round differently


def test_a_torch_without_quantized_dtypes_uses_onednn(monkeypatch):
    if not has_onednn():
        pytest.skip("no oneDNN")
    weight, bias = random_map()
    x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(3))
    usual = Int8Linear(weight, bias)(x)
    monkeypatch.delattr(torch, "quantize_per_channel", raising=False)
    assert not int8.has_dtypes()
    without = Int8Linear(weight, bias)(x)
    exact = F.linear(x, weight, bias)
    assert (without - usual).norm() < 0.03 * exact.norm()
