"""Fixtures of the training tests: data in memory, models that train in seconds."""

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import ForkServer
from torch import Tensor

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.models.interface import Batch
from lcm_cli.space import load_space
from lcm_cli.training.parallel import MicroBatches, Share
from lcm_cli.training.prepare import make_trainer
from lcm_cli.training.recipes.load import load_recipe
from lcm_cli.training.recipes.model import ModelRecipe
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


@pytest.fixture(scope="session")
def random_space(random_space: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A space with random weights that decodes short texts: it never ends one by itself."""
    folder = tmp_path_factory.mktemp("short") / "random"
    shutil.copytree(random_space, folder)
    config = json.loads((folder / "config.json").read_text())
    config["decoder"]["max_length"] = 24
    (folder / "config.json").write_text(json.dumps(config))
    return folder


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


# Without the end of the interpreter, which takes longer than some of these calls.
MAIN = "import os; from lcm_cli.app import main; os._exit(main())"


@pytest.fixture
def run(forks: ForkServer) -> Callable[..., int]:
    """Call `lcm` in a forked process, or in several; return the exit code."""

    def call(
        *arguments: Any,
        errors: Path,
        seconds: float = 0,
        limit: int = 0,
        how: str = "SIGKILL",
        after: Path | None = None,
        processes: int = 1,
        code: str = MAIN,
    ) -> int:
        port = free_port()
        with errors.open("wb") as file, ExitStack() as stack:
            started = []
            for rank in range(processes):
                env = os.environ | (torchrun(rank, processes, port) if processes > 1 else {})
                process = forks.start(
                    *arguments, code=code, env=env, limit=limit, stdout=file, stderr=file
                )
                stack.callback(process.close)
                started.append(process)
            if seconds:
                while after and not after.exists() and started[0].poll() is None:
                    time.sleep(0.01)
                time.sleep(seconds)
                for process in started:
                    process.send_signal(getattr(signal, how))
            codes = [process.wait() for process in started]
        return next((code for code in codes if code), 0)

    return call


def torchrun(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun sets."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    return ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


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
