"""A document as a .safetensors file: the tensor `concepts` (S, D), and the rest as metadata.

The concepts of a target are the tensor `target_concepts`, those of plans `plan_concepts`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.numpy import load, save

from lcm_cli.documents.arrow import read_space_info
from lcm_cli.documents.document import Document, check_alignment, checked_part, plans_of, target_of
from lcm_cli.documents.kinds import Source
from lcm_cli.errors import IntegrityError
from lcm_cli.headers import damaged, read_header
from lcm_cli.schema import json_value

TENSOR = "concepts"
TARGET = "target_concepts"
PLANS = "plan_concepts"
_DTYPES = ("F16", "F32")


def read_safetensors(file: BinaryIO, source: Source, concepts: bool) -> Iterator[Document]:
    """Yield the document in a .safetensors file, with its concepts if `concepts`.

    Raises IntegrityError if the file is damaged or does not hold a document.
    """
    header, entries = read_header(file, source.name)
    metadata = entries.get("__metadata__") or {}
    entry = entries.get(TENSOR)
    if entry is None:
        raise IntegrityError(
            f"{source.name} has no tensor {TENSOR!r}, so it is not a document",
            f"list its tensors: lcm inspect {source.name}",
        )
    if entry["dtype"] not in _DTYPES or len(entry["shape"]) != 2:
        raise IntegrityError(
            f"{source.name}: {TENSOR} is {entry['dtype']} {entry['shape']}"
            " instead of F16 or F32 with shape [sentences, dimensions]"
        )
    tensors = _load(header + file.read(), source.name) if concepts else {}
    document = Document(
        id=metadata.get("id", source.id),
        lang=metadata.get("lang", ""),
        sentences=_list(metadata, "sentences", str, source.name),
        paragraphs=_list(metadata, "paragraphs", int, source.name),
        concepts=tensors.get(TENSOR),
        origin=source.name,
        space=read_space_info(metadata, source.name),
        split=metadata.get("split", ""),
        times=_times(metadata, source.name),
    )
    check_alignment(document, has_sentences="sentences" in metadata)
    known = document.id, document.lang, source.name
    target = target_of(*known, concepts=tensors.get(TARGET))
    target.sentences = _list(metadata, "target_sentences", str, source.name)
    plans = plans_of(*known, concepts=tensors.get(PLANS))
    plans.sentences = _list(metadata, "plans", str, source.name)
    document.target, document.plans = checked_part(target), checked_part(plans)
    yield document


def write_document(document: Document, about: dict[str, str], path: Path) -> None:
    """Write a document with concepts; `about` is the metadata common to all formats."""
    assert document.concepts is not None
    metadata = about | {"id": document.id, "lang": document.lang}
    if document.split:
        metadata["split"] = document.split
    target, plans, tensors = document.target, document.plans, {TENSOR: document.concepts}
    lists: dict[str, list[Any]] = {
        "sentences": document.sentences,
        "paragraphs": document.paragraphs,
        "times": document.times,
        "target_sentences": target.sentences if target else [],
        "plans": plans.sentences if plans else [],
    }
    for key, value in lists.items():
        if value:
            metadata[key] = json.dumps(value, ensure_ascii=False)
    for name, part in ((TARGET, target), (PLANS, plans)):
        if part is not None and part.concepts is not None:
            tensors[name] = part.concepts
    path.write_bytes(save(tensors, metadata))


def _load(data: bytes, name: str) -> dict[str, Any]:
    try:
        return load(data)
    except (SafetensorError, ValueError) as error:
        raise damaged(name, str(error)) from error


def _list(metadata: dict[str, str], key: str, kind: type, name: str) -> list[Any]:
    values = json_value(metadata.get(key, "[]"), f"{name}: {key} in its metadata")
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise IntegrityError(f"{name}: {key} in its metadata is not a list of {kind.__name__}")
    return values


def _times(metadata: dict[str, str], name: str) -> list[tuple[float, float]]:
    values = _list(metadata, "times", list, name)
    if not all(len(each) == 2 and all(isinstance(t, int | float) for t in each) for each in values):
        raise IntegrityError(f"{name}: times in its metadata is not a list of pairs of numbers")
    return [(float(start), float(end)) for start, end in values]
