import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcm_cli import __version__, doctor

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the two imports that take seconds to the slow test."""
    found = {"devices": [{"device": "cpu", "threads": 2}]}
    monkeypatch.setattr(doctor, "_in_process", {"devices": found, "try_sonar": {}}.get)


def test_report_as_json(lcm: Run, tmp_path: Path) -> None:
    done = lcm("doctor", "--json", "--offline", LCM_CACHE=str(tmp_path / "cache"))
    report = json.loads(done.stdout)
    assert list(report) == [
        *("lcm", "python", "platform", "packages", "memory", "devices", "caches", "offline"),
        *("config", "checkpoints", "sonar_space", "problems"),
    ]
    assert report["lcm"] == __version__
    assert report["packages"]["torch"]
    assert report["devices"][0]["device"] == "cpu"
    assert report["caches"][0]["path"] == str(tmp_path / "cache")
    assert report["offline"] is True
    assert {"name": "sonar", "kind": "space", "licence": "CC-BY-NC-4.0", "present": False} in (
        report["checkpoints"]
    )
    assert (done.code == 0) == (not report["problems"])


def test_report_for_people(lcm: Run) -> None:
    lines = lcm("doctor").stdout.splitlines()
    found = [tuple(line.split(maxsplit=1)) for line in lines]
    assert ("lcm", __version__) in found
    assert ("device", "cpu, 2 threads") in found
    assert ("space", "sonar (CC-BY-NC-4.0): not here; to download it: lcm pull sonar") in found


def test_a_broken_torch_is_a_problem_but_sonar_space_is_not(
    lcm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sonar: dict[str, Any] = {"devices": {"devices": []}, "try_sonar": {"error": "no wheel"}}
    monkeypatch.setattr(doctor, "_in_process", sonar.get)
    assert json.loads(lcm("doctor", "--json").stdout)["sonar_space"] == {
        "works": False,
        "error": "no wheel",
    }
    assert "not usable, but optional: no wheel" in lcm("doctor").stdout
    assert "no wheel" not in lcm("doctor").stderr

    torch = {"devices": {"error": "it crashed"}, "try_sonar": {}}
    monkeypatch.setattr(doctor, "_in_process", torch.get)
    done = lcm("doctor")
    assert done.code == 1
    assert "torch cannot be imported: it crashed" in done.stderr
