"""A teacher's predictions for every document of the training data, in a Parquet file.

    key          digest of the document's concepts
    predictions  the model's outputs for concepts 1 .. S - 1, float16, normalized as in the loss

This works for models whose predictions depend only on the document: Base-LCM and SONAR-LLM. The
others predict from noise, or from a codebook that is drawn anew in each step.

Shapes: B documents, S concepts, D concept dim, N concepts of all documents.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.files import atomic_path
from lcm_cli.models.base_lcm import BaseLCM
from lcm_cli.models.interface import Batch, ConceptModel
from lcm_cli.progress import StartJob
from lcm_cli.training.data_options import DataOptions, as_data_set
from lcm_cli.training.prepare import EndlessData
from lcm_cli.version import __version__

KIND = "predictions"
DIGEST = 16  # bytes
STEPS = 8  # the key rounds numbers to multiples of a concept's largest / STEPS
# Options that decide which documents are used, and how they are cut.
_SHAPING = ("wrap", "plan", "min_sentences", "max_sentences", "filter", "prefix", "suffix")


def check_capturable(architecture: str) -> None:
    """Raise UsageError for models whose predictions cannot be captured."""
    if architecture not in ("base", "sonar_llm"):
        raise UsageError(
            f"predictions of a {architecture} model cannot be captured: they differ in each step",
            "capture base or sonar_llm models; for others, leave distill.capture out",
        )


def model_fingerprint(model: ConceptModel) -> str:
    """Return a digest of a model's weights and normalizer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:DIGEST]


def data_fingerprint(options: DataOptions, data: EndlessData) -> str:
    """Return a digest of the options that shape the documents, and of the data's summary."""
    told = asdict(options)
    kept = {name: told[name] for name in _SHAPING} | {"data": data.summary}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:DIGEST]


