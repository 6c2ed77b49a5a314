"""Models laid out for generation: equal results for all layer types, and models left unchanged."""

import copy

import pytest
import torch
from rounding import additions, assert_near
from torch import nn

from lcm_cli.models.checkpoint import build
from lcm_cli.models.config import TransformerConfig, preset
from lcm_cli.models.diffusion import DiffusionOptions
from lcm_cli.models.generate import GenerateOptions, generate_concepts
from lcm_cli.models.interface import ConceptModel
from lcm_cli.models.packed import PackedAttention, PackedFeedForward, SelfOnlyAttention, lay_out

DIM = 16
STACKS = [
    {},
    {"kv_heads": 1, "head_dim": 6},
    {"qk_norm": True},
    {"gated": False},
    {"bias": False, "output_bias": False, "qkv_weight_norm": True, "positions": "sine"},
]


def _model(architecture: str, **stack: object) -> ConceptModel:
    torch.manual_seed(0)
    config = preset(architecture, "nano", concept_dim=DIM)
    parts = ("contextualizer", "denoiser") if architecture == "two_tower" else ("transformer",)
    model = build(preset(architecture, "nano", concept_dim=DIM, **_changed(config, parts, stack)))
    for name, parameter in model.named_parameters():
        if "modulator" in name or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    assert isinstance(model, ConceptModel)
    return model.eval()


def _changed(config: object, parts: tuple[str, ...], stack: dict[str, object]) -> dict[str, object]:
    changed = {}
    for part in parts:
        given = dict(vars(getattr(config, part))) | stack
        if part == "denoiser":
            given["positions"] = "none"
        changed[part] = TransformerConfig(**given)
    return changed


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("architecture", ["base", "two_tower", "one_tower"])
def test_same_numbers(architecture: str, stack: dict[str, object]) -> None:
    model = _model(architecture, **stack)
    packed = lay_out(copy.deepcopy(model))
    # Few steps: random weights amplify rounding errors from step to step.
    sampler, passes = (None, 1) if architecture == "base" else (DiffusionOptions(steps=3), 3)
    options = GenerateOptions(max_concepts=4, repeat_similarity=None, sampler=sampler)
    terms = 4 * passes * additions(model)
    prompts = [torch.randn(4, DIM), torch.randn(2, DIM), torch.randn(7, DIM)]
    pairs = zip(
        generate_concepts(model, prompts, options),
        generate_concepts(packed, prompts, options),
        strict=True,
    )
    for plain, fast in pairs:
        assert_near(plain.concepts_SD, fast.concepts_SD, terms)


def _kinds(model: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in model.modules()}


def test_products_are_merged_where_possible() -> None:
    assert {SelfOnlyAttention, PackedAttention, PackedFeedForward} <= _kinds(
        lay_out(_model("two_tower"))
    )
    normed = _kinds(lay_out(_model("base", qk_norm=True)))
    assert PackedFeedForward in normed and PackedAttention not in normed
    assert nn.Linear not in _kinds(lay_out(_model("base")))


def test_other_precisions_are_left_unchanged() -> None:
    model = _model("base").bfloat16()
    before = _kinds(model)
    assert _kinds(lay_out(model)) == before
