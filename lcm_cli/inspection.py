"""Reports on documents, concepts, checkpoints, cards and weights, for `lcm inspect`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcm_cli import documents
from lcm_cli.documents.kinds import HEAD, sniff
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.headers import count_numbers, read_entries, read_header
from lcm_cli.hub.layouts import read_json, weight_parts
from lcm_cli.hub.locate import checkpoint_in
from lcm_cli.schema import nearest

if TYPE_CHECKING:
    from lcm_cli.hub.locate import AdapterFiles

# safetensors' types: bytes per number, and the exponent bits, all set in NaN and infinity
_FLOATS = {"F64": (8, 0x7FF << 52), "F32": (4, 0x7F800000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}
_BLOCK = 1 << 24  # numbers examined at a time


def inspect(target: str) -> dict[str, Any]:
    """Return a report on `target` as plain data, whose keys depend on its `kind`.

    `target` is a file or folder of documents or concepts, a data set, an index, the folder of a
    checkpoint or of a training run, the name of a card, or a .safetensors file of weights. Raises
    NotFoundError if it does not exist, IntegrityError if it is truncated.
    """
    path = Path(target)
    if (config := checkpoint_in(path) / "config.json").is_file():
        usual = "space" if config.parent == path else "model"
        kind = read_json(config).get("kind", usual)
        # In a damaged config it may be a list, which is not a key.
        return _DESCRIBE.get(kind if isinstance(kind, str) else usual, _space)(target)
    if _holds_index(path):
        return _with_licence(_index(path))
    if path.is_file() and path.suffix == ".toml":
        return _card(target)
    if path.is_file() and _is_weights(path):
        return _weights(path)
    try:
        return _with_licence(documents.describe(target))
    except NotFoundError as error:
        return _named(target, error)


def inspect_shares(target: str, count: int) -> tuple[dict[str, Any], LcmError | None]:
    """Return a report on a data set in `count` shares, from its manifests, and what it lacks.

    Unlike `inspect`, it checks the sizes of the files, and does not read them. Raises UsageError if
    `target` is not a data set in shares, IntegrityError if it has another number of shares or a
    file of another size than its manifest lists.
    """
    from lcm_cli.documents import dataset, shares

    folder = Path(target)
    if (division := shares.read_division(folder)) is None:
        raise UsageError(f"{target} is not a data set in shares", "leave out --expect")
    if division.count != count:
        raise IntegrityError(f"{target} is divided into {division.count} shares, not {count}")
    found = shares.tally(folder, count)
    folders = [shares.folder_of(folder, index) for index in found.finished]
    read = [(each, dataset.read_manifest(each)) for each in folders]
    manifests = [(each, manifest) for each, manifest in read if manifest is not None]
    report = {
        "path": target,
        "kind": "shares",
        "shares": {"count": count, **found._asdict()},
        "shards": sum(len(dataset.check_shards(*each)) for each in manifests),
        "bytes": sum(shard.bytes for _, manifest in manifests for shard in manifest.shards),
        "space": asdict(division.space),
        "dtype": division.dtype,
        "documents": sum(manifest.documents for _, manifest in manifests),
        "concepts": sum(manifest.concepts for _, manifest in manifests),
    }
    return report, shares.incomplete(folder, found)


def _holds_index(path: Path) -> bool:
    from lcm_cli.search.index import is_index

    return is_index(path)


def _index(path: Path) -> dict[str, Any]:
    """Describe an index made by `lcm index`."""
    from lcm_cli.search.index import Index

    manifest = Index(path).manifest
    files = [*manifest.shards, manifest.sentences, *filter(None, [manifest.graph])]
    return {
        "path": str(path),
        "kind": "index",
        "space": asdict(manifest.space),
        "dtype": manifest.dtype,
        "documents": manifest.documents,
        "sentences": manifest.rows,
        "graph": manifest.graph is not None,
        "bytes": sum(file.bytes for file in files),
        "lcm_version": manifest.lcm_version,
    }


def _named(name: str, error: NotFoundError) -> dict[str, Any]:
    """Describe the checkpoint called `name`; `error` reports that no file has that name."""
    from lcm_cli.hub.cards import cards

    known = cards()
    if name in known:
        return _card(name)
    near = nearest(name, known)
    hint = f"did you mean {' or '.join(near)}?" if near else error.hint
    raise NotFoundError(f"{error.message}, and no checkpoint has that name", hint)


def _with_licence(report: dict[str, Any]) -> dict[str, Any]:
    """Add the licence of the space that made the concepts, if it has a card."""
    from lcm_cli.hub.cards import card

    try:
        name = (report["space"] or {}).get("name")
        licence = card(name).licence if name else None
    except NotFoundError:
        licence = None
    return report | {"licence": licence}


def _card(name: str) -> dict[str, Any]:
    """Describe a checkpoint by its card, and by its files if they are on this machine."""
    from lcm_cli.hub.cards import card

    found = card(name)
    about = {
        "path": name,
        "kind": found.kind,
        "name": found.name,
        "summary": found.summary,
        "licence": found.licence,
        "licence_note": found.licence_note,
    }
    try:
        here = _DESCRIBE[found.kind](name)
        return here | about | {"present": True}
    except NotFoundError:
        pass
    shapes = {"encoder": found.encoder, "decoder": found.decoder}
    spaces = {"spaces": list(found.spaces)} if found.kind == "speech" else {}
    return about | {"present": False, "languages": found.languages, **spaces, **shapes}


def _space(source: str) -> dict[str, Any]:
    from lcm_cli.hub.locate import locate_space
    from lcm_cli.space import load_space

    files = locate_space(source)
    parts = {"encoder": files.encoder, "decoder": files.decoder}
    adapter = _adapter(files.adapter)
    weights = {name: _weights(path) for name, path in parts.items()}
    dtypes = sum((Counter(found["dtypes"]) for found in weights.values()), Counter[str]())
    return {
        "path": source,
        "kind": "space",
        "name": files.name,
        "licence": files.licence,
        "fingerprint": load_space(source, device="cpu").fingerprint,
        "dim": files.config["encoder"]["model_dim"],
        "languages": list(files.config["languages"]),
        "teacher": _teacher(files.config.get("source", {})),
        "bytes": sum(path.stat().st_size for path in (*parts.values(), files.tokenizer)),
        "parameters": {name: found["parameters"] for name, found in weights.items()},
        "dtypes": dict(dtypes),
        "non_finite": {
            name: count
            for found in (*weights.values(), adapter or {"non_finite": {}})
            for name, count in found["non_finite"].items()
        },
        **{name: files.config[name] for name in parts},
        "adapter": adapter,
    }


def _adapter(files: "AdapterFiles | None") -> dict[str, Any] | None:
    """Describe an adapter; the report's other numbers are those of its base."""
    if files is None:
        return None
    weights = _weights(files.weights)
    numbers = {key: weights[key] for key in ("parameters", "bytes", "non_finite")}
    return asdict(files.config) | numbers


