"""SONAR's tokenizer as a tokenizer.json, which the package tokenizers reads.

Its ids are those of the M2M-100 layout (see converters.sonar): <s> <pad> </s> <unk>, the pieces,
the languages. transformers has a class for such tokenizers, NllbTokenizer, but some of its versions
support neither unigram models nor the fallback to bytes. All versions read a tokenizer.json alike.
It cannot add a language by itself, so the text begins with one: "eng_Latn The cat sleeps."

The sentencepiece library does not give access to the normalization table, so the model is parsed
here: it is a protocol buffer (sentencepiece_model.proto).
"""

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcm_cli.errors import IntegrityError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_CONTROL = 3  # <unk>, <s> and </s> are the first pieces of the model
# Fields of ModelProto, SentencePiece, TrainerSpec and NormalizerSpec.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE = 1, 2
_TYPE, _BYTE_FALLBACK = 3, 35
_CHARSMAP = 2
_UNIGRAM, _BPE = 1, 2

Fields = dict[int, Any]


def tokenizer_json(model: Path, languages: Sequence[str]) -> dict[str, Any]:
    """Return the content of tokenizer.json for a sentencepiece model and language codes.

    Raises IntegrityError if the model is neither unigram nor BPE.
    """
    content = model.read_bytes()
    pieces = [_parse(value) for field, value in _fields(content) if field == _PIECES]
    whole = _parse(content)
    trainer, normalizer = _parse(whole.get(_TRAINER, b"")), _parse(whole.get(_NORMALIZER, b""))
    scores = dict.fromkeys(SPECIAL, 0.0)
    scores |= {_text(piece): _score(piece) for piece in pieces[_CONTROL:]}
    first = len(scores)
    added = {first + i: code for i, code in enumerate(languages)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, **added_token(token)}
            for number, token in (dict(enumerate(SPECIAL)) | added).items()
        ],
        "normalizer": _normalizer(normalizer.get(_CHARSMAP, b"")),
        "pre_tokenizer": _METASPACE,
        "post_processor": _ending_in("</s>", SPECIAL.index("</s>")),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, _METASPACE]},
        "model": _model(trainer, scores, model),
    }


def added_token(token: str) -> dict[str, Any]:
    """Return the description of a special token, as the package tokenizers has it."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": token, **flags, "special": True}


_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}


def _normalizer(charsmap: bytes) -> dict[str, Any]:
    spaces = [
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]
    table = base64.b64encode(charsmap).decode()
    mapped = [{"type": "Precompiled", "precompiled_charsmap": table}] if charsmap else []
    return {"type": "Sequence", "normalizers": [*mapped, *spaces]}


def _ending_in(token: str, number: int) -> dict[str, Any]:
    def text(which: str) -> dict[str, Any]:
        return {"Sequence": {"id": which, "type_id": 0}}

    end = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [text("A"), end],
        "pair": [text("A"), text("B"), end],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _model(trainer: Fields, scores: Mapping[str, float], source: Path) -> dict[str, Any]:
    kind = trainer.get(_TYPE, _UNIGRAM)
    fallback = bool(trainer.get(_BYTE_FALLBACK, 0))
    if kind == _UNIGRAM:
        vocabulary = [[token, score] for token, score in scores.items()]
        unknown = SPECIAL.index("<unk>")
        return {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": vocabulary,
            "byte_fallback": fallback,
        }
    if kind != _BPE:
        raise IntegrityError(
            f"{source} is a sentencepiece model of type {kind}, not unigram or BPE"
        )
    return {
        "type": "BPE",
        "vocab": {token: number for number, token in enumerate(scores)},
        "merges": list(_merges(scores)),
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": fallback,
    }


def _merges(scores: Mapping[str, float]) -> Iterator[list[str]]:
    """Yield the pairs of pieces that a BPE model joins, the first to be joined first.

    Sentencepiece joins whichever neighbours make the piece with the best score.
    """
    for token in sorted(scores, key=lambda token: -scores[token]):
        for place in range(1, len(token)):
            if token[:place] in scores and token[place:] in scores and token not in SPECIAL:
                yield [token[:place], token[place:]]


def _text(piece: Fields) -> str:
    return bytes(piece[_PIECE]).decode()


def _score(piece: Fields) -> float:
    return float(struct.unpack("<f", piece[_SCORE])[0]) if _SCORE in piece else 0.0


def _parse(message: bytes) -> Fields:
    """Return the fields of a message by number; of a repeated field, the last."""
    return dict(_fields(message))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) for each field of a protocol buffer: an integer, or bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        wire = key & 7
        if wire == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            size, place = _varint(message, place)
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return the integer at `place`, seven bits to a byte, and the place after it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
