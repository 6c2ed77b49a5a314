"""Configs: presets, validation, and reading files."""

import subprocess
import sys

import pytest
import torch

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.models.checkpoint import build
from lcm_cli.models.config import (
    ARCHITECTURES,
    SIZES,
    BaseConfig,
    NormalizerConfig,
    ScheduleConfig,
    TransformerConfig,
    TwoTowerConfig,
    from_dict,
    preset,
    to_dict,
)

MODELS = [name for name in ARCHITECTURES if name != "quantizer"]
MILLIONS = {"5M": 5, "39M": 39, "100M": 100, "300M": 300, "1.6B": 1600, "7B": 7000}


@pytest.mark.parametrize("size", MILLIONS)
@pytest.mark.parametrize("architecture", MODELS)
def test_a_size_means_its_parameters(architecture: str, size: str) -> None:
    with torch.device("meta"):
        model = build(preset(architecture, size))
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    # Position tables and heads, which are large compared with a 5M model.
    outside = 2 * 1024 * SIZES[size].model_dim / 1e6
    assert 0.88 * MILLIONS[size] < count < 1.12 * MILLIONS[size] + 5 * outside


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_written_and_read_again(architecture: str) -> None:
    config = ARCHITECTURES[architecture](concept_dim=32)
    assert from_dict(to_dict(config), "config.json") == config


def test_configs_do_not_import_torch() -> None:
    use = "import sys, lcm_cli.models.config as c; c.preset('quant', '5M')"
    code = f"{use}; print('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


def test_unknown_names_suggest_the_closest() -> None:
    with pytest.raises(UsageError, match="'two_towers'") as caught:
        preset("two_towers", "5M")
    assert "two_tower" in caught.value.hint
    with pytest.raises(UsageError, match="'300'") as caught:
        preset("base", "300")
    assert "300M" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"modeldim": 3}, "unknown key 'modeldim'", "model_dim"),
        ({"transformer": {"head": 4}}, "unknown key 'transformer.head'", "heads"),
        ({"model_dim": "64"}, "model_dim", ""),
        ({"model_dim": 0}, "model_dim must be positive, not 0", ""),
        ({"transformer": {"positions": "rotary"}}, "transformer.positions", ""),
        ({"architecture": "bass"}, "'bass'", "base"),
        ({"kind": "space"}, "not the config of a concept model", ""),
    ],
)
def test_an_invalid_file(change: dict[str, object], message: str, hint: str) -> None:
    data = {"kind": "model", "architecture": "base"} | change
    with pytest.raises(IntegrityError) as caught:
        from_dict(data, "x/config.json")
    assert caught.value.message.startswith("x/config.json: ")
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_invalid_configs_are_refused_on_construction() -> None:
    for make in (
        lambda: BaseConfig(model_dim=10, transformer=TransformerConfig(heads=3)),
        lambda: BaseConfig(model_dim=12, transformer=TransformerConfig(heads=4)),  # odd head width
        lambda: TransformerConfig(heads=4, kv_heads=3),
        lambda: TransformerConfig(dropout=1.0),
        lambda: TwoTowerConfig(denoiser=TransformerConfig(norm_order="post", positions="none")),
        lambda: NormalizerConfig(clip=0.5),
        lambda: BaseConfig(concept_dim=33, normalizer=NormalizerConfig(fft=True)),
        lambda: ScheduleConfig(beta_start=0.3, beta_end=0.2),
    ):
        with pytest.raises(IntegrityError):
            make()
