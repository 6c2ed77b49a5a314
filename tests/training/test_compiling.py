"""Compiling layers: what it needs, and that it is refused without."""

import shutil

import pytest
import torch
from torch import nn

from lcm_cli.errors import UsageError
from lcm_cli.training.compiling import compile_layers


def test_without_a_compiler_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(UsageError, match=r"train.compile needs a C\+\+ compiler: .* /nowhere/g"):
        compile_layers([nn.Linear(2, 2)], torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_layer_gives_the_same_numbers() -> None:
    layer, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(3, 8)
    wanted = layer(x)
    compile_layers([layer], torch.device("cpu"), dynamic=False)
    torch.testing.assert_close(layer(x), wanted)
