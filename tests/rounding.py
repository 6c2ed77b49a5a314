"""How far correct computations of the same numbers may lie apart: what comparisons allow.

In which order a sum is added up depends on the processor, its instruction set, the number of
threads and the shape of the batch, and each order rounds differently.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lcm_cli.space.kernels import PackedLinear

Numbers = Tensor | NDArray[np.floating]

EPS = 2.0**-23  # of float32: the step from 1 to the next number


def rounding(terms: float) -> float:
    """Return what two float32 sums of `terms` numbers may differ by, relative to their size.

    An addition rounds by EPS / 2 of its result at most, up or down. The errors of n additions come
    to n EPS / 2 in the worst case, but as about as many go up as down, to sqrt(n) EPS / 2 (Higham
    and Mary 2019, "A new approach to probabilistic rounding error analysis"). Four times as much
    is allowed, since both sides round, and so does what lies between two sums: 4e-6 for 256 terms,
    1e-5 for all layers of a small model. What is wrong rather than rounded shows far above that.
    """
    return 2 * math.sqrt(terms) * EPS


def additions(model: nn.Module) -> int:
    """Return how many numbers a forward pass adds up, through one linear map after another."""
    maps = (part for part in model.modules() if isinstance(part, nn.Linear | PackedLinear))
    return sum(part.weight.shape[1] for part in maps)


def assert_near(
    ours: Numbers,
    theirs: Numbers,
    terms: float = 1,
    size: Tensor | float | None = None,
    name: str = "result",
) -> None:
    """Fail unless the tensors differ by at most `rounding(terms)` of `size`.

    `size` is one number or one for each, by default the largest in `theirs`: a small number among
    large ones is what large ones left when they were subtracted, and rounded as they were. Give it
    where all the results are much smaller than what they were made of.
    Numbers that no rounding touches (integers, truth values, infinities) have to be equal.
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
