"""Models laid out for generation: equal results for all layer types, and models left unchanged."""

import copy

import pytest
import torch
from rounding import additions, assert_near
from torch import Tensor, nn

from lcm_cli.errors import UsageError
from lcm_cli.int8 import Int8Linear
from lcm_cli.models.checkpoint import build, load_model
from lcm_cli.models.config import TransformerConfig, preset
from lcm_cli.models.diffusion import DiffusionOptions
from lcm_cli.models.folded import FoldedLayer
from lcm_cli.models.generate import GenerateOptions, generate_concepts
from lcm_cli.models.interface import Batch, ConceptModel, Noise
from lcm_cli.models.layers import complex_rope, rope
from lcm_cli.models.packed import (
    TRIAL_LAYERS,
    HalfLinear,
    Kernels,
    PackedAttention,
    PackedFeedForward,
    PackedModulator,
    PlainLinear,
    RootMeanSquareNorm,
    SelfOnlyAttention,
    fastest,
    half,
    lay_out,
    merge,
    packed,
    relative_times,
)

DIM = 16
STACKS = [
    {},
    {"kv_heads": 1, "head_dim": 6},
    {"qk_norm": True},
    {"gated": False},
    {"norm_order": "post"},
    {"norm_order": "normformer"},
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
        elif "norm" in name and "weight" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    assert isinstance(model, ConceptModel)
    return model.eval()


def _changed(config: object, parts: tuple[str, ...], stack: dict[str, object]) -> dict[str, object]:
    changed = {}
    for part in parts:
        given = dict(vars(getattr(config, part))) | stack
        if part == "denoiser":
            given |= {"positions": "none", "norm_order": "pre"}
        changed[part] = TransformerConfig(**given)
    return changed


# Random weights amplify rounding errors from step to step.
FEW_STEPS = DiffusionOptions(steps=3)


def _assert_generate_the_same(plain: ConceptModel, other: ConceptModel) -> None:
    sampler, passes = (None, 1) if plain.config.architecture == "base" else (FEW_STEPS, 3)
    options = GenerateOptions(max_concepts=4, repeat_similarity=None, sampler=sampler)
    prompts = [torch.randn(4, DIM), torch.randn(2, DIM), torch.randn(7, DIM)]
    wanted, found = (generate_concepts(each, prompts, options) for each in (plain, other))
    for a, b in zip(wanted, found, strict=True):
        assert_near(a.concepts_SD, b.concepts_SD, 4 * passes * additions(plain))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("architecture", ["base", "two_tower", "one_tower"])
def test_same_numbers(architecture: str, stack: dict[str, object]) -> None:
    model = _model(architecture, **stack)
    _assert_generate_the_same(model, lay_out(copy.deepcopy(model), "float32"))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("architecture", ["base", "two_tower", "one_tower"])
def test_same_numbers_in_the_layout_for_gpus(architecture: str, stack: dict[str, object]) -> None:
    model = _model(architecture, **stack)
    merged = copy.deepcopy(model)
    merge(merged)
    layers = [part for part in merged.modules() if isinstance(part, FoldedLayer)]
    assert len(layers) == 2 * (architecture == "two_tower")
    _assert_generate_the_same(model, merged)
    if architecture != "base":
        batch = Batch(torch.randn(3, 6, DIM), torch.tensor([6, 4, 5]))
        made = [each.predict(batch, FEW_STEPS, Noise([0, 1, 2])) for each in (model, merged)]
        assert_near(made[0], made[1], FEW_STEPS.steps * additions(model))


@pytest.mark.parametrize("norm", ["standard", "unit", "fp32"])
def test_other_norms_are_not_folded(norm: str) -> None:
    model = _model("two_tower", norm=norm)
    merge(model)
    assert not any(isinstance(part, FoldedLayer) for part in model.modules())


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("precision", "loss"), [("auto", 1e-6), ("int8", 3e-2), ("bfloat16", 1e-3)]
)
@pytest.mark.parametrize("architecture", ["base", "two_tower", "one_tower"])
def test_loss_of_other_precisions(
    architecture: str, precision: str, loss: float, stored: torch.dtype
) -> None:
    model = _model(architecture)
    model.load_state_dict({k: v.to(stored).to(v.dtype) for k, v in model.state_dict().items()})
    given = copy.deepcopy(model).to(torch.bfloat16 if precision == "bfloat16" else stored)
    fast = lay_out(given, precision)
    assert fast.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
    x_SD = torch.randn(6, DIM)
    made = [_next(each, [x_SD, x_SD[:3]]) for each in (model, fast)]
    assert float(1 - torch.cosine_similarity(*made, dim=1).min()) < loss


