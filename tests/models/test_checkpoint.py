"""Saving and loading every kind of model, and damaged files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import additions, assert_near
from safetensors.torch import load_file, save_file

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.hub.locate import locate_model
from lcm_cli.models.checkpoint import (
    FULL_PRECISION,
    build,
    check_model_space,
    load_from,
    load_model,
    load_quantizer,
    save,
)
from lcm_cli.models.config import (
    NormalizerConfig,
    QuantizerConfig,
    SpaceRef,
    TransformerConfig,
    preset,
)
from lcm_cli.models.diffusion import DiffusionOptions
from lcm_cli.models.generate import GenerateOptions, generate_concepts
from lcm_cli.models.interface import ConceptModel
from lcm_cli.models.normalizer import fit
from lcm_cli.transfer.convert import convert

KINDS = ["base", "two_tower", "one_tower", "quant", "sonar_llm"]
SPACE = SpaceRef("tiny", "abc")


def _saved(folder: Path, architecture: str = "base", **changes: object) -> ConceptModel:
    changes = {"concept_dim": 16, "space": SPACE} | changes
    torch.manual_seed(0)
    model = build(preset(architecture, "nano", **changes)).eval()
    assert isinstance(model, ConceptModel)
    if architecture != "sonar_llm":
        model.normalizer = fit([torch.randn(100, 16) * 0.01], model.config.normalizer)
    save(model, folder)
    return model


@pytest.mark.parametrize("architecture", KINDS)
def test_loaded_as_saved(tmp_path: Path, architecture: str) -> None:
    model = _saved(tmp_path / "m", architecture)
    again = load_model(tmp_path / "m")
    assert again.config == model.config
    assert not again.training
    saved = model.state_dict()
    assert all(torch.equal(saved[key], tensor) for key, tensor in again.state_dict().items())
    # Mapped weights have other addresses, which change the order in which libraries sum.
    few = DiffusionOptions(steps=3) if hasattr(model, "schedule") else None
    options = GenerateOptions(max_concepts=3, sampler=few)
    prompt = torch.randn(4, 16) * 0.01
    (before,), (after,) = (generate_concepts(m, [prompt], options) for m in (model, again))
    terms = 3 * (3 if few else 1) * additions(model)
    assert_near(after.concepts_SD, before.concepts_SD, terms=terms)


def test_unusual_parts_are_kept(tmp_path: Path) -> None:
    stack = TransformerConfig(qkv_weight_norm=True, residual_scale=0.5, norm="unit", kv_heads=2)
    normalizer = NormalizerConfig(clip=0.01, fft=True)
    model = _saved(tmp_path / "m", transformer=stack, normalizer=normalizer)
    assert load_model(tmp_path / "m").config == model.config
    for key, tensor in load_model(tmp_path / "m").state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key])


def test_half_precision_spares_the_normalizer(tmp_path: Path) -> None:
    _saved(tmp_path / "m")
    model = load_model(tmp_path / "m", precision="bfloat16")
    assert model.dtype == torch.bfloat16
    assert model.normalizer.scale.dtype == torch.float32
    (made,) = generate_concepts(model, [torch.randn(3, 16) * 0.01], GenerateOptions(max_concepts=2))
    assert made.concepts_SD.dtype == torch.float32
    assert bool(made.concepts_SD.isfinite().all())


@pytest.mark.parametrize("architecture", KINDS)
def test_packed_gives_the_same_numbers(tmp_path: Path, architecture: str) -> None:
    model = _saved(tmp_path / "m", architecture)
    packed = load_model(tmp_path / "m", precision="float32", packed=True)
    # Few steps: random weights amplify rounding errors from step to step.
    few = DiffusionOptions(steps=3) if hasattr(model, "schedule") else None
    options = GenerateOptions(max_concepts=3, repeat_similarity=None, sampler=few)
    terms = 3 * (3 if few else 1) * additions(model)
    prompts = [torch.randn(4, 16) * 0.01, torch.randn(2, 16) * 0.01]
    pairs = zip(
        generate_concepts(model, prompts, options),
        generate_concepts(packed, prompts, options),
        strict=True,
    )
    for plain, fast in pairs:
        assert_near(plain.concepts_SD, fast.concepts_SD, terms)


def test_float16_on_disk_is_float32_on_the_cpu(tmp_path: Path) -> None:
    _saved(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(file).items()}, file)
    assert {tensor.dtype for tensor in load_model(tmp_path / "m").state_dict().values()} == {
        torch.float32
    }


@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_int8_on_disk_equals_its_values_in_float32(
    tmp_path: Path, architecture: str, packed: bool
) -> None:
    """A model loaded from int8 generates the same as one with those values stored in float32."""
    _saved(tmp_path / "m", architecture)
    convert(str(tmp_path / "m"), tmp_path / "int8", "int8")
    convert(str(tmp_path / "int8"), tmp_path / "float32", "float32")
    raw = load_file(tmp_path / "int8" / "model.safetensors")
    full = tuple(name for name in raw if name.startswith(FULL_PRECISION))
    assert all(raw[name].dtype == torch.float32 for name in full)
    assert bool(full) == (architecture != "sonar_llm")
    kinds = {name: tensor.dtype for name, tensor in raw.items() if name not in full}
    matrices = {name for name, dtype in kinds.items() if dtype == torch.int8}
    assert matrices and all(raw[name].ndim == 2 for name in matrices)
    assert set(kinds.values()) == {torch.int8, torch.float16}
    stored, plain = (
        load_model(tmp_path / name, precision="float32", packed=packed)
        for name in ("int8", "float32")
    )
    few = DiffusionOptions(steps=3) if hasattr(stored, "schedule") else None
    options = GenerateOptions(max_concepts=3, repeat_similarity=None, sampler=few)
    prompt = torch.randn(4, 16) * 0.01
    (one,), (other,) = (generate_concepts(model, [prompt], options) for model in (stored, plain))
    assert len(one.concepts_SD) == 3
    # Not to the last digit: products depend on where in memory a matrix begins.
    torch.testing.assert_close(one.concepts_SD, other.concepts_SD, atol=1e-5, rtol=1e-4)
    if not packed:
        weights = stored.state_dict().items()
        assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in weights)


def test_int8_on_disk_in_other_precisions(tmp_path: Path) -> None:
    """Without a requested dtype, weights from int8 are float16, except on the CPU."""
    _saved(tmp_path / "m")
    convert(str(tmp_path / "m"), tmp_path / "int8", "int8")
    as_it_stands: Any = load_from(locate_model(str(tmp_path / "int8")))
    assert {p.dtype for p in as_it_stands.parameters()} == {torch.float16}
    assert load_model(tmp_path / "int8", precision="bfloat16").dtype == torch.bfloat16
    assert load_model(tmp_path / "int8").dtype == torch.float32
    assert as_it_stands.normalizer.scale.dtype == torch.float32


def test_unusual_parts_in_int8(tmp_path: Path) -> None:
    stack = TransformerConfig(qkv_weight_norm=True, residual_scale=0.5, norm="unit", kv_heads=2)
    model = _saved(tmp_path / "m", transformer=stack)
    convert(str(tmp_path / "m"), tmp_path / "int8", "int8")
    rounded = load_model(tmp_path / "int8").state_dict()
    for name, tensor in model.state_dict().items():
        moved = float((rounded[name] - tensor).abs().max())
        exact = name.startswith(FULL_PRECISION)
        assert moved == 0 if exact else moved <= float(tensor.abs().max()) / 250, name


def test_a_damaged_model_in_int8(tmp_path: Path) -> None:
    _saved(tmp_path / "m")
    convert(str(tmp_path / "m"), tmp_path / "int8", "int8")
    file = tmp_path / "int8" / "model.safetensors"
    state = load_file(file)
    for name, message in (
        ("postnet.fc.weight.scale", r"model\.safetensors: postnet\.fc\.weight is int8 but has no"),
        (
            "postnet.fc.weight",
            "missing tensors: postnet.fc.weight; unknown tensors: .*weight.scale",
        ),
    ):
        save_file({key: tensor for key, tensor in state.items() if key != name}, file)
        with pytest.raises(IntegrityError, match=message):
            load_model(tmp_path / "int8")


def test_quantizer(tmp_path: Path) -> None:
    quantizer = build(QuantizerConfig(concept_dim=4, codebooks=2, units=3))
    save(quantizer, tmp_path / "q")
    assert load_quantizer(tmp_path / "q").codebooks_CUD.shape == (2, 3, 4)
    with pytest.raises(IntegrityError, match="not a concept model"):
        load_model(tmp_path / "q")
    _saved(tmp_path / "m")
    with pytest.raises(IntegrityError, match="not a quantizer"):
        load_quantizer(tmp_path / "m")


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    model = _saved(tmp_path / "m")
    with pytest.raises(UsageError, match="exists already"):
        save(model, tmp_path / "m")
    save(model, tmp_path / "m", force=True)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no model called '.*nowhere'"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match=r"config\.json is missing"):
        load_model(tmp_path)
    _saved(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"model\.safetensors"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files(tmp_path: Path, share: float) -> None:
    _saved(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(IntegrityError, match="is damaged"):
        load_model(tmp_path / "m")


def test_an_invalid_config(tmp_path: Path) -> None:
    _saved(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    for text in ("{", "[]", "\xff", '{"kind": "model"}'):
        file.write_text(text, encoding="latin-1")
        with pytest.raises(IntegrityError, match=r"config\.json"):
            load_model(tmp_path / "m")
    file.write_text(json.dumps({"kind": "model", "architecture": "base", "modeldim": 8}))
    with pytest.raises(IntegrityError, match="unknown key 'modeldim'") as caught:
        load_model(tmp_path / "m")
    assert "model_dim" in caught.value.hint


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    _saved(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    state = load_file(file)
    bias = state.pop("postnet.fc.bias")
    save_file(state, file)
    with pytest.raises(IntegrityError, match=r"missing tensors: postnet\.fc\.bias"):
        load_model(tmp_path / "m")
    save_file(state | {"postnet.fc.bias": bias[:3].clone(), "x": bias}, file)
    with pytest.raises(
        IntegrityError, match=r"unknown tensors: x; wrong shapes: .*\(3,\) for \(16,\)"
    ):
        load_model(tmp_path / "m")


def test_space() -> None:
    config = preset("base", "nano", concept_dim=16, space=SPACE)
    check_model_space(config, SPACE, 16)
    with pytest.raises(IntegrityError, match=r"'tiny' \(abc\), not in 'tiny' \(xyz\)"):
        check_model_space(config, SpaceRef("tiny", "xyz"), 16)
    with pytest.raises(IntegrityError, match="width 16"):
        check_model_space(config, SPACE, 1024)
    nowhere = dataclasses.replace(config, space=SpaceRef())
    check_model_space(nowhere, SpaceRef("other", "xyz"), 16)