def capture(
    teacher: BaseLCM,
    data: EndlessData,
    options: DataOptions,
    path: Path,
    *,
    steps: int,
    progress: StartJob,
    force: bool = False,
) -> int:
    """Write the teacher's predictions for the documents of the first `steps` batches.

    It stops once the batches have contained every document. Returns the number of documents.
    Raises UsageError if `path` exists, unless `force`, and LcmError if the disk is full.
    """
    epochs = max(-(-1 // min(as_data_set(entry).weight, 1.0)) for entry in options.train)
    # Epochs differ by a few batches, so one extra epoch makes sure that none is missed.
    count = min(steps, (int(epochs) + 1) * data.batches_per_epoch)
    about = {
        "lcm.version": __version__,
        "lcm.kind": KIND,
        "lcm.teacher": model_fingerprint(teacher),
        "lcm.data": data_fingerprint(options, data),
    }
    vectors = pa.list_(pa.list_(pa.float16(), teacher.config.concept_dim))
    fields = [pa.field("key", pa.binary(DIGEST)), pa.field("predictions", vectors)]
    layout, seen = pa.schema(fields, metadata=about), set[bytes]()
    teacher.eval()
    with (
        atomic_path(path, force=force) as temporary,
        pq.ParquetWriter(temporary, layout) as writer,
        progress("capturing predictions", count) as advance,
    ):
        for number in range(count):
            if found := _predictions(teacher, data.batch(number), seen):
                writer.write_batch(_table(found, layout))
            seen |= found.keys()
            advance(1)
    return len(seen)


@torch.inference_mode()
def _predictions(
    teacher: BaseLCM, batch: Batch, seen: set[bytes]
) -> dict[bytes, NDArray[np.float16]]:
    """Return the predictions, (S - 1, D), for documents of a batch that are not in `seen`."""
    keys = {place: key for place, key in documents(batch) if key not in seen}
    if not keys:
        return {}
    there = batch.to(teacher.device)
    out_BSD = teacher(teacher.normalized(there.concepts_BSD), segments_BS=there.segments_BS)
    half_BSD = out_BSD.half().cpu().numpy()
    return {key: half_BSD[row, start : end - 1] for (row, start, end), key in keys.items()}


def _table(found: dict[bytes, NDArray[np.float16]], layout: pa.Schema) -> pa.RecordBatch:
    lengths = [len(part) for part in found.values()]
    inner = layout.field("predictions").type.value_type
    flat = pa.array(np.concatenate(list(found.values())).ravel(), pa.float16())
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=inner)
    ends = pa.array(np.cumsum([0, *lengths]), pa.int32())
    lists = pa.ListArray.from_arrays(ends, vectors, type=layout.field("predictions").type)
    return pa.record_batch([pa.array(list(found), pa.binary(DIGEST)), lists], schema=layout)


def documents(batch: Batch) -> Iterator[tuple[tuple[int, int, int], bytes]]:
    """Yield the place of each document in a batch (row, first concept, end), and its key."""
    x_BSD = batch.concepts_BSD.float().cpu().numpy()
    for row, length in enumerate(batch.lengths_B.tolist()):
        starts = [0]
        if batch.segments_BS is not None:
            segments_S = batch.segments_BS[row, :length].cpu()
            starts = [0, *((segments_S.diff() != 0).nonzero()[:, 0] + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            if end > start:
                yield (row, start, end), _key(x_BSD[row, start:end])


def _key(x_SD: NDArray[np.float32]) -> bytes:
    # Affixes are encoded anew for each run, and their last digits differ between machines; coarsely
    # rounded numbers hardly ever do.
    largest = np.abs(x_SD).max(axis=-1, keepdims=True)
    coarse = np.rint(STEPS * x_SD / np.maximum(largest, 1e-30)).astype(np.int8)
    return hashlib.sha256(coarse.tobytes()).digest()[:DIGEST]


class CapturedPredictions:
    """The predictions in a file, held in memory as float16."""

    def __init__(self, path: Path, teacher: str, data: str) -> None:
        """Read the predictions of the teacher and for the data with these fingerprints.

        Raises NotFoundError, or IntegrityError for a damaged file, another teacher or other data.
        """
        again = "capture them again: lcm distill RECIPE --capture --force"
        if not path.is_file():
            first = "capture them first: lcm distill RECIPE --capture"
            raise NotFoundError(f"no captured predictions: {path}", first)
        try:
            file = pq.ParquetFile(path)
            about = file.schema_arrow.metadata or {}
            if about.get(b"lcm.kind") != KIND.encode():
                raise IntegrityError(f"{path} does not hold captured predictions", again)
            for what, fingerprint in (("teacher", teacher), ("data", data)):
                found = about.get(f"lcm.{what}".encode(), b"").decode()
                if found != fingerprint:
                    name = "teacher" if what == "teacher" else "data set"
                    raise IntegrityError(
                        f"{path} is of another {name} ({found}) than the recipe's ({fingerprint})",
                        again,
                    )
            table = file.read()
        except (pa.ArrowException, OSError) as error:
            raise IntegrityError(f"{path} is damaged: {error}", again) from error
        self.path = path
        self._read(table)

    def _read(self, table: pa.Table) -> None:
        self._places: dict[bytes, tuple[int, int, int]] = {}
        self._chunks: list[NDArray[np.float16]] = []
        for number, batch in enumerate(table.to_batches()):
            lists = batch.column("predictions")
            width = lists.type.value_type.list_size
            ends = lists.offsets.to_numpy()
            flat = lists.values.flatten().to_numpy(zero_copy_only=False)
            self._chunks.append(flat.reshape(-1, width))
            for key, start, end in zip(
                batch.column("key").to_pylist(), ends[:-1], ends[1:], strict=True
            ):
                self._places[key] = (number, int(start), int(end))

    def __call__(self, batch: Batch) -> Tensor:
        """Return the teacher's output after each concept of a batch, (B, S, D), 0 after the last.

        Raises IntegrityError if a document is not in the file.
        """
        out_BSD = np.zeros(batch.concepts_BSD.shape, np.float32)
        for (row, start, end), key in documents(batch):
            if key not in self._places:
                raise IntegrityError(
                    f"{self.path} lacks a document of the data, which have changed since",
                    "capture them again: lcm distill RECIPE --capture --force",
                )
            chunk, first, last = self._places[key]
            out_BSD[row, start : end - 1] = self._chunks[chunk][first:last]
        return torch.from_numpy(out_BSD).to(batch.concepts_BSD.device)
