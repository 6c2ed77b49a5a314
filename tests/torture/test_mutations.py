"""Broken inputs: each is read as usual or refused with an error of ours, in time and memory."""

import os
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from torture.guard import Outcome, guarded
from torture.readers import Reader, readers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


@pytest.fixture(scope="module")
def every(random_space: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Reader]:
    from lcm_cli.models.checkpoint import build, save
    from lcm_cli.models.config import preset

    folder = tmp_path_factory.mktemp("torture") / "model"
    save(
        build(preset("base", "nano", concept_dim=32, max_length=64, input_weight_norm=True)), folder
    )
    found = readers(random_space, folder)
    for reader in found:  # each is valid as it is
        place = tmp_path_factory.mktemp("valid")
        for name, data in reader.files.items():
            (place / name).write_bytes(data)
        for call in reader.calls:
            if call.__name__ != "_text" or reader.name.startswith("a."):
                call(place / reader.path)
    return found


def campaign(every: list[Reader], count: int, folder: Path) -> dict[str, list[Outcome]]:
    """Return the outcomes of `count` inputs by the name of the reader, spread over all readers."""

    def attempt(number: int) -> tuple[str, str, int]:
        reader = every[number % len(every)]
        return reader.attempt(Random(f"{reader.name} {number}"), folder / "input")

    found: dict[str, list[Outcome]] = {reader.name: [] for reader in every}
    for outcome in guarded(range(count), attempt):
        found[every[outcome.number % len(every)].name].append(outcome)
    return found


def check(found: dict[str, list[Outcome]]) -> None:
    for name, outcomes in found.items():
        counts = Counter("fault" if each.is_fault else each.result for each in outcomes)
        print(f"{name:14} {len(outcomes):5} {dict(sorted(counts.items()))}")
    faults = [
        f"{name} {each.number}: {each.result}"
        for name, outcomes in found.items()
        for each in outcomes
        if each.is_fault
    ]
    assert not faults, "\n".join(faults)


def test_two_hundred_broken_inputs(every, tmp_path, surroundings, monkeypatch):
    for name in set(os.environ) - set(surroundings):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    check(campaign(every, 200, tmp_path))


@pytest.mark.slow
def test_ten_thousand_broken_inputs(every, tmp_path, surroundings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(campaign(every, 10_000, tmp_path))
