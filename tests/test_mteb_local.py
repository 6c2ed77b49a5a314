"""examples/mteb_local.py: mteb evaluates a space on local files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_example_runs():
    pytest.importorskip("mteb")
    done = subprocess.run(
        [sys.executable, "examples/mteb_local.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    scores = dict(line.split() for line in done.stdout.splitlines())
    assert len(scores) == 6
    assert all(0.9 < float(accuracy) <= 1 for accuracy in scores.values())
