"""Spaces in the M2M-100 layout, which transformers reads; converters.sonar reads its tensors.

Everything is float32, which holds the numbers of every stored type exactly. Tensors are computed
when they are written.

If encoder and decoder have the same token embedding, it is stored once, as `shared`. Otherwise
transformers wants four embeddings: the encoder's, the decoder's, the output projection (equal to
the decoder's), and `shared`, which it does not use but reports if missing.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.hub.cards import UNKNOWN_LICENCE
from lcm_cli.hub.layouts import read_json, read_licence
from lcm_cli.transfer.converters.sonar import port_ids, tensor_shapes
from lcm_cli.weights import Deferred, StoredPiece, Weight

Shapes = Mapping[str, int]  # the entry of an encoder or decoder in a space's config.json

_RENAMED = (
    (r"\.self_attn\.output_proj\.", ".self_attn.out_proj."),
    (r"\.encoder_decoder_attn\.output_proj\.", ".encoder_attn.out_proj."),
    (r"\.encoder_decoder_attn(_layer_norm)?\.", r".encoder_attn\1."),
    (r"\.ffn\.inner_proj\.", ".fc1."),
    (r"\.ffn\.output_proj\.", ".fc2."),
    (r"\.ffn_layer_norm\.", ".final_layer_norm."),
)
# The cross-attention has a single key, so these have no effect; spaces trained with lcm lack them.
_WITHOUT_EFFECT = re.compile(r"\.encoder_decoder_attn(_layer_norm\.|\.[qk]_proj\.)")
_SIZES = {"layers": "layers", "attention_heads": "heads", "ffn_dim": "ffn_dim"}
_MOST_LAYERS = 1000  # a damaged config must not list billions of tensors
_LANGUAGE = re.compile("[a-z]{3}_[A-Z][a-z]{3}")
_SCORES_LANGUAGE = "lcm_scores_language"  # not read by transformers: see DecoderConfig
_ORDER = [2, 0, 3, 1]  # rows of lcm's embedding that are <s>, <pad>, </s>, <unk>


def check_architecture(name: str, encoder: Shapes, decoder: Shapes) -> None:
    """Raise UsageError, with the sizes that differ, unless the space fits M2M-100."""
    pairs = (
        ("the width of the decoder", decoder["model_dim"], encoder["model_dim"]),
        ("the width of the concepts", decoder["concept_dim"], encoder["model_dim"]),
        ("the vocabulary of the decoder", decoder["vocabulary"], encoder["vocabulary"]),
    )
    for what, found, wanted in pairs:
        if found != wanted:
            message = f"{name} does not fit M2M-100: {what} is {found}, the encoder's is {wanted}"
            raise UsageError(message, "in M2M-100, encoder, decoder and concepts share these sizes")


def is_tied(encoder: Mapping[str, Weight], decoder: Mapping[str, Weight]) -> bool:
    """Return whether encoder and decoder have the same token embedding."""
    first, second = encoder[_embedding("encoder")], decoder[_embedding("decoder")]
    same = first.shape == second.shape
    return same and torch.equal(first.to("cpu", torch.float32), second.to("cpu", torch.float32))


def port_config(encoder: Shapes, decoder: Shapes, tied: bool) -> dict[str, Any]:
    """Return the config.json of the layout; `tied` as returned by `is_tied`."""
    sizes = {
        f"{role}_{theirs}": shapes[ours]
        for role, shapes in (("encoder", encoder), ("decoder", decoder))
        for theirs, ours in _SIZES.items()
    }
    return {
        "architectures": ["M2M100ForConditionalGeneration"],
        "model_type": "m2m_100",
        "is_encoder_decoder": True,
        "d_model": encoder["model_dim"],
        "vocab_size": encoder["vocabulary"],
        **sizes,
        "max_position_embeddings": max(encoder["max_length"], decoder["max_length"]),
        "activation_function": "relu",
        "scale_embedding": True,
        _SCORES_LANGUAGE: decoder["scores_language"],
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "torch_dtype": "float32",
    }


def port_space(folder: Path) -> dict[str, Any]:
    """Return the config.json of a space for a folder that holds one in the layout.

    Raises IntegrityError if config.json lacks a size or the tokenizer's files list no languages.
    """
    theirs = read_json(folder / "config.json")
    ids = port_ids(folder)
    languages = sorted(filter(_LANGUAGE.fullmatch, ids), key=ids.__getitem__)
    if not languages:
        raise IntegrityError(f"{folder}: its tokenizer's files list no languages")
    try:
        halves = {role: _port_shapes(role, theirs) for role in ("encoder", "decoder")}
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{folder / 'config.json'} lacks a size: {error}") from error
    for role, shapes in halves.items():
        if not 0 < shapes["layers"] <= _MOST_LAYERS:
            raise IntegrityError(f"{folder / 'config.json'}: {role}_layers = {shapes['layers']}")
    licence = read_licence(folder)
    return {
        "kind": "space",
        "name": folder.resolve().name,
        "licence": UNKNOWN_LICENCE if licence in ("", "unknown") else licence,
        "languages": languages,
        "encoder": halves["encoder"],
        "decoder": halves["decoder"]
        | {"concept_dim": halves["encoder"]["model_dim"]}
        | {"scores_language": theirs.get(_SCORES_LANGUAGE) is not False},
    }


def _port_shapes(role: str, theirs: Mapping[str, Any]) -> dict[str, int]:
    sizes = {ours: int(theirs[f"{role}_{their}"]) for their, ours in _SIZES.items()}
    return sizes | {
        "model_dim": int(theirs["d_model"]),
        "vocabulary": int(theirs["vocab_size"]),
        "max_length": int(theirs["max_position_embeddings"]),
    }


def port_tensors(
    role: str, shapes: Shapes, weights: Mapping[str, Weight], tied: bool
) -> Iterator[tuple[str, list[StoredPiece]]]:
    """Yield the tensors of an encoder or decoder under the names of the layout."""
    copy = {"encoder": "model.shared.weight", "decoder": "lm_head.weight"}[role]
    places = [copy, f"model.{role}.embed_tokens.weight"]
    if tied:
        places = [copy] if role == "encoder" else []
    for name, shape in tensor_shapes(role, shapes).items():
        if name == _embedding(role):
            for place in places:
                yield place, [_deferred(weights[name], reorder=True)]
        elif name in weights:
            yield _port_name(role, name), [_deferred(weights[name])]
        elif _WITHOUT_EFFECT.search(name):
            norm = name.endswith("_layer_norm.weight")
            yield _port_name(role, name), [torch.full(shape, float(norm))]


def _embedding(role: str) -> str:
    return f"{role}_frontend.embed.weight"


def _port_name(role: str, name: str) -> str:
    name = f".{name.removeprefix(f'{role}.')}"
    for pattern, theirs in _RENAMED:
        name = re.sub(pattern, theirs, name)
    return f"model.{role}{name}"


def _deferred(weight: Weight, *, reorder: bool = False) -> Deferred:
    def make() -> torch.Tensor:
        numbers = weight.to("cpu", torch.float32)
        return torch.cat([numbers[_ORDER], numbers[4:]]) if reorder else numbers

    return Deferred(torch.float32, weight.shape, make)
