"""FLOPs of a training step, and the peak FLOP/s of GPUs."""

from typing import Any

import torch
from torch import nn

from lcm_cli.models.config import AnyConfig, TransformerConfig

# Dense bfloat16 or float16 FLOP/s from the makers' data sheets; none for float32, where they
# depend on whether TF32 is allowed.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak FLOP/s of a GPU; None if unknown (CPUs, float32)."""
    if device.type != "cuda" or precision == "float32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def flops_per_concept(config: AnyConfig, weights: int, length: float) -> float:
    """Return the FLOPs of a training step per concept, for documents of `length` concepts.

    Each of the `weights` of the model's matrices takes six FLOPs (two forward, four backward), each
    channel and visible concept in attention twelve (Chowdhery et al. 2022, appendix B). One-Tower
    and Quant-LCM process every concept twice, clean and noised. Self-conditioning takes one more
    forward pass for half of the rows, a sixth of a step.
    """
    # Causal attention sees half of the document on average: length / 2.
    times = 2 if config.architecture in ("one_tower", "quant") else 1
    attention = 12 * config.model_dim * _attentions(config) * times * length / 2
    passes = 7 / 6 if getattr(config, "self_conditioning", False) else 1
    return passes * (times * 6 * weights + attention)


def matrix_weights(model: nn.Module) -> int:
    """Return the number of weights in a model's matrices."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def _attentions(config: Any) -> int:
    stacks = [part for part in vars(config).values() if isinstance(part, TransformerConfig)]
    return sum(stack.layers for stack in stacks)
