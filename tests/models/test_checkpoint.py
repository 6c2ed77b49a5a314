"""Saving and loading every kind of model, and files that are not what they should be."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from rounding import additions, assert_near
from safetensors.torch import load_file, save_file

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.models.checkpoint import (
    build,
    check_space,
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
from lcm_cli.models.generate import GenerateOptions, generate
from lcm_cli.models.interface import ConceptModel
from lcm_cli.models.normalizer import fit

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
    options = GenerateOptions(max_concepts=3)
    prompt = torch.randn(4, 16) * 0.01
    (before,), (after,) = (generate(m, [prompt], options) for m in (model, again))
    assert torch.equal(before.concepts_SD, after.concepts_SD)


def test_unusual_parts_are_kept(tmp_path: Path) -> None:
    stack = TransformerConfig(qkv_weight_norm=True, residual_scale=0.5, norm="unit", kv_heads=2)
    normalizer = NormalizerConfig(clip=0.01, fft=True)
    model = _saved(tmp_path / "m", transformer=stack, normalizer=normalizer)
    assert load_model(tmp_path / "m").config == model.config
    for key, tensor in load_model(tmp_path / "m").state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key])


def test_half_precision_spares_the_normalizer(tmp_path: Path) -> None:
    _saved(tmp_path / "m")
    model = load_model(tmp_path / "m", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert model.normalizer.scale.dtype == torch.float32
    (made,) = generate(model, [torch.randn(3, 16) * 0.01], GenerateOptions(max_concepts=2))
    assert made.concepts_SD.dtype == torch.float32
    assert bool(made.concepts_SD.isfinite().all())


@pytest.mark.parametrize("architecture", KINDS)
def test_packed_gives_the_same_numbers(tmp_path: Path, architecture: str) -> None:
    model = _saved(tmp_path / "m", architecture)
    packed = load_model(tmp_path / "m", packed=True)
    # Few steps: random weights amplify rounding from one to the next.
    few = DiffusionOptions(steps=3) if hasattr(model, "schedule") else None
    options = GenerateOptions(max_concepts=3, repeat_similarity=None, sampler=few)
    terms = 3 * (3 if few else 1) * additions(model)
    prompts = [torch.randn(4, 16) * 0.01, torch.randn(2, 16) * 0.01]
    pairs = zip(generate(model, prompts, options), generate(packed, prompts, options), strict=True)
    for plain, fast in pairs:
        assert_near(plain.concepts_SD, fast.concepts_SD, terms)


def test_float16_on_disk_is_float32_on_the_cpu(tmp_path: Path) -> None:
    _saved(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(file).items()}, file)
    assert {tensor.dtype for tensor in load_model(tmp_path / "m").state_dict().values()} == {
        torch.float32
    }


def test_quantizer(tmp_path: Path) -> None:
    quantizer = build(QuantizerConfig(concept_dim=4, codebooks=2, units=3))
    save(quantizer, tmp_path / "q")
    assert load_quantizer(tmp_path / "q").codebooks_CUD.shape == (2, 3, 4)
    with pytest.raises(IntegrityError, match="not a concept model"):
        load_model(tmp_path / "q")
    _saved(tmp_path / "m")
    with pytest.raises(IntegrityError, match="no quantizer"):
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
def test_cut_short(tmp_path: Path, share: float) -> None:
    _saved(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(IntegrityError, match="is damaged"):
        load_model(tmp_path / "m")


def test_a_config_that_is_none(tmp_path: Path) -> None:
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
    check_space(config, SPACE, 16)
    with pytest.raises(IntegrityError, match=r"'tiny' \(abc\), not in 'tiny' \(xyz\)"):
        check_space(config, SpaceRef("tiny", "xyz"), 16)
    with pytest.raises(IntegrityError, match="width 16"):
        check_space(config, SPACE, 1024)
    nowhere = dataclasses.replace(config, space=SpaceRef())
    check_space(nowhere, SpaceRef("other", "xyz"), 16)
