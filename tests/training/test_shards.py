"""Sharded states are read without running code that they contain."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lcm_cli.errors import IntegrityError
from lcm_cli.training.parallel import load_sharded, save_sharded


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def state() -> dict[str, Any]:
    return {"model": {"x": torch.zeros(3)}, "groups": {"lr": 0.0, "betas": (0.0, 0.0), "of": [""]}}


def test_shards_are_read_as_written(tmp_path: Path) -> None:
    saved = {"model": {"x": torch.rand(3)}, "groups": {"lr": 0.5, "betas": (0.1, 0.2), "of": ["x"]}}
    save_sharded(saved, tmp_path)
    found = state()
    load_sharded(found, tmp_path)
    assert torch.equal(found["model"].pop("x"), saved["model"].pop("x"))
    assert found == saved


def test_code_in_the_metadata_does_not_run(tmp_path: Path) -> None:
    save_sharded(state(), tmp_path / "state")
    (tmp_path / "state" / ".metadata").write_bytes(pickle.dumps(Malicious(tmp_path / "marker")))
    with pytest.raises(IntegrityError, match="not data"):
        load_sharded(state(), tmp_path / "state")
    assert not (tmp_path / "marker").exists()


def test_code_in_a_value_does_not_run(tmp_path: Path) -> None:
    changed = state()
    changed["groups"]["lr"] = Malicious(tmp_path / "marker")
    save_sharded(changed, tmp_path / "state")
    assert not (tmp_path / "marker").exists()
    with pytest.raises(IntegrityError, match=r"cannot be read.*[Ww]eights"):
        load_sharded(state(), tmp_path / "state")
    assert not (tmp_path / "marker").exists()


def test_damaged_metadata_are_an_error(tmp_path: Path) -> None:
    save_sharded(state(), tmp_path)
    (tmp_path / ".metadata").write_bytes(b"not a pickle")
    with pytest.raises(IntegrityError, match="cannot be read"):
        load_sharded(state(), tmp_path)
