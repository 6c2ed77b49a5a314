"""Shared by the tests of training: data in memory, models that train in seconds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lcm_cli.models.interface import Batch
from lcm_cli.training.model import ModelTrainer
from lcm_cli.training.prepare import make_trainer
from lcm_cli.training.recipe import ModelRecipe, load_recipe

RECIPE = """
kind = "model"
name = "micro"
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
    """Documents that walk in a circle: what comes next can be learned."""

    dim: int = 256
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
def model_recipe(tmp_path: Path) -> Callable[..., ModelRecipe]:
    """Return a recipe, changed by key=value."""

    def make(*changes: str, architecture: str = "base") -> ModelRecipe:
        path = tmp_path / "micro.toml"
        path.write_text(RECIPE.format(architecture=architecture))
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
