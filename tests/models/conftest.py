"""The official implementation's tensors (tests/golden), and a check that all were compared."""

import json
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rounding import assert_near
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent.parent / "golden"


@dataclass
class Golden:
    """A fixture file: its tensors, its JSON, and a record of the tensors that the tests used."""

    name: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    inputs: set[str] = field(default_factory=set)
    compared: set[str] = field(default_factory=set)

    def __getitem__(self, key: str) -> Tensor:
        """Return a tensor for use as an input of our code."""
        self.inputs.add(key)
        return self.tensors[key].clone()

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return all inputs whose names start with `prefix`, by the rest of their names."""
        keys = [key for key in self.tensors if key.startswith(prefix)]
        return {key.removeprefix(prefix): self[key] for key in keys}

    def listed(self, prefix: str) -> list[Tensor]:
        """Return the inputs prefix0, prefix1, ... in order."""
        found = self.under(prefix)
        return [found[key] for key in sorted(found, key=int)]

    def check(
        self,
        key: str,
        ours: Tensor,
        where: Tensor | None = None,
        terms: float = 1,
        size: Tensor | float | None = None,
    ) -> None:
        """Compare our tensor with the official one, only where `where` is true (not on padding).

        `terms` and `size` set the tolerance, as in `assert_near`.
        """
        theirs = self.tensors[key]
        comparable = where is None or bool(where.any())  # some official tensors are all NaN
        (self.compared if comparable else self.inputs).add(key)
        assert ours.shape == theirs.shape, f"{key}: {tuple(ours.shape)} for {tuple(theirs.shape)}"
        if where is not None:
            ours, theirs = ours[where], theirs[where]
        assert_near(ours, theirs, terms, size, f"{self.name}/{key}")


_loaded: dict[str, Golden] = {}
_failed: set[str] = set()  # ids of tests


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Record the failed tests."""
    report = yield
    if report.failed:
        _failed.add(item.nodeid)
    return report


def _load(name: str) -> Golden:
    if name not in _loaded:
        facts = json.loads((FOLDER / f"{name}.json").read_text())
        file = FOLDER / f"{name}.safetensors"
        _loaded[name] = Golden(name, load_file(file) if file.is_file() else {}, facts)
    return _loaded[name]


@pytest.fixture
def golden() -> Callable[[str], Golden]:
    """Return a function that loads a fixture file by name, once per session."""
    return _load


@pytest.fixture
def assert_complete(request: pytest.FixtureRequest) -> Callable[[Sequence[str], int], None]:
    """Return a check, for the last test of a module, that no tensor of its files was forgotten.

    It skips unless all tests of the module have run in this process and passed: a failed test may
    not have reached all of its tensors.
    """
    module = request.node.getparent(pytest.Module)
    ran = {item.nodeid for item in request.session.items} - _failed
    if "PYTEST_XDIST_WORKER" in os.environ or any(t.nodeid not in ran for t in module.collect()):
        pytest.skip("only a part of the module was run, or one of its tests failed")

    def check(names: Sequence[str], count: int) -> None:
        files = [_load(name) for name in names]
        forgotten = {
            f"{file.name}/{key}"
            for file in files
            for key in file.tensors
            if key not in file.compared | file.inputs
        }
        assert not forgotten
        assert sum(len(file.compared) for file in files) == count

    return check
