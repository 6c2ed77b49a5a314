"""Data-parallel training of one model by several processes, as started by torchrun.

"ddp" keeps the whole model in every process and averages gradients. "fsdp" shards weights,
gradients and optimizer states (torch's fully_shard): Transformer blocks are gathered one at a time,
everything else at the beginning of a step. A run of one process takes the same code path.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from heapq import heapreplace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lcm_cli.errors import IntegrityError
from lcm_cli.models.interface import Batch, ConceptModel, Loss
from lcm_cli.models.layers import Block
from lcm_cli.training.recipes.model import Training


@dataclass(frozen=True)
class Share:
    """The micro-batches of a batch that one process computes: rank, rank + size ... of `count`."""

    rank: int = 0
    size: int = 1
    count: int = 1

    @property
    def numbers(self) -> range:
        """The numbers of its micro-batches."""
        return range(self.rank, self.count, self.size)

    def rows(self, lengths: Sequence[int], counts: Sequence[int] = ()) -> list[list[int]]:
        """Return the rows in each of its micro-batches; `lengths` are those of the batch's rows.

        The first `counts[0]` rows are those of the first reader, and so on. Reader r and
        micro-batch m belong together if r = m modulo the greatest common divisor of their numbers.
        If the number of readers is a multiple of that of processes, these then share no reader.
        """
        counts = counts or [len(lengths)]
        groups = math.gcd(len(counts), self.count)
        rows_of: list[list[int]] = [[] for _ in range(groups)]
        first = 0
        for reader, count in enumerate(counts):
            rows_of[reader % groups] += range(first, first + count)
            first += count
        # Group g has the readers and the micro-batches whose numbers are g modulo `groups`.
        each = self.count // groups
        dealt = [
            [[rows[i] for i in part] for part in deal([lengths[i] for i in rows], each)]
            for rows in rows_of
        ]
        return [dealt[number % groups][number // groups] for number in self.numbers]


def deal(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Deal rows of these lengths into `count` micro-batches of about as many concepts each.

    Returns the numbers of the rows in each; every row is in one of them.
    """
    dealt: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]  # a heap: the lightest micro-batch first
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        load, lightest = loads[0]
        dealt[lightest].append(row)
        heapreplace(loads, (load + lengths[row], lightest))
    return [sorted(rows) for rows in dealt]


@dataclass(frozen=True)
class MicroBatches:
    """One process's micro-batches of a batch, and the lengths of all rows of the batch."""

    own: list[Batch]
    lengths_B: Tensor


