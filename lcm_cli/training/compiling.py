"""Compile layers with torch.compile, which needs a compiler of the machine's own."""

import os
import shutil
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lcm_cli.errors import UsageError
from lcm_cli.space import row_attention


def compile_layers(layers: Iterable[nn.Module], device: torch.device, **how: Any) -> None:
    """Let each layer be compiled when it is first called, in training on `device`.

    `how` are the options of torch.compile. Raises UsageError if there is no compiler.
    """
    needs = compiler_needed(device)
    if needs:
        raise UsageError(
            f"train.compile needs {needs}", "install it, or leave it off: --set train.compile=false"
        )
    for layer in layers:
        layer.compile(**how)


def compiler_needed(device: torch.device) -> str | None:
    """Return what torch.compile needs for `device` and is not installed, or None."""
    if device.type == "cuda":
        return row_attention.missing()  # torch.compile writes Triton kernels as well
    if os.name == "nt":  # torch looks for Visual Studio
        return None
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(compiler) else f"a C++ compiler: there is no {compiler}"
