"""Fixtures of the training tests: data in memory, models that train in seconds."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.models.interface import Batch
from lcm_cli.space import load_space
from lcm_cli.training.parallel import MicroBatches, Share
from lcm_cli.training.prepare import make_trainer
from lcm_cli.training.recipe import ModelRecipe, load_recipe
from lcm_cli.training.trainers.concept_model import ModelTrainer

RECIPE = """
kind = "model"
name = "micro"
space = "{space}"
[data]
train = ["in memory"]
[model]
architecture = "{architecture}"
size = "nano"
[train]
steps = 24
learning_rate = 1e-3
warmup = 4
save_every = 5
eval_every = 12
"""


@dataclass
class Memory:
    """Data whose documents walk in a circle, so that the next concept can be learned."""

    dim: int = 32
    rows: int = 8
    length: int = 6
    batches_per_epoch: int = 20
    poisoned: set[int] = field(default_factory=set)  # batches that hold a NaN

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.stops_SD = torch.randn(7, self.dim, generator=generator) * 0.1

    def document(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        first = int(torch.randint(7, (), generator=generator))
        length = int(torch.randint(3, self.length + 1, (), generator=generator))
        noise = torch.randn(length, self.dim, generator=generator) * 0.005
        return self.stops_SD[(first + torch.arange(length)) % 7] + noise

    def batch(self, number: int) -> Batch:
        first = 1000 + number * self.rows
        batch = Batch.of([self.document(first + row) for row in range(self.rows)])
        if number in self.poisoned:
            batch.concepts_BSD[0, 0, 0] = torch.nan
        return batch

    def micro_batches(self, number: int, share: Share) -> MicroBatches:
        batch = self.batch(number)
        own = [batch.rows(rows) for rows in share.rows(batch.lengths_B.tolist())]
        return MicroBatches(own, batch.lengths_B)

    @property
    def summary(self) -> str:
        return "stories"

    def validation(self, limit: int) -> list[Batch]:
        return [Batch.of([self.document(number) for number in range(min(limit, 6))])]

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-identical runs need the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model_recipe(tmp_path: Path, random_space: Path) -> Callable[..., ModelRecipe]:
    """Return a recipe, changed by key=value."""

    def make(*changes: str, architecture: str = "base") -> ModelRecipe:
        path = tmp_path / "micro.toml"
        path.write_text(RECIPE.format(space=random_space, architecture=architecture))
        if architecture == "sonar_llm":  # data in memory have no sentences
            changes = ('model.loss="squared"', *changes)
        recipe = load_recipe(path, changes)
        assert isinstance(recipe, ModelRecipe)
        return recipe

    return make


@pytest.fixture
def start(model_recipe: Callable[..., ModelRecipe]) -> Callable[..., ModelTrainer]:
    """Prepare a run on data in memory."""

    def begin(folder: Path, *changes: str, architecture: str = "base", **data: object):
        folder.mkdir(parents=True, exist_ok=True)
        recipe = model_recipe(*changes, architecture=architecture)
        memory = data.pop("data", None) or Memory(**data)
        return make_trainer(recipe, folder, torch.device("cpu"), data=memory)

    return begin


# Imports torch, and what its optimizers import later, once; forks a process for each `lcm train`.
HELPER = """
import contextlib, json, os, resource, signal, sys, time
import torch, torch._dynamo, torch.distributed.checkpoint, torch.distributed.fsdp
from lcm_cli.app import main
from lcm_cli.space import load_space
from lcm_cli.training import fitting, loop, prepare
from lcm_cli.training.data import batches

torch.set_num_threads(1)
load_space("tiny", device="cpu").encode(["Imports all modules."], "eng_Latn")
with contextlib.suppress(ImportError):
    import torch.utils.tensorboard
for line in sys.stdin:
    call = json.loads(line)
    children = []
    for rank in range(call["processes"]):
        child = os.fork()
        if not child:
            if call["processes"] > 1:  # the variables that torchrun sets
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"WORLD_SIZE": str(call["processes"])}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(call["port"])}
            if call["limit"]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (call["limit"], call["limit"]))
            error = os.open(call["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(error, 1), os.dup2(error, 2)
            os._exit(main(call["arguments"]))
        children.append(child)
    if call["seconds"]:
        while call["await"] and not os.path.exists(call["await"]):
            time.sleep(0.05)
        time.sleep(call["seconds"])
        for child in children:
            os.kill(child, getattr(signal, call["signal"]))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(next((code for code in codes if code), 0), flush=True)
"""
FILE_RECIPE = """
kind = "model"
name = "micro"
space = "{space}"
[data]
train = ["{data}"]
validation = ["{data}"]
batch_concepts = 60
[model]
architecture = "{architecture}"
size = "nano"
[train]
steps = 60
warmup = 4
save_every = 7
eval_every = 25
eval_documents = 2
ema = 0.9
"""


@pytest.fixture(scope="session")
def run() -> Iterator[Callable[..., int]]:
    """Call `lcm` in a forked process; return its exit code."""
    helper = subprocess.Popen(
        [sys.executable, "-c", HELPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    def call(
        *arguments: Any,
        errors: Path,
        seconds: float = 0,
        limit: int = 0,
        how: str = "SIGKILL",
        after: Path | None = None,
        processes: int = 1,
    ) -> int:
        order = {
            "arguments": [str(argument) for argument in arguments],
            "errors": str(errors),
            "seconds": seconds,
            "limit": limit,
            "signal": how,
            "await": str(after or ""),
            "processes": processes,
            "port": free_port(),
        }
        errors.unlink(missing_ok=True)
        helper.stdin.write(json.dumps(order) + "\n")
        helper.stdin.flush()
        return int(helper.stdout.readline())

    yield call
    helper.communicate(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def write_recipe(tmp_path: Path, random_space: Path) -> Callable[[str], Path]:
    """Write data in a small space, and a recipe for them, to files."""
    return lambda architecture: _write_recipe(tmp_path, architecture, random_space)


def _write_recipe(folder: Path, architecture: str, space: Path) -> Path:
    loaded = load_space(str(space), device="cpu")
    info = SpaceInfo(loaded.name, loaded.fingerprint, loaded.dim)
    rng = np.random.default_rng(0)
    with open_writer(str(folder / "data.parquet"), info) as writer:
        for number in range(60):
            shape = (int(rng.integers(3, 9)), loaded.dim)
            vectors = rng.standard_normal(shape).astype(np.float16)
            words = [f"{number}.{i}" for i in range(len(vectors))]
            writer.write(Document(str(number), sentences=words, concepts=vectors))
    path = folder / "micro.toml"
    fields = {"space": space, "data": folder / "data.parquet", "architecture": architecture}
    path.write_text(FILE_RECIPE.format(**fields))
    return path
