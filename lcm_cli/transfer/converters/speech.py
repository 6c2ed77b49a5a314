"""Conversion of SONAR's official speech encoders.

Two layouts are recognised by their keys: fairseq's, in which the files are published, and
fairseq2's, whose names are lcm's. Of the tensors that lcm does not have, some are dead weights
(see lcm_cli.speech.encoder) and others served pretraining only.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcm_cli.errors import IntegrityError
from lcm_cli.hub.cards import Card, cards
from lcm_cli.models.checkpoint import check_state
from lcm_cli.schema import parse
from lcm_cli.speech.config import SpeechConfig, SpeechShapes
from lcm_cli.speech.encoder import SpeechEncoder
from lcm_cli.transfer.converters.sonar import read_pickle
from lcm_cli.weights import without_weights

_BOS = 2  # the row of <s> in the pooling's embedding
_EMBEDDING = "encoder_pooler.decoder_frontend.embed.weight"
_RENAMED = (
    (r"^encoder\.w2v_model\.layer_norm\.", "encoder_frontend.post_extract_layer_norm."),
    (r"^encoder\.w2v_model\.post_extract_proj\.", "encoder_frontend.model_dim_proj."),
    # Applied after the last block, and only there: fairseq pretrained with this norm by mistake.
    (r"^encoder\.w2v_model\.encoder\.layer_norm\.", "layer_norm."),
    (r"^encoder\.w2v_model\.encoder\.layers\.", "encoder.layers."),
    (r"\.conv_module\.layer_norm\.", ".conv_layer_norm."),
    (r"\.conv_module\.", ".conv."),
    (r"\.ffn([12])\.layer_norm\.", r".ffn\1_layer_norm."),
    (r"\.ffn([12])\.w_1\.", r".ffn\1.inner_proj."),
    (r"\.ffn([12])\.w_2\.", r".ffn\1.output_proj."),
    (r"\.self_attn\.linear_([qkv])\.", r".self_attn.\1_proj."),
    (r"\.self_attn\.linear_out\.", ".self_attn.output_proj."),
    (r"\.self_attn\.linear_pos\.", ".self_attn.sdpa.r_proj."),
    (r"\.self_attn\.pos_bias_([uv])$", r".self_attn.sdpa.\1_bias"),
    (r"^(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.layer_norm."),
    (r"^decoder\.embed_tokens\.", "encoder_pooler.decoder_frontend.embed."),
    (r"^decoder\.embed_out$", "encoder_pooler.projection_out.weight"),
    (r"^decoder\.layers\.", "encoder_pooler.decoder.layers."),
    (r"_attn\.out_proj\.", "_attn.output_proj."),
    (r"\.encoder_attn(_layer_norm)?\.", r".encoder_decoder_attn\1."),
    (r"\.fc1\.", ".ffn.inner_proj."),
    (r"\.fc2\.", ".ffn.output_proj."),
    (r"^(encoder_pooler\..*)\.final_layer_norm\.", r"\1.ffn_layer_norm."),
)
_UNUSED = re.compile(
    r"num_batches_tracked$|(^|\.)version$|embed_positions\.|mask_emb$|\.pos_conv\."
    r"|^encoder_pooler\.decoder\.layers\.\d+\.self_attn\.[qk]_proj\."
)


def config_of(card: Card, source: Mapping[str, Any] | None = None) -> SpeechConfig:
    """Return the config of the speech encoder that a card describes."""
    assert not isinstance(card.languages, int)
    shapes = parse(SpeechShapes, card.encoder, f"the card {card.name}")
    about = (card.name, card.licence, card.languages, card.spaces, shapes)
    return SpeechConfig(*about, source=source)


def card_of(file: Path) -> Card | None:
    """Return the card whose source is an official file with the name of `file`."""
    official = (card for card in cards().values() if card.kind == "speech" and card.source)
    ending = f"/{file.name}"
    return next((card for card in official if card.source["speech"].url.endswith(ending)), None)


def read_speech(source: Path, shapes: SpeechShapes) -> dict[str, Tensor]:
    """Return the weights in an official .pt file under lcm's names, memory-mapped.

    Raises IntegrityError for a file that is damaged or would run code, and, naming the tensors, if
    any is missing, unknown or of a wrong shape.
    """
    weights = _converted(read_pickle(source), source)
    network = without_weights(lambda: SpeechEncoder(shapes), shapes.layers, weights, source)
    check_state(network, weights, str(source))
    return weights


def _converted(state: Mapping[str, Any], source: Path) -> dict[str, Tensor]:
    named = {_rename(name): tensor for name, tensor in state.items()}
    kept = {name: tensor for name, tensor in named.items() if not _UNUSED.search(name)}
    embedding = kept.pop(_EMBEDDING, None)
    if embedding is None or embedding.ndim != 2 or len(embedding) <= _BOS:
        raise IntegrityError(f"{source} is not a speech encoder: it lacks {_EMBEDDING}")
    kept["encoder_pooler.query"] = _query(embedding[_BOS])
    return {name: _flat(name, tensor) for name, tensor in kept.items()}


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _query(embedded_M: Tensor) -> Tensor:
    """Return the input of the pooling: the scaled embedding of <s> at position 0."""
    half = len(embedded_M) // 2
    position_M = torch.cat([torch.zeros(half), torch.ones(half)])  # sines and cosines of 0
    return (embedded_M.float() * math.sqrt(len(embedded_M)) + position_M).to(embedded_M.dtype)


def _flat(name: str, tensor: Tensor) -> Tensor:
    """Return a convolution over single frames as a matrix, and any other tensor unchanged."""
    return tensor.squeeze(2) if ".pointwise_conv" in name and tensor.ndim == 3 else tensor