def _next(model: ConceptModel, prompts: list[Tensor]) -> Tensor:
    """Return what follows each prompt after a step or two of sampling, (B, D)."""
    sampler = DiffusionOptions(steps=2, guidance=1.0) if hasattr(model, "schedule") else None
    state = model.begin(Batch.of(prompts), 8, sampler or model.Options())
    return model.next(state, Noise([0, 1]))


def test_int8_weights_are_kept_exactly() -> None:
    weight = torch.randint(-127, 128, (6, 8)).float()
    weight[:, 0] = 127
    weight *= torch.rand(6, 1).half().float() + 0.01
    layer = nn.Linear(8, 6)
    layer.weight = nn.Parameter(weight)
    stored = Kernels.of("int8").store(layer, sensitive=False)
    same = Int8Linear(weight, layer.bias.detach(), weight[:, 0] / 127)
    x = torch.randn(4, 8)
    torch.testing.assert_close(stored(x), same(x), atol=1e-6, rtol=1e-6)


def test_float16_is_not_used_where_it_rounds_too_coarsely() -> None:
    weight = torch.randn(6, 8)
    assert isinstance(half(weight, None), HalfLinear)
    assert not isinstance(half(1e-7 * weight, None), HalfLinear)
    assert not isinstance(half(1e7 * weight, None), HalfLinear)
    assert not isinstance(half(0 * weight, None), HalfLinear)


def _kinds(model: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in model.modules()}


def test_products_are_merged_where_possible() -> None:
    merged = _kinds(lay_out(_model("two_tower")))
    assert {SelfOnlyAttention, PackedAttention, PackedFeedForward, PackedModulator} <= merged
    assert {SelfOnlyAttention, PackedFeedForward} <= _kinds(
        lay_out(_model("two_tower").bfloat16(), "bfloat16")
    )
    normed = _kinds(lay_out(_model("base", qk_norm=True)))
    assert PackedFeedForward in normed and PackedAttention not in normed
    assert nn.Dropout not in merged | normed


def test_norms_give_their_weights_to_the_maps_that_read_them() -> None:
    block = lay_out(_model("base")).lcm.layers[0]
    assert isinstance(block.self_attn_layer_norm, RootMeanSquareNorm)
    assert isinstance(block.ffn_layer_norm, RootMeanSquareNorm)
    # After the map, or read by several maps.
    block = lay_out(_model("base", norm_order="post", qk_norm=True)).lcm.layers[0]
    assert RootMeanSquareNorm not in _kinds(block)
    # GPUs have a kernel for whole norms.
    model = _model("base")
    merge(model)
    assert RootMeanSquareNorm not in _kinds(model)


def test_only_models_for_cpus_rotate_by_complex_numbers() -> None:
    """torch.compile has no kernels for them."""
    model = _model("base")
    merge(model)
    assert model.lcm.rope is rope
    assert lay_out(_model("base")).lcm.rope is complex_rope


@pytest.mark.parametrize(
    ("ratios", "chosen"),
    [
        ({}, PlainLinear),
        ({packed: 1.1}, PlainLinear),
        ({packed: 0.8}, packed),
        ({packed: 0.8, half: 0.79}, packed),
        ({packed: 0.8, half: 0.6}, half),
        ({packed: 1.2, half: 0.95}, PlainLinear),
        ({half: 0.5}, half),
    ],
)
def test_the_fastest_kernel(
    ratios: dict[object, float], chosen: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 must be clearly faster than the better float32 layout."""
    monkeypatch.setattr("lcm_cli.models.packed.relative_times", lambda: {PlainLinear: 1.0} | ratios)
    assert fastest() is chosen


def test_kernels_are_compared_with_weights_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that a kernel's layers shared would stay in the processor's cache."""
    places = []

    class Recording(PlainLinear):
        def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
            super().__init__(weight, bias)
            places.append(self.weight.data_ptr())

    monkeypatch.setattr("lcm_cli.models.packed.PlainLinear", Recording)
    ratios = relative_times.__wrapped__()
    assert len(set(places)) == TRIAL_LAYERS
    assert ratios[Recording] == pytest.approx(1.0)


def test_unknown_precisions() -> None:
    with pytest.raises(UsageError, match="unknown precision 'int4'"):
        load_model("tiny-base", precision="int4")
    with pytest.raises(UsageError, match="int8 runs only on the CPU, not on meta"):
        load_model("tiny-base", device="meta", precision="int8")


def test_a_model_knows_its_precision() -> None:
    assert load_model("tiny-base", precision="int8").precision == "int8"
    assert load_model("tiny-base", precision="bfloat16", packed=True).precision == "bfloat16"
    assert load_model("tiny-base", packed=True).precision == "float32"
