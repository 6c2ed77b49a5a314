"""Conversion of foreign SONAR encoders and decoders to the files of a space.

Three layouts are recognised by their keys:
- sonar: published by sonar-space, {"model": state dict} with the same key names as lcm's;
- fairseq: the older {"state_dict": ...} that sonar-space's converters still support;
- M2M-100: the Hub ports, whose key names derive from fairseq's.
The last two order the rows of the embedding differently. Their special tokens are <s> <pad> </s>
<unk>, SONAR's are <pad> <unk> <s> </s>. Both give a piece its sentencepiece id + 1. The languages
usually follow in the same order, but a port's tokenizer adds a <mask>, after the languages in the
published files and before them in newly created ones; so ids listed in its files take priority
(`_rows`).

Weights are memory-mapped and written piece by piece; pickles are read as tensors only, or refused.
"""

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcm_cli.errors import IntegrityError
from lcm_cli.files import atomic_path
from lcm_cli.hub.layouts import weight_parts

if TYPE_CHECKING:
    from torch import Tensor

# SONAR's first four tokens, and their rows in an embedding in fairseq's order.
_SPECIAL = {"<pad>": 1, "<unk>": 3, "<s>": 0, "</s>": 2}
_TAGS = 3  # the last rows: training tags, which SONAR does not use

_RENAMED = (
    (r"^layers\.", r"{role}.layers."),
    (r"\.self_attn\.out_proj\.", ".self_attn.output_proj."),
    (r"\.encoder_attn\.out_proj\.", ".encoder_attn.output_proj."),
    (r"\.encoder_attn\.", ".encoder_decoder_attn."),
    (r"\.encoder_attn_layer_norm\.", ".encoder_decoder_attn_layer_norm."),
    (r"\.fc1\.", ".ffn.inner_proj."),
    (r"\.fc2\.", ".ffn.output_proj."),
    (r"\.final_layer_norm\.", ".ffn_layer_norm."),
    (r"^embed_tokens\.", "{role}_frontend.embed."),
    (r"^(output_projection|lm_head)\.", "final_proj."),
)
# Not weights: fairseq's version stamp, and position tables, which are computed.
_NOT_WEIGHTS = re.compile(r"(^|\.)(version|embed_positions\.\w+|final_logits_bias)$")

_FLOATS = ("torch.float32", "torch.float16", "torch.bfloat16")


@dataclass(frozen=True)
class Weights:
    """The tensors of an encoder or decoder under lcm's names.

    If `reordered`, its embedding is in fairseq's order, except for the rows in `ids` (by token).
    """

    tensors: Mapping[str, "Tensor"]
    reordered: bool = False
    ids: Mapping[str, int] = field(default_factory=dict)


def convert_half(
    role: str, source: Path, target: Path, shapes: Mapping[str, int], languages: Sequence[str]
) -> str:
    """Convert the encoder or decoder in `source` (.pt file, or M2M-100 folder) to `target`.

    `role` is "encoder" or "decoder", `shapes` its entry in config.json, `languages` the codes in
    the order of their new ids. Returns the sha256 of the new file. Raises IntegrityError, with file
    and tensor, if a tensor is missing, unknown, or of a wrong type or shape.
    """
    from lcm_cli.weights import write_safetensors

    weights = _read(role, source)
    _check(role, source, weights.tensors, tensor_shapes(role, shapes))
    pieces = {name: [tensor] for name, tensor in weights.tensors.items()}
    if weights.reordered:
        name = f"{role}_frontend.embed.weight"
        rows = _rows(source, shapes["vocabulary"], languages, weights.ids)
        pieces[name] = [weights.tensors[name][start:end] for start, end in _runs(rows)]
    with atomic_path(target, force=True) as path:
        return write_safetensors(path, pieces)


