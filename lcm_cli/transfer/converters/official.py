"""Configs and state dicts of other projects, translated into lcm's.

These functions only map dictionaries to dictionaries; files are opened in `converters.foreign`.
Module names of Base-LCM and the Two-Tower follow facebookresearch/large_concept_model, so only the
normalizer moves. SONAR-LLM's Llama blocks are renamed, and their rotary channels reordered.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from lcm_cli.errors import IntegrityError
from lcm_cli.models.config import (
    AnyConfig,
    BaseConfig,
    NormalizerConfig,
    RopeScaling,
    ScheduleConfig,
    SonarLLMConfig,
    TransformerConfig,
    TwoTowerConfig,
)

Json = Mapping[str, Any]
StateDict = dict[str, Tensor]
_NAMES = {"squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"sample": "x0", "epsilon": "epsilon", "v_prediction": "v"}
# Fields that change the result and have no counterpart in lcm, with the only supported values.
_FIXED: dict[str, Json] = {
    "frontend": {"pre_linear_bias": True},
    "encoder_frontend": {"pre_linear_bias": True, "weight_normalization": False},
    "postnet": {"linear_bias": True, "weight_normalization": False},
    "pre_denoiser": {"linear_bias": True, "weight_normalization": False, "activation_name": None},
    "post_denoiser": {"linear_bias": True, "weight_normalization": False, "activation_name": None},
}


def official_config(data: Json, **changes: Any) -> AnyConfig:
    """Translate the config of an official Base-LCM or Two-Tower; `changes` replace lcm's fields.

    Raises IntegrityError for another model type, a missing key, or a setting without counterpart.
    """
    builders: dict[str, Callable[[Json], AnyConfig]] = {
        "base_lcm": _base,
        "two_tower_diffusion_lcm": _two_tower,
    }
    kind = str(data.get("model_type"))
    if kind not in builders:
        raise IntegrityError(
            f"model_type {kind!r} is not an official concept model", f"known: {', '.join(builders)}"
        )
    try:
        return replace(builders[kind](data), **changes)
    except KeyError as error:
        raise IntegrityError(f"the official config lacks the key {error}") from error


def official_state(state: Mapping[str, Tensor]) -> StateDict:
    """Rename an official state dict: in lcm, the normalizer is at the top level of every model."""
    return {_official_name(key): tensor for key, tensor in state.items()}


def _official_name(key: str) -> str:
    key = key.removeprefix("module.")
    return re.sub(r"^(frontend\.)?sonar_normalizer\.", "normalizer.", key)


def _common(data: Json) -> dict[str, Any]:
    name = data["sonar_normalizer_name"] or ""
    if "fft" in name:  # the weights would load, but give another function
        raise IntegrityError(f"sonar_normalizer_name {name!r}: Fourier normalizers cannot be read")
    method = "gaussian_robust" if name else "none"
    return {
        "concept_dim": data["sonar_embed_dim"],
        "model_dim": data["model_dim"],
        "max_length": data["max_seq_len"],
        "normalizer": NormalizerConfig(method=method),  # type: ignore[arg-type]
    }


def _base(data: Json) -> BaseConfig:
    _check(data["frontend"], "frontend")
    _check(data["postnet"], "postnet")
    if data["model_output_dim"] not in (None, data["sonar_embed_dim"]):
        raise IntegrityError(
            f"model_output_dim {data['model_output_dim']} is not a concept's width"
        )
    return BaseConfig(
        transformer=_stack(data["lcm"]),
        scale_input=data["frontend"]["scale_embeddings"],
        input_weight_norm=data["frontend"]["weight_normalization"],
        output_activation=data["postnet"]["activation_name"],
        **_common(data),
    )


def _two_tower(data: Json) -> TwoTowerConfig:
    denoiser = data["denoiser"]
    _check(data["frontend"], "encoder_frontend")
    for part in ("pre_denoiser", "post_denoiser"):
        _check(denoiser[part], part)
    if denoiser["timestep_embed_dim"] != data["model_dim"]:
        raise IntegrityError(
            f"timestep_embed_dim {denoiser['timestep_embed_dim']} differs from the model width "
            f"{data['model_dim']}, which no released config does"
        )
    return TwoTowerConfig(
        contextualizer=_stack(data["context_encoder"]),
        denoiser=_stack(denoiser),
        schedule=official_schedule(data["noise_scheduler"]),
        **_common(data),
    )


def official_schedule(data: Json) -> ScheduleConfig:
    """Translate a DDIM scheduler's config, without its options for sampling."""
    return ScheduleConfig(
        steps=data["num_diffusion_train_steps"],
        name=_NAMES.get(data["beta_schedule"], data["beta_schedule"]),  # type: ignore[arg-type]
        beta_start=data["beta_start"],
        beta_end=data["beta_end"],
        exponent=data["scaled_linear_exponent"],
        gamma=data["sigmoid_schedule_alpha"],
        delta=float(data["sigmoid_schedule_beta"]),
        zero_terminal_snr=data["rescale_betas_zero_snr"],
        final_alpha_one=data["set_alpha_to_one"],
        prediction=_PREDICTIONS[data["prediction_type"]],  # type: ignore[arg-type]
    )


