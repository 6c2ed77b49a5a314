"""What the tests of Triton kernels share: where they run, and the interpreter in their place."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lcm_cli.space.row_attention import AVAILABLE

TESTS = Path(__file__).parent

on_gpu = pytest.mark.skipif(not AVAILABLE, reason="needs Triton and a C compiler")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def run_interpreted(name: str) -> None:
    """Run a script of tests/space that compares interpreted kernels; fail if it does."""
    found = subprocess.run(
        [sys.executable, str(TESTS / "space" / name)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