def tensor_shapes(role: str, config: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors of an encoder or decoder with this `config`."""
    dim, inner = config["model_dim"], config["ffn_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        f"{role}_frontend.embed.weight": (config["vocabulary"], dim)
    }
    layer = _attention("self_attn", dim, dim)
    if role == "decoder":
        layer |= _attention("encoder_decoder_attn", dim, config["concept_dim"])
    layer |= _linear("ffn.inner_proj", inner, dim) | _linear("ffn.output_proj", dim, inner)
    layer |= _norm("ffn_layer_norm", dim)
    for index in range(config["layers"]):
        shapes |= {f"{role}.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes | _norm("decoder.layer_norm" if role == "decoder" else "layer_norm", dim)


def check_tokenizer(path: Path, vocabulary: int, languages: int) -> None:
    """Raise IntegrityError unless `path` is a sentencepiece model like SONAR's, of this size."""
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise IntegrityError(f"{path} is not a sentencepiece model: {error}") from error
    special = (model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id())
    if special != (0, 1, 2, -1):
        message = f"{path}: the special tokens unk, bos, eos, pad are {special}, not (0, 1, 2, -1)"
        raise IntegrityError(message)
    found = model.get_piece_size() + 1 + languages + 3  # with <pad> and three mining tags
    if found != vocabulary:
        raise IntegrityError(
            f"{path} with {languages} languages has {found} ids, the weights have {vocabulary}"
        )


def _attention(name: str, dim: int, kv_dim: int) -> dict[str, tuple[int, ...]]:
    maps = {"q_proj": dim, "k_proj": kv_dim, "v_proj": kv_dim, "output_proj": dim}
    shapes = _norm(f"{name}_layer_norm", dim)
    for map_name, width in maps.items():
        shapes |= _linear(f"{name}.{map_name}", dim, width)
    return shapes


def _linear(name: str, out: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _read(role: str, source: Path) -> Weights:
    """Read an encoder or decoder in any of the layouts, under lcm's names."""
    if source.is_dir():
        _check_port(source)
        state = read_folder(source)
    else:
        state = read_pickle(source)
    if f"{role}_frontend.embed.weight" in state:
        return Weights(_without_tied(source, role, state))
    state = _half(role, state)
    renamed = {_rename(role, name): tensor for name, tensor in state.items()}
    return Weights(_without_tied(source, role, renamed), True, port_ids(source))


def _rows(
    source: Path, vocabulary: int, languages: Sequence[str], ids: Mapping[str, int]
) -> list[int]:
    """Return, for each of lcm's token ids, its row in a port's embedding."""
    first = vocabulary - _TAGS - len(languages)
    usual = _SPECIAL | {code: first + i for i, code in enumerate(languages)}
    listed = any(code in ids for code in languages)
    if missing := [code for code in languages if listed and code not in ids]:
        raise IntegrityError(f"{source}: its tokenizer lacks the language {missing[0]}")
    special = [ids.get(token, row) for token, row in _SPECIAL.items()]
    codes = [ids.get(code, usual[code]) for code in languages]
    rows = [*special, *range(4, first), *codes]
    rest = sorted(set(range(vocabulary)) - set(rows))
    if len(rest) != _TAGS or len(set(rows)) != len(rows):
        raise IntegrityError(
            f"{source}: its tokenizer's ids do not fit {vocabulary} embedding rows"
        )
    return rows + rest


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of each run of consecutive numbers, so that few slices are needed."""
    start = previous = rows[0]
    for row in [*rows[1:], -1]:
        if row != previous + 1:
            yield start, previous + 1
            start = row
        previous = row


def port_ids(source: Path) -> dict[str, int]:
    """Return the ids that an M2M-100 folder's tokenizer files list, by token."""
    try:
        ids = {str(token): int(i) for token, i in _json(source / "added_tokens.json").items()}
        listed = _json(source / "tokenizer_config.json").get("added_tokens_decoder", {})
        return ids | {str(token["content"]): int(i) for i, token in listed.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(f"{source}: its tokenizer files are malformed: {error!r}") from error


def _half(role: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return one half of an encoder-decoder without its prefix; the embedding may be shared."""
    prefixes = (f"model.{role}.", f"{role}.", "")
    prefix = next((p for p in prefixes if any(k.startswith(f"{p}layers.") for k in state)), "")
    half = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    shared = next((state[k] for k in ("model.shared.weight", "shared.weight") if k in state), None)
    if shared is not None:
        half.setdefault("embed_tokens.weight", shared)
    if role == "decoder" and "lm_head.weight" in state:
        half["lm_head.weight"] = state["lm_head.weight"]
        half.setdefault("embed_tokens.weight", state["lm_head.weight"])
    return {k: v for k, v in half.items() if k != "shared.weight"}


def _rename(role: str, name: str) -> str:
    if role == "decoder" and name.startswith("layer_norm."):
        return f"decoder.{name}"
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement.format(role=role), name)
    return name


def _without_tied(source: Path, role: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights without the output projection, which must equal the embedding."""
    import torch

    kept = {k: v for k, v in state.items() if not _NOT_WEIGHTS.search(k)}
    output, embed = kept.pop("final_proj.weight", None), kept.get(f"{role}_frontend.embed.weight")
    if output is not None and embed is not None:
        same = output.data_ptr() == embed.data_ptr() and output.shape == embed.shape
        if not same and not torch.equal(output, embed):
            raise IntegrityError(f"{source}: final_proj.weight is not tied to the embedding")
    return kept


def _check(
    role: str, source: Path, tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    import torch

    def complain(what: str, names: Iterable[str]) -> None:
        first, *rest = sorted(names)
        more = f" (and {len(rest)} more)" if rest else ""
        raise IntegrityError(f"{source} is not this {role}: {what} {first}{more}")

    if missing := shapes.keys() - tensors.keys():
        complain("it lacks", missing)
    if foreign := tensors.keys() - shapes.keys():
        complain("it has an unknown", foreign)
    for name, shape in shapes.items():
        tensor = tensors[name]
        if not isinstance(tensor, torch.Tensor) or str(tensor.dtype) not in _FLOATS:
            complain(
                f"{getattr(tensor, 'dtype', type(tensor).__name__)} instead of floats in", [name]
            )
        if tuple(tensor.shape) != shape:
            complain(f"shape {tuple(tensor.shape)} instead of {shape} in", [name])


def read_pickle(path: Path) -> dict[str, Any]:
    """Map the state dict of a torch file into memory; only tensors are loaded.

    Raises IntegrityError for a file that is damaged, compressed, or would run code.
    """
    import torch

    _check_zip(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile or broken file can raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise IntegrityError(
            f"{path} is broken or holds more than tensors; it was not loaded: {reason[0]}",
            "pull it again; if that fails, do not trust its source",
        ) from error
    for level in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(level), dict):
            content = content[level]
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise IntegrityError(f"{path} does not hold a state dict")
    return content


def _check_zip(path: Path) -> None:
    """Refuse a truncated file, and one that would unpack to more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        message = f"{path} is not a complete torch file: {error}"
        raise IntegrityError(message, "pull it again") from error
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise IntegrityError(f"{path} is compressed, which torch files are not: refused")


def read_folder(folder: Path) -> dict[str, Any]:
    """Map all weights in a folder of the Hub's layout into memory, from one file or several.

    Raises IntegrityError if a file is damaged, holds more than tensors, or is in another folder.
    """
    from lcm_cli.weights import map_file

    state: dict[str, Any] = {}
    for path in _weight_files(folder):
        state |= map_file(path) if path.suffix == ".safetensors" else read_pickle(path)
    return state


def _weight_files(folder: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin", "model.pt"):
        if (folder / name).is_file() or (folder / f"{name}.index.json").is_file():
            return weight_parts(folder / name)
    raise IntegrityError(
        f"{folder} has neither model.safetensors nor pytorch_model.bin nor model.pt"
    )


def _check_port(folder: Path) -> None:
    """Refuse an M2M-100 with settings that make it another function of the same tensors."""
    usual = {"activation_function": "relu", "scale_embedding": True}
    config = usual | _json(folder / "config.json")
    for key, value in {"model_type": "m2m_100", **usual}.items():
        if config.get(key) != value:
            found = config.get(key)
            raise IntegrityError(f"{folder / 'config.json'}: {key} is {found!r}, not {value!r}")


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{path} is not valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}
