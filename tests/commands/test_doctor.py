import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcm_cli import __version__

Run = Callable[..., Any]

# What the probes of lcm doctor need of torch: the real one takes seconds to import.
TORCH = """
get_num_threads = lambda: 2
class cpu:
    _is_avx2_supported = lambda: True
    _is_vnni_supported = lambda: False
class cuda: device_count = lambda: 0
class backends:
    class mps: is_available = lambda: False
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install packages for child processes: packages(torch="source of the package", ...)."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{tmp_path}")
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(**sources: str) -> None:
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source)

    # Where this process finds it, too: it reports the version.
    about = tmp_path / "sonar_space-0.5.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sonar-space\nVersion: 0.5.0\n")
    install(torch=TORCH, sonar="")
    return install


@pytest.fixture(autouse=True)
def quick(packages: Callable[..., None]) -> None:
    """Leave importing the real torch and sonar-space to the slow test."""


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
    assert ("device", "cpu, 2 threads, AVX2; --precision auto is float32") in found
    assert ("space", "sonar (CC-BY-NC-4.0): not here; to download it: lcm pull sonar") in found


def test_a_broken_torch_is_a_problem_but_sonar_space_is_not(
    lcm: Run, packages: Callable[..., None]
) -> None:
    packages(sonar="raise ImportError('no wheel')")
    found = json.loads(lcm("doctor", "--json").stdout)["sonar_space"]
    assert found["works"] is False
    assert "no wheel" in found["error"]
    done = lcm("doctor")
    assert "not usable, but optional" in done.stdout and "no wheel" in done.stdout
    assert "no wheel" not in done.stderr

    packages(torch="import os, signal; os.kill(os.getpid(), signal.SIGKILL)", sonar="")
    done = lcm("doctor")
    assert done.code == 1
    assert "torch cannot be imported: it crashed" in done.stderr
