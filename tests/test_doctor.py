import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lcm_cli import doctor
from lcm_cli.commands.doctor import _device
from lcm_cli.space import row_attention


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run this code as a probe in its own process and return its report."""

    def probe(code: str) -> Mapping[str, Any]:
        def run(args: list[str], **options: Any) -> Any:
            return real([sys.executable, "-c", code], **options)

        real = subprocess.run
        monkeypatch.setattr(doctor.subprocess, "run", run)
        return doctor._in_process("devices")

    return probe


def test_probe_succeeds(process: Any) -> None:
    assert process("print('noise'); print('{\"a\": 1}')") == {"a": 1}


def test_probe_fails_with_a_reason(process: Any) -> None:
    assert process("raise ImportError('no libfoo')") == {"error": "ImportError: no libfoo"}


def test_probe_crashes(process: Any) -> None:
    crash = process("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert crash == {"error": "it crashed with signal 9"}


def test_probe_hangs(process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT", 0.1)
    assert process("import time; time.sleep(60)") == {"error": "not finished after 0 s"}


def test_a_cache_that_does_not_exist_yet(tmp_path: Path) -> None:
    found = doctor._describe_cache("lcm", tmp_path / "not" / "yet")
    assert found["writable"]
    assert found["free"] > 0
    (tmp_path / "file").touch()
    assert not doctor._describe_cache("lcm", tmp_path / "file" / "below")["writable"]


def test_devices() -> None:
    cpu = doctor.devices()["devices"][0]
    assert cpu["device"] == "cpu" and cpu["precision"] == "float32"
    assert set(cpu["instructions"]) <= set(doctor.INSTRUCTIONS)
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert {"AVX2", "AVX512"} <= set(cpu["instructions"])


@pytest.mark.parametrize(
    ("major", "missing", "said"),
    [
        (9, None, "; Triton kernels can be built"),
        (9, "a C compiler, such as gcc", "they need a C compiler, such as gcc"),
        (7, None, "they need a GPU of the Ampere generation or newer"),
    ],
)
def test_a_gpu_and_what_its_kernels_need(
    major: int, missing: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = SimpleNamespace(total_memory=1 << 30, name="GPU", major=major)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: facts)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (1 << 29, 1 << 30))
    monkeypatch.setattr(row_attention, "missing", lambda: missing)
    gpu = doctor.devices()["devices"][1]
    line = _device(gpu)
    assert line.startswith("cuda:0, GPU, 1.0 GiB, 0.5 GiB free; ") and line.endswith(said)


@pytest.mark.slow
def test_examine_tries_torch_and_sonar_space_for_real() -> None:
    report = doctor.examine()
    assert report["devices"][0]["device"] == "cpu"
    assert report["sonar_space"]["works"] or report["sonar_space"]["error"]


def test_absent_models_are_not_a_problem(cache: Path) -> None:
    found, problems = doctor._list_checkpoints()
    assert problems == []
    present = {one["name"]: one["present"] for one in found}
    assert present["tiny"] and not present["sonar-llm-100m"]
