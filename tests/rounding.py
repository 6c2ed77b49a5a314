"""Tolerances: the maximum difference between correct computations of the same numbers.

The order in which a sum is computed depends on the processor, its instruction set, the number of
threads and the shape of the batch, and each order rounds differently.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lcm_cli.space.kernels import PackedLinear

Numbers = Tensor | NDArray[np.floating]

EPS = 2.0**-23  # of float32: the distance from 1 to the next larger number


def rounding(terms: float) -> float:
    """Return the tolerance for two float32 sums of `terms` numbers, relative to their size.

    An addition rounds by at most EPS / 2 of its result, up or down. The errors of n additions add
    up to n EPS / 2 in the worst case but, since about as many go up as down, typically to
    sqrt(n) EPS / 2 (Higham and Mary 2019, "A new approach to probabilistic rounding error
    analysis"). The tolerance is four times that, since both sides round, and so do the operations
    between two sums: 4e-6 for 256 terms, 1e-5 for all layers of a small model. Errors other than
    rounding are far larger.
    """
    return 2 * math.sqrt(terms) * EPS


def additions(model: nn.Module) -> int:
    """Return the number of additions behind an output of the model, through all linear maps."""
    maps = (part for part in model.modules() if isinstance(part, nn.Linear | PackedLinear))
    return sum(part.weight.shape[1] for part in maps)


def assert_near(
    ours: Numbers,
    theirs: Numbers,
    terms: float = 1,
    size: Tensor | float | None = None,
    name: str = "result",
) -> None:
    """Fail unless the tensors differ by at most `rounding(terms)` times `size`.

    `size` is one number, or one per element. The default is the largest number in `theirs`: a small
    element among large ones is typically a difference of large numbers and has their rounding
    error. Pass `size` where all results are much smaller than the numbers they are computed from.
    Values not subject to rounding (integers, booleans, infinities) must be equal.
    """
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} for {tuple(theirs.shape)}"
    if not theirs.is_floating_point():
        assert torch.equal(ours.to(theirs.dtype), theirs), name
        return
    if size is None:
        size = theirs[theirs.isfinite()].abs().amax() if theirs.isfinite().any() else 0.0
    unit = torch.as_tensor(size).double().clamp(min=torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(
        ours.detach().double() / unit,
        theirs.detach().double() / unit,
        atol=rounding(terms),
        rtol=0,
        equal_nan=True,
        msg=lambda text: f"{name}, relative to its size: {text}",
    )