def _teacher(source: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return name and fingerprint of the space that a distilled one learned from."""
    if "teacher" not in source:
        return None
    return {"name": source["teacher"], "fingerprint": source.get("teacher_fingerprint")}


def _model(source: str) -> dict[str, Any]:
    """Describe a concept model, or a quantizer, by its config and its weights."""
    from lcm_cli.hub.locate import locate_model
    from lcm_cli.models.config import TransformerConfig, read_model_config

    files = locate_model(source)
    config = read_model_config(files.config)
    weights = _weights(*weight_parts(files.weights))
    adapter = _adapter(files.adapter)
    stacks = {k: v for k, v in vars(config).items() if isinstance(v, TransformerConfig)}
    # A quantizer has none of these, and only models that denoise are sampled.
    normalizer, sampling = (getattr(config, name, None) for name in ("normalizer", "sampling"))
    return {
        "path": source,
        "kind": "model",
        "architecture": config.architecture,
        "name": files.name,
        "licence": files.licence or None,
        "space": config.space.name or None,
        "fingerprint": config.space.fingerprint or None,
        "dim": config.concept_dim,
        "layers": {name: stack.layers for name, stack in stacks.items()},
        "model_dim": getattr(config, "model_dim", None),
        "max_length": getattr(config, "max_length", None),
        "normalizer": None if normalizer is None else asdict(normalizer),
        "sampling": None if sampling is None else asdict(sampling),
        "prompts": getattr(config, "prompts", {}),
        "end_text": getattr(config, "end_text", ""),
        **{key: weights[key] for key in ("parameters", "dtypes", "bytes")},
        "non_finite": weights["non_finite"] | (adapter["non_finite"] if adapter else {}),
        "adapter": adapter,
    }


def _speech(source: str) -> dict[str, Any]:
    """Describe a speech encoder by its config and its weights."""
    from lcm_cli.hub.locate import locate_speech
    from lcm_cli.speech.config import read_speech_config

    files = locate_speech(source)
    config = read_speech_config(files.config)
    weights = _weights(files.weights)
    return {
        "path": source,
        "kind": "speech",
        "name": config.name,
        "licence": config.licence,
        "spaces": list(config.spaces),
        "fingerprint": config.fingerprint or None,
        "dim": config.encoder.concept_dim,
        "languages": list(config.languages),
        "bytes": weights["bytes"],
        "parameters": {"encoder": weights["parameters"]},
        "dtypes": weights["dtypes"],
        "non_finite": weights["non_finite"],
        "encoder": asdict(config.encoder),
    }


_DESCRIBE = {"space": _space, "model": _model, "speech": _speech}


def _is_weights(path: Path) -> bool:
    """Return whether a .safetensors file holds weights, not concepts."""
    from lcm_cli.documents.tensors import TENSOR

    with path.open("rb") as file:
        if sniff(file.read(HEAD), str(path), path.suffix) != "safetensors":
            return False
        file.seek(0)
        return TENSOR not in read_header(file, str(path))[1]


def _weights(*paths: Path) -> dict[str, Any]:
    """Describe the tensors in the .safetensors files of one checkpoint."""
    metadata: dict[str, str] = {}
    entries: dict[str, dict[str, Any]] = {}
    non_finite: dict[str, int] = {}
    for path in paths:
        if not path.is_file():
            hint = "the checkpoint is incomplete: pull it again"
            raise NotFoundError(f"no such file: {path}", hint)
        start, about, part = read_entries(path)
        non_finite |= _count_non_finite(path, start, part)
        metadata |= about
        entries |= part
    counts = count_numbers(entries)
    return {
        "path": str(paths[0]),
        "kind": "checkpoint",
        "format": "safetensors",
        "bytes": sum(path.stat().st_size for path in paths),
        "tensors": {name: entry["shape"] for name, entry in entries.items()},
        "parameters": sum(counts.values()),
        "dtypes": counts,
        "metadata": metadata,
        "licence": metadata.get("licence") or metadata.get("license"),
        "non_finite": non_finite,
    }


def _count_non_finite(path: Path, start: int, entries: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Return the number of NaN or infinite values of each tensor that has any.

    `start` is the offset of the data. Raises IntegrityError if the file has a wrong size.
    """
    import numpy as np

    whole = start + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    size = path.stat().st_size
    if size != whole:
        raise IntegrityError(
            f"{path} is damaged or cut off: it has {size} bytes and should have {whole}",
            "copy or make the file again",
        )
    data = np.memmap(path, np.uint8, "r", start) if size > start else np.empty(0)
    counts = {name: _non_finite(data, entry) for name, entry in entries.items()}
    return {name: count for name, count in counts.items() if count}


def _non_finite(data: Any, entry: dict[str, Any]) -> int:
    """Count the values of a tensor that are NaN or infinite: all their exponent bits are set."""
    if entry["dtype"] not in _FLOATS:
        return 0
    import numpy as np

    size, mask = _FLOATS[entry["dtype"]]
    start, end = entry["data_offsets"]
    values = data[start:end].view(f"<u{size}")  # the bits: numpy has no bfloat16
    blocks = (values[at : at + _BLOCK] for at in range(0, len(values), _BLOCK))
    return sum(int(np.count_nonzero((block & mask) == mask)) for block in blocks)
