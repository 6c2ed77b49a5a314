"""Normalization of concepts: normalize(x) = (x - center) / scale, by channel (paper 2.3.1).

The spread of concept channels varies a hundredfold, and their tails are long. Center and scale
therefore default to the median and the interquartile range, divided by that of a standard Gaussian
("gaussian_robust"). Optionally, a real Fourier transform comes first, and normalized values are
clipped at two quantiles. The official code passes its fractions 0.25 and 0.75 to a function that
takes percents, and so measures the spread between the 0.25th and the 0.75th percentile;
`spread="official"` reproduces this.

Shapes: N concepts, D concept dim.
"""

from collections.abc import Iterable
from statistics import NormalDist

import torch
from torch import Tensor, nn

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.models.config import NormalizerConfig

QUANTILES = {"quartiles": (0.25, 0.75), "official": (0.0025, 0.0075)}


class Normalizer(nn.Module):
    """An invertible map between raw and normalized concepts.

    A new normalizer is the identity: center 0, scale 1. It computes in float32 whatever the
    model's precision: raw SONAR channels differ by less than half precision resolves.
    """

    center: Tensor
    scale: Tensor
    clip_min: Tensor
    clip_max: Tensor

    def __init__(self, config: NormalizerConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        if config.method == "none":
            return
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        if config.clip is not None:
            self.register_buffer("clip_min", torch.full((dim,), -torch.inf))
            self.register_buffer("clip_max", torch.full((dim,), torch.inf))

    def normalize(self, x: Tensor) -> Tensor:
        """Map raw concepts (..., D) to normalized float32 ones."""
        x = x.float()
        if self.config.method == "none":
            return x
        x = (fourier(x) if self.config.fft else x) - self.center
        return self._cut(x / self.scale)

    def denormalize(self, x: Tensor) -> Tensor:
        """Map normalized concepts (..., D) back to raw float32 ones."""
        x = x.float()
        if self.config.method == "none":
            return x
        x = self._cut(x) * self.scale + self.center
        return inverse_fourier(x) if self.config.fft else x

    def _cut(self, x: Tensor) -> Tensor:
        return x if self.config.clip is None else x.clamp(self.clip_min, self.clip_max)


def fit(
    batches: Iterable[Tensor], config: NormalizerConfig, *, sample: int = 1 << 16, seed: int = 0
) -> Normalizer:
    """Fit a normalizer in one pass over `batches` of raw concepts, (N, D) each.

    Mean and deviation are exact. Quantiles come from a uniform sample of `sample` concepts, or
    from all concepts if there are no more than that.

    Raises UsageError if there are no concepts or `config` has no normalizer, IntegrityError for
    NaN or infinite values and for batches of different widths.
    """
    if config.method == "none":
        raise UsageError(
            "nothing to fit: the normalizer's method is 'none'",
            "choose another one, such as 'gaussian_robust'",
        )
    moments, reservoir = _Moments(), _Reservoir(sample, seed)
    for batch_ND in batches:
        _check(batch_ND, moments)
        x_ND = batch_ND.cpu().float()
        x_ND = fourier(x_ND) if config.fft else x_ND
        moments.add(x_ND.double())
        reservoir.add(x_ND)
    if moments.count == 0:
        raise UsageError("no concepts to fit a normalizer on", "check the input files")
    normalizer = Normalizer(config, len(moments.mean))
    _set_statistics(normalizer, moments, reservoir.rows())
    return normalizer


def _check(batch_ND: Tensor, moments: "_Moments") -> None:
    if not bool(torch.isfinite(batch_ND).all()):
        first, last = moments.count, moments.count + len(batch_ND) - 1
        raise IntegrityError(f"NaN or infinite values among concepts {first} to {last}")
    if moments.count and batch_ND.shape[-1] != len(moments.mean):
        raise IntegrityError(
            f"concept {moments.count} has width {batch_ND.shape[-1]}, "
            f"those before it {len(moments.mean)}"
        )


def _set_statistics(normalizer: Normalizer, moments: "_Moments", sample_ND: Tensor) -> None:
    """Set the center, scale and clipping bounds of a new normalizer."""
    config = normalizer.config
    if config.method == "standard":
        center, scale = moments.mean, moments.deviation()
        scale = torch.where(moments.constant(), 1.0, scale)
    else:
        low, high = QUANTILES[config.spread]
        center, scale = quantile(sample_ND, 0.5), quantile(sample_ND, high)
        scale = scale - quantile(sample_ND, low)
        # A constant channel keeps its unit: dividing by its spread would divide by zero.
        scale = torch.where(scale < 10 * torch.finfo(scale.dtype).eps, 1.0, scale)
        if config.method == "gaussian_robust":
            scale = scale / (NormalDist().inv_cdf(high) - NormalDist().inv_cdf(low))
    normalizer.center.copy_(center)
    normalizer.scale.copy_(scale)
    # The bounds are quantiles of normalized values, as the official code computes them; its
    # documentation describes quantiles of raw ones.
    if config.clip is not None:
        x_ND = (sample_ND - normalizer.center) / normalizer.scale
        normalizer.clip_min.copy_(quantile(x_ND, config.clip))
        normalizer.clip_max.copy_(quantile(x_ND, 1 - config.clip))


def quantile(x_ND: Tensor, q: float) -> Tensor:
    """Return the q-quantile of each channel, (D,) float64, interpolated linearly."""
    # Equal to torch.quantile, even in the float32 rounding of the place, but without its limit of
    # 16 million elements.
    place = float(torch.tensor(q, dtype=torch.float32) * (len(x_ND) - 1))
    below = int(place)
    # kthvalue counts from 1.
    low = x_ND.kthvalue(below + 1, dim=0).values.double()
    high = x_ND.kthvalue(min(below + 2, len(x_ND)), dim=0).values.double()
    return low + (high - low) * (place - below)


def fourier(x: Tensor) -> Tensor:
    """Return the real Fourier transform of (..., D) as D numbers: real parts, then imaginary.

    D must be even; the first and last imaginary parts are then always zero and are omitted.
    """
    spectrum = torch.fft.rfft(x)
    return torch.cat([spectrum.real, spectrum.imag[..., 1:-1]], dim=-1)


def inverse_fourier(x: Tensor) -> Tensor:
    """Undo `fourier`."""
    half = x.shape[-1] // 2
    zero = torch.zeros_like(x[..., :1])
    imaginary = torch.cat([zero, x[..., half + 1 :], zero], dim=-1)
    return torch.fft.irfft(torch.complex(x[..., : half + 1], imaginary))


class _Moments:
    """Running mean and variance, merged batch by batch in float64 (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.squares = torch.zeros(0, dtype=torch.float64)

    def add(self, x_ND: Tensor) -> None:
        count, mean = len(x_ND), x_ND.mean(dim=0)
        if count == 0:
            return
        if self.count == 0:
            self.mean, self.squares = torch.zeros_like(mean), torch.zeros_like(mean)
        total, gap = self.count + count, mean - self.mean
        self.squares = self.squares + ((x_ND - mean) ** 2).sum(dim=0)
        self.squares = self.squares + gap**2 * (self.count * count / total)
        self.mean = self.mean + gap * (count / total)
        self.count = total

    def deviation(self) -> Tensor:
        return (self.squares / self.count).sqrt()

    def constant(self) -> Tensor:
        """Return which channels are constant, up to the rounding of their mean, (D,)."""
        epsilon = torch.finfo(torch.float64).eps
        return self.deviation() <= 10 * epsilon * self.mean.abs()


class _Reservoir:
    """A uniform sample of a stream: the concepts with the smallest random keys."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)
        self.kept: list[Tensor] = []
        self.keys: list[Tensor] = []
        self.count = 0

    def add(self, x_ND: Tensor) -> None:
        self.kept.append(x_ND)
        self.keys.append(torch.rand(len(x_ND), generator=self.generator))
        self.count += len(x_ND)
        if self.count > 2 * self.size:  # not at every batch: shrinking costs `size` each time
            self._shrink()

    def rows(self) -> Tensor:
        """Return the sample, (N, D)."""
        if self.count > self.size:
            self._shrink()
        return torch.cat(self.kept)

    def _shrink(self) -> None:
        keys, kept = torch.cat(self.keys), torch.cat(self.kept)
        best = keys.topk(self.size, largest=False).indices
        self.keys, self.kept, self.count = [keys[best]], [kept[best]], self.size
