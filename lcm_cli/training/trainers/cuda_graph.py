"""A training step as one CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from lcm_cli.cuda_graph import Captured

WARM_UP = 3  # steps before capture, in which optimizers and libraries allocate their buffers


class CapturedStep(Captured):
    """Runs a step on the current GPU, as a CUDA graph from the fourth call on."""

    def __init__(self, step: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__(step, WARM_UP)

    def _capture(self, *inputs: Tensor) -> None:
        # The graph has memory of its own: what warm-up used would stay idle beside it.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        super()._capture(*inputs)

    def _give_up(self, error: RuntimeError) -> None:
        # A step that failed in the middle may have changed gradients: it cannot be repeated.
        raise error