def _stack(data: Json) -> TransformerConfig:
    gated, inner = data["use_swiglu"], data["ffn_inner_dim"]
    if gated:  # fairseq2 keeps two thirds of a gated width, in multiples of 256
        inner = -(-int(inner * 2 / 3) // 256) * 256
    final = data["final_norm_order_style"] or data["norm_order_style"]
    return TransformerConfig(
        layers=data["num_layers"],
        heads=data["num_attn_heads"],
        inner_dim=inner,
        gated=gated,
        activation=data["ffn_inner_activation_name"],
        output_bias=data["mha_output_proj_bias"],
        dropout=data["dropout_p"],
        final_dropout=data["final_dropout_p"],
        attention_dropout=data["attention_dropout_p"],
        positions=data["pos_embedding_style"],
        rope_theta=data["rope_theta"],
        norm=data["layer_normalization_style"],
        norm_order=data["norm_order_style"],
        final_norm=final != "post",
        qk_norm=data["enable_qk_layernorm"],
        qkv_weight_norm=data["mha_qkv_weight_normalization"],
        output_weight_norm=data["mha_output_weight_normalization"],
        residual_scale=data["scale_residual"],
    )


def _check(data: Json, part: str) -> None:
    for key, known in _FIXED[part].items():
        if data[key] != known:
            raise IntegrityError(f"{part}.{key} = {data[key]!r}: only {known!r} can be read")


# SONAR-LLM


_LLAMA = (
    (r"^llama_model\.(model\.)?norm\.", "lcm.layer_norm."),
    (r"^llama_model\.(model\.)?layers\.", "lcm.layers."),
    (r"\.input_layernorm\.", ".self_attn_layer_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_layer_norm."),
    (r"\.self_attn\.o_proj\.", ".self_attn.output_proj."),
    (r"\.mlp\.gate_proj\.", ".ffn.gate_proj."),
    (r"\.mlp\.up_proj\.", ".ffn.inner_proj."),
    (r"\.mlp\.down_proj\.", ".ffn.output_proj."),
    (r"^forward_proj\.linear\.", "frontend.pre_linear."),
    (r"^reverse_proj\.linear\.", "postnet.fc."),
)
# The token table is never used; the SONAR decoder belongs to the space.
_UNUSED = re.compile(r"^(llama_model\.(model\.)?(embed_tokens|rotary_emb|lm_head)|sonar_decoder)\.")


def sonar_llm(
    config: Json, state: Mapping[str, Tensor], **changes: Any
) -> tuple[SonarLLMConfig, StateDict]:
    """Translate the config.json and the state dict of a SONAR-LLM checkpoint.

    Widths come from the tensors; heads, rotations and lengths, which shapes do not show, come from
    `llama_config`. Raises IntegrityError if either lacks something.
    """
    named = {_llama_name(key): tensor for key, tensor in state.items() if not _UNUSED.match(key)}
    try:
        ours = replace(_llama_config(config, named), **changes)
    except KeyError as error:
        raise IntegrityError(f"the SONAR-LLM checkpoint lacks {error}") from error
    heads = {"q_proj": ours.transformer.heads, "k_proj": ours.transformer.kv_heads}
    for key in named:
        part = key.removesuffix(".weight").rpartition(".")[2]
        if part in heads:
            named[key] = _neighbours(named[key], heads[part] or ours.transformer.heads)
    return ours, named


def _llama_name(key: str) -> str:
    for pattern, ours in _LLAMA:
        key = re.sub(pattern, ours, key)
    return key


def _llama_config(config: Json, state: Mapping[str, Tensor]) -> SonarLLMConfig:
    llama = config["llama_config"]
    model_dim, concept_dim = state["frontend.pre_linear.weight"].shape
    layers = {key.split(".")[2] for key in state if key.startswith("lcm.layers.")}
    heads = llama["num_attention_heads"]
    if llama.get("rms_norm_eps", 1e-5) != 1e-5:
        raise IntegrityError(f"rms_norm_eps = {llama['rms_norm_eps']}: only 1e-05 can be read")
    stack = TransformerConfig(
        layers=len(layers),
        heads=heads,
        kv_heads=llama.get("num_key_value_heads"),
        head_dim=len(state["lcm.layers.0.self_attn.q_proj.weight"]) // heads,
        inner_dim=len(state["lcm.layers.0.ffn.gate_proj.weight"]),
        bias=False,
        output_bias=False,
        dropout=0.0,
        rope_theta=llama.get("rope_theta", 10_000.0),
        rope_scaling=_rope_scaling(llama.get("rope_scaling")),
    )
    return SonarLLMConfig(
        concept_dim=concept_dim,
        model_dim=model_dim,
        max_length=llama.get("max_position_embeddings", 2048),
        transformer=stack,
        begin_text="Begin of text." if config.get("add_begin", True) else "",
    )


def _rope_scaling(data: Json | None) -> RopeScaling | None:
    if data is None or data.get("rope_type", "default") == "default":
        return None
    if data["rope_type"] != "llama3":
        raise IntegrityError(f"rope_type {data['rope_type']!r}: only 'llama3' can be read")
    return RopeScaling(
        factor=data["factor"],
        low_frequency=data["low_freq_factor"],
        high_frequency=data["high_freq_factor"],
        original_length=data["original_max_position_embeddings"],
    )


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Reorder rotary channels: the two of a pair move from half a head apart to adjacent."""
    # transformers turns channel i with i + width / 2 of a head; lcm turns 2i with 2i + 1.
    outputs, inputs = weight.shape
    return weight.view(heads, 2, -1, inputs).transpose(1, 2).reshape(outputs, inputs)
