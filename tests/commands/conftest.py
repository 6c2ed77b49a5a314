"""Shared by the tests of the commands on documents."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def road(lcm: Callable[..., Any], random_space: Path) -> Callable[..., Any]:
    """Run `lcm` in this process with the space whose weights know nothing."""
    return functools.partial(lcm, LCM_SPACE=str(random_space))


@pytest.fixture
def story() -> Path:
    return ROOT / "examples" / "lost_dog.txt"


@pytest.fixture
def german() -> Path:
    return ROOT / "examples" / "das_alte_buch.txt"
