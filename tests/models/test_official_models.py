"""Official shapes, key by key, on the meta device; SONAR-LLM against transformers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from rounding import additions

from lcm_cli.errors import IntegrityError
from lcm_cli.models.checkpoint import build
from lcm_cli.models.config import preset
from lcm_cli.models.sonar_llm import SonarLLM
from lcm_cli.transfer.converters.official import official_config, official_state, sonar_llm

PARAMETERS = {
    "base_lcm_1_6B": 1_649_185_792,
    "two_tower_diffusion_lcm_1_6B": 1_645_538_304,
    "two_tower_diffusion_lcm_7B": 6_930_781_696,
    "toy_base_lcm": 29_388_800,
    "toy_two_tower_diffusion_lcm": 84_235_264,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_key_maps_and_every_shape_matches(golden: Callable[[str], Any], name: str) -> None:
    facts = golden(f"keys_{name}").facts
    with torch.device("meta"):
        model = build(official_config(facts["config"]))
        theirs = official_state({key: torch.empty(shape) for key, shape in facts["keys"].items()})
    ours = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert ours == {key: tensor.shape for key, tensor in theirs.items()}
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == facts["n_params"] == PARAMETERS[name]


@pytest.mark.parametrize(
    ("architecture", "size", "name"),
    [
        ("base", "1.6B", "base_lcm_1_6B"),
        ("two_tower", "1.6B", "two_tower_diffusion_lcm_1_6B"),
        ("two_tower", "7B", "two_tower_diffusion_lcm_7B"),
    ],
)
def test_presets_are_the_official_models(
    golden: Callable[[str], Any], architecture: str, size: str, name: str
) -> None:
    assert preset(architecture, size) == official_config(golden(f"keys_{name}").facts["config"])


@pytest.mark.parametrize("name", ["base_model", "two_tower_model"])
def test_any_field_can_be_changed(golden: Callable[[str], Any], name: str) -> None:
    data = golden(name).facts["config"]
    config = official_config(data)
    stack = "transformer" if config.architecture == "base" else "denoiser"
    still = replace(getattr(config, stack), dropout=0.0)
    assert official_config(data, **{stack: still}) == replace(config, **{stack: still}) != config


def test_what_cannot_be_expressed_is_named(golden: Callable[[str], Any]) -> None:
    config = golden("base_model").facts["config"]
    with pytest.raises(IntegrityError, match="vae_lcm"):
        official_config(config | {"model_type": "vae_lcm"})
    with pytest.raises(IntegrityError, match=r"postnet\.weight_normalization = True"):
        official_config(config | {"postnet": config["postnet"] | {"weight_normalization": True}})
    with pytest.raises(IntegrityError, match="lacks the key 'lcm'"):
        official_config({key: value for key, value in config.items() if key != "lcm"})


def test_sonar_llm_equals_transformers(golden: Callable[[str], Any]) -> None:
    """Grouped heads, a head width of its own, Llama 3's rotations, a final norm."""
    file = golden("sonar_llm")
    config, state = sonar_llm(file.facts["config"], file.under("sd/"))
    model = SonarLLM(config)
    model.load_state_dict(state)
    file.check("out", model.eval()(file["x"]), terms=additions(model))
    assert config.begin_text == "Begin of text."


def test_sonar_llm_lacks_something(golden: Callable[[str], Any]) -> None:
    file = golden("sonar_llm")
    config, state = file.facts["config"], file.under("sd/")
    with pytest.raises(IntegrityError, match="llama_config"):
        sonar_llm({}, state)
    with pytest.raises(IntegrityError, match=r"frontend\.pre_linear\.weight"):
        sonar_llm(config, {key: state[key] for key in state if "forward_proj" not in key})
    other = config["llama_config"] | {"rms_norm_eps": 1e-6}
    with pytest.raises(IntegrityError, match="rms_norm_eps = 1e-06"):
        sonar_llm({"llama_config": other}, state)


def test_fourier_normalizers_are_refused(golden: Callable[[str], Any]) -> None:
    config = golden("keys_toy_base_lcm").facts["config"] | {"sonar_normalizer_name": "base_fft"}
    with pytest.raises(IntegrityError, match="base_fft"):
        official_config(config)
