"""The normalizer: fitting in one pass, normalizing and denormalizing."""

import pytest
import torch
from rounding import assert_near

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.models.config import NormalizerConfig
from lcm_cli.models.normalizer import Normalizer, fit, fourier, inverse_fourier, quantile


def _concepts(count: int = 4000, dim: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.001, 0.01, 0.1, 1.0, 10.0, 3.0])[:dim]
    return torch.randn(count, dim, generator=generator) * spread + spread


@pytest.mark.parametrize("method", ["standard", "robust", "gaussian_robust"])
@pytest.mark.parametrize("fft", [False, True])
def test_round_trip(method: str, fft: bool) -> None:
    x = _concepts()
    normalizer = fit([x], NormalizerConfig(method=method, fft=fft))  # type: ignore[arg-type]
    y = normalizer.normalize(x)
    assert_near(normalizer.denormalize(y), x, terms=16)
    if method != "robust":
        torch.testing.assert_close(y.std(dim=0), torch.ones(6), atol=0.06, rtol=0)


def test_the_division_into_batches_does_not_matter() -> None:
    x = _concepts()
    for method in ("standard", "gaussian_robust"):
        config = NormalizerConfig(method=method)  # type: ignore[arg-type]
        whole, parts = fit([x], config), fit(torch.split(x, 77), config)
        assert_near(whole.center, parts.center, terms=len(x))
        assert_near(whole.scale, parts.scale, terms=len(x))


def test_a_sample_comes_close_to_all() -> None:
    x = _concepts(20_000)
    config = NormalizerConfig()
    exact, sampled = fit([x], config), fit(torch.split(x, 1000), config, sample=4000)
    torch.testing.assert_close(exact.scale, sampled.scale, atol=0, rtol=0.05)
    assert torch.equal(sampled.scale, fit(torch.split(x, 1000), config, sample=4000).scale)


def test_clip_bounds_are_quantiles_of_normalized_values() -> None:
    x = _concepts()
    normalizer = fit([x], NormalizerConfig(clip=0.01))
    y = normalizer.normalize(x)
    assert torch.equal(y.amax(dim=0), normalizer.clip_max)
    assert torch.equal(y.amin(dim=0), normalizer.clip_min)
    share = (y == normalizer.clip_max).float().mean(dim=0)
    torch.testing.assert_close(share, torch.full((6,), 0.01), atol=0.002, rtol=0)


def test_half_precision_in_full_precision_out() -> None:
    normalizer = fit([_concepts()], NormalizerConfig())
    assert normalizer.normalize(_concepts().half()).dtype == torch.float32


def test_fourier_keeps_lengths_of_real_vectors() -> None:
    x = torch.randn(5, 8)
    assert fourier(x).shape == x.shape
    assert_near(inverse_fourier(fourier(x)), x, terms=16)


@pytest.mark.parametrize("mean", [1e-25, 0.1, 1e6 + 0.3])
def test_constant_channels_are_constant_relative_to_their_mean(mean: float) -> None:
    constant = torch.full((3000, 1), mean)
    varied = constant * (1 + 1e-3 * torch.randn(3000, 1))
    x = torch.cat([constant, varied, torch.zeros(3000, 1)], dim=1)
    normalizer = fit(x.split(700), NormalizerConfig(method="standard"))
    assert normalizer.scale[[0, 2]].tolist() == [1, 1]
    assert normalizer.scale[1].item() == pytest.approx(1e-3 * mean, rel=0.1)


def test_quantile_is_torchs() -> None:
    x = torch.randn(501, 3)
    for q in (0.0, 0.001, 0.25, 0.5, 0.9993, 1.0):
        assert_near(quantile(x, q).float(), x.quantile(q, dim=0))


def test_new_normalizers_and_none_are_the_identity() -> None:
    x = torch.randn(3, 4)
    for config in (NormalizerConfig(), NormalizerConfig(method="none"), NormalizerConfig(clip=0.1)):
        normalizer = Normalizer(config, 4)
        assert torch.equal(normalizer.denormalize(normalizer.normalize(x)), x)


def test_bad_input() -> None:
    x = _concepts()
    with pytest.raises(UsageError, match="no concepts"):
        fit([], NormalizerConfig())
    with pytest.raises(UsageError, match="nothing to fit"):
        fit([x], NormalizerConfig(method="none"))
    with pytest.raises(IntegrityError, match="4000 to 7999"):
        fit([x, x * torch.nan], NormalizerConfig())
    with pytest.raises(IntegrityError, match="concept 4000 has width 3, those before it 6"):
        fit([x, x[:, :3]], NormalizerConfig())