@dataclass(frozen=True)
class World:
    """The processes of a run, and which one this is."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and output for all."""
        return self.rank == 0

    def share(self, count: int) -> Share:
        """Return this process's share of `count` micro-batches, rounded up to as many for each."""
        return Share(self.rank, self.size, -(-count // self.size) * self.size)

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Return each number summed over all processes."""
        if self.size == 1:
            return list(numbers)
        # float64 adds counts exactly.
        total = torch.tensor(list(numbers), dtype=torch.float64, device=_device())
        dist.all_reduce(total)
        return list(total.tolist())

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return self.sum([float(flag)])[0] > 0

    def agree(self, number: float) -> float:
        """Return the number that the first process has, in all processes."""
        if self.size == 1:
            return number
        agreed = torch.tensor(number, dtype=torch.float64, device=_device())
        dist.broadcast(agreed, 0)
        return float(agreed)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def join_processes() -> World:
    """Join the processes that torchrun started; without torchrun, return a world of one process."""
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def _device() -> torch.device:
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


class LossModule(nn.Module):
    """A model and its training objective as one module, as torch's wrappers need them."""

    def __init__(
        self, model: ConceptModel, objective: Callable[[ConceptModel, Batch], Loss]
    ) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Loss:
        """Return the loss of a batch."""
        return self.objective(self.model, batch)


def distribute(
    model: ConceptModel,
    objective: Callable[[ConceptModel, Batch], Loss],
    options: Training,
    world: World,
) -> nn.Module:
    """Return a module that computes the loss of a batch, distributed over the processes of `world`.

    All processes start with the weights and buffers of the first.
    """
    module = LossModule(model, objective)
    if world.size == 1:
        return module
    # Before wrapping: fully_shard takes each process's own values.
    for tensor in (*module.parameters(), *model.buffers()):
        dist.broadcast(tensor.data, 0)
    if options.parallel == "ddp":
        device_ids = [model.device.index] if model.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            module,
            device_ids=device_ids,
            broadcast_buffers=False,  # normalizer and codebooks do not change in training
            find_unused_parameters=getattr(objective, "partial", False),
        )
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if options.precision != "float32":
        lower = getattr(torch, options.precision)
        # Gather weights in the lower precision, sum gradients in float32; autocast converts inputs.
        policy = MixedPrecisionPolicy(lower, torch.float32, cast_forward_inputs=False)
    # Inner modules first: what is left over belongs to the outer one.
    for block in [part for part in model.modules() if isinstance(part, Block)]:
        fully_shard(block, mp_policy=policy)
    fully_shard(module, mp_policy=policy)
    return module


def gradient_sync(module: nn.Module, last: bool) -> Any:
    """Return a context that averages gradients over processes only in the `last` micro-batch."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def gathered(tensor: Tensor) -> Tensor:
    """Return a possibly sharded tensor as a whole. A collective: all processes must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradient_norm(gradients: list[Tensor]) -> float:
    """Return the norm of all gradients together. A collective if they are sharded."""
    if not gradients:
        return 0.0
    # The norm of the norms is that of all numbers together.
    norms: Sequence[Tensor] = torch._foreach_norm(gradients)
    return float(gathered(torch.linalg.vector_norm(torch.stack(list(norms)))))


def map_whole(function: Callable[[Tensor], Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Apply a function of stacked tensors (N, ...) to whole tensors of one shape.

    The processes divide sharded tensors among them and send each other the results, of which each
    keeps its part: all processes must call it. The function preserves shape and dtype.
    """
    if not hasattr(tensors[0], "full_tensor"):
        return list(function(torch.stack(tensors)))
    rank, size = dist.get_rank(), dist.get_world_size()
    results: list[Tensor] = []
    for first in range(0, len(tensors), size):  # a process holds one whole tensor at a time
        part = tensors[first : first + size]
        # Gathering is a collective, so each process gathers all of them and keeps its own.
        mine = [whole for n, whole in enumerate(map(gathered, part)) if n == rank]
        done = function(torch.stack(mine))[0].contiguous() if mine else None
        for owner, sharded in enumerate(part):
            result = torch.empty(sharded.shape, dtype=sharded.dtype, device=sharded.device)
            if owner == rank and done is not None:
                result = done
            dist.broadcast(result, owner)
            results.append(_shard_like(result, sharded))
    return results


def _shard_like(whole: Tensor, sharded: Any) -> Tensor:
    """Return this process's part of a tensor that all processes have, without communication."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = sharded.device_mesh
    same = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return same.redistribute(placements=sharded.placements)


def save_sharded(state: dict[str, Any], folder: Path) -> None:
    """Write a state that is sharded over the processes, with torch.distributed.checkpoint."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with _quietly():
        save(state, checkpoint_id=str(folder))


def load_sharded(state: dict[str, Any], folder: Path) -> None:
    """Fill the tensors of `state` from shards written by any number of processes.

    Raises IntegrityError if they are damaged, or if their pickles hold anything but data.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    from lcm_cli.training.shards import DataPlanner, DataReader

    reader = DataReader(str(folder))
    reader.read_metadata()  # torch would hide the cause of an error
    try:
        with _quietly():
            load(state, storage_reader=reader, planner=DataPlanner())
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise IntegrityError(f"{folder} cannot be read: {cause}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
        yield
