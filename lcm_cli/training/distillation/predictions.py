"""Captured predictions: a teacher's outputs for every training document, in a folder of shards.

    capture.json                the teacher, the data and the noise that the outputs belong to
    DIGEST-NUMBER.safetensors   a shard: the documents of consecutive row groups of the data
        keys     (K, 2)         the key of each document, as two integers
        starts   (K,)           where its outputs start
        draw.0   (T, D)         outputs for the first draw; float16, or int8 with draw.0.scale (T,)
        draw.1   ...

A shard is complete or absent. Its name contains a digest of capture.json, so shards of different
captures never mix. Training holds only the keys in memory and reads outputs from the files.

Shapes: B rows, S concepts, D concept dim, K documents, T concepts of a shard.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.headers import SCALE, damaged, read_entries
from lcm_cli.models.config import AnyConfig
from lcm_cli.models.interface import Batch, ConceptModel
from lcm_cli.schema import counted, json_value, parse
from lcm_cli.training.data.batches import ConceptData, Unit
from lcm_cli.training.distillation.draws import DocumentDraws, Place, places
from lcm_cli.training.distillation.teaching import OUTPUTS
from lcm_cli.training.parallel import MicroBatches, Share

VERSION = 1
SHARD_BYTES = 64 << 20  # of outputs in float16: about four row groups of `lcm embed`
DIGITS = 16  # of the digests of teacher and data
ABOUT = "capture.json"
KEYS, STARTS, DRAW = "keys", "starts", "draw.{}"
FIRST = "capture them first: lcm distill RECIPE --capture"
AGAIN = "capture them again: lcm distill RECIPE --capture --force"
_SAME = {"teacher": "teacher", "data": "data set", "noise": "noise setting"}


@dataclass(frozen=True)
class Settings:
    """The content of capture.json: everything that determines the shards and their outputs.

    `teacher` and `data` are digests. `noise` and `seed` determine the draws of a diffusion model,
    `shard_concepts` how many concepts a shard holds, rounded up to whole row groups.
    """

    version: int
    teacher: str
    data: str
    dim: int
    noise: dict[str, Any]
    seed: int
    draws: int
    store: Literal["float16", "int8"]
    precision: str
    shard_concepts: int

    @property
    def digest(self) -> str:
        """A digest of all settings, in the names of the shards."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_folder(folder: Path) -> None:
    """Raise UsageError if `folder` is a file, as earlier versions wrote."""
    if folder.is_file():
        raise UsageError(
            f"{folder} is a file, but predictions are captured in a folder",
            "name a folder and capture again: "
            "lcm distill RECIPE --set distill.capture=FOLDER --capture",
        )


def read_settings(folder: Path) -> Settings | None:
    """Return the settings of the capture in `folder`, None if there is none.

    Raises UsageError for a file, IntegrityError for damaged settings or another version.
    """
    check_folder(folder)
    path = folder / ABOUT
    if not path.is_file():
        return None
    data = json_value(path.read_bytes(), str(path))
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise IntegrityError(f"{path} is not version {VERSION} of this file", AGAIN)
    return parse(Settings, data, str(path))


def check_same(folder: Path, found: Settings, wanted: Settings) -> None:
    """Raise IntegrityError unless a student with the settings `wanted` can learn from `found`.

    Seed, store and precision are those of the capture, whatever the recipe says.
    """
    for name, what in _SAME.items():
        has, wants = getattr(found, name), getattr(wanted, name)
        if has != wants:
            raise IntegrityError(
                f"{folder} was captured with a different {what}: {has}, but the recipe has {wants}",
                AGAIN,
            )
    if found.draws != wanted.draws:
        raise IntegrityError(
            f"{folder} holds {counted(found.draws, 'draw')} per document, "
            f"but distill.draws = {wanted.draws}",
            f"set distill.draws = {found.draws}, or {AGAIN}",
        )


@dataclass(frozen=True)
class Plan:
    """The shards of a capture: the row groups of each, and which of them a run needs."""

    folder: Path
    settings: Settings
    shards: list[list[Unit]]
    needed: list[int]

    @classmethod
    def of(cls, folder: Path, settings: Settings, data: ConceptData, batches: int) -> "Plan":
        """Return the plan for a run of `batches` steps."""
        units = data.units()
        sizes = np.array([data.size(unit) for unit in units])
        starts = sizes.cumsum() - sizes
        shards: dict[int, list[Unit]] = {}
        # A shard takes the row groups that begin in its range of concepts.
        for unit, number in zip(units, (starts // settings.shard_concepts).tolist(), strict=True):
            shards.setdefault(number, []).append(unit)
        used, parts = data.used(batches), list(shards.values())
        needed = [n for n, part in enumerate(parts) if any(unit[:2] in used for unit in part)]
        return cls(folder, settings, parts, needed)

    def path(self, number: int) -> Path:
        """Return the path of a shard."""
        return self.folder / f"{self.settings.digest}-{number:05d}.safetensors"

    def missing(self) -> list[int]:
        """Return the needed shards that have not been captured yet."""
        return [number for number in self.needed if not self.path(number).is_file()]

    def present(self) -> list[Path]:
        """Return the paths of the needed shards that have been captured."""
        return [path for path in map(self.path, self.needed) if path.is_file()]


def model_fingerprint(model: ConceptModel) -> str:
    """Return a digest of a model's weights and normalizer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def data_fingerprint(data: ConceptData, max_length: int) -> str:
    """Return a digest of the options that shape the documents, and of all row groups' sizes."""
    shaping = ("plan", "min_sentences", "max_sentences", "filter", "prefix", "suffix")
    facts: dict[str, Any] = {name: getattr(data.options, name) for name in shaping}
    facts["wrap"] = min(data.options.wrap, max_length)
    facts["groups"] = [(len(unit[2]), data.size(unit)) for unit in data.units()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:DIGITS]


class _Shard:
    """The places of a shard's tensors in its file."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path, self._dim = path, settings.dim
        self._header_bytes, _, self._entries = read_entries(path)
        ends = [entry["data_offsets"][1] for entry in self._entries.values()]
        if path.stat().st_size != self._header_bytes + max(ends, default=0):
            raise damaged(str(path), f"it has {path.stat().st_size} bytes")
        draws = [DRAW.format(number) for number in range(settings.draws)]
        if missing := {KEYS, STARTS, *draws} - set(self._entries):
            raise damaged(str(path), f"it has no {min(missing)}")
        self.store = settings.store

    def documents(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the key of each document, (K, 2), and where its outputs start, (K,)."""
        count = self._entries[KEYS]["shape"][0]
        # Stored as int64, since the writer knows no unsigned type; `_find` compares without signs.
        keys = self._numbers(KEYS, np.uint64, 0, 2 * count).reshape(-1, 2)
        return keys, self._numbers(STARTS, np.int64, 0, count)

    def outputs(self, draw: int, start: int, count: int) -> NDArray[Any]:
        """Return consecutive outputs of a draw, (count, D), as float16, or float32 from int8."""
        name, first, size = DRAW.format(draw), start * self._dim, count * self._dim
        if self.store == "float16":
            return self._numbers(name, np.float16, first, size).reshape(count, self._dim)
        numbers = self._numbers(name, np.int8, first, size).reshape(count, self._dim)
        scales = self._numbers(name + SCALE, np.float16, start, count).astype(np.float32)
        return numbers * scales[:, None]

    def _numbers(self, name: str, dtype: Any, first: int, count: int) -> NDArray[Any]:
        # Reads, rather than a memory map: mapped pages would count as this process's memory, and
        # network file systems serve a page fault for each 4 kB of a document.
        size = np.dtype(dtype).itemsize
        place = self._header_bytes + self._entries[name]["data_offsets"][0] + first * size
        found = np.fromfile(self._path, dtype, count, offset=place)
        if len(found) != count:
            raise damaged(str(self._path), f"{name} ends early")
        return found


class CapturedPredictions:
    """Looks up the outputs of a teacher for documents in the shards of a capture.

    Holds a key and a place per document, 28 bytes.
    """

    def __init__(self, plan: Plan) -> None:
        """Read the keys of all shards that a run needs.

        Raises IntegrityError if any of them is missing or damaged.
        """
        if missing := plan.missing():
            raise IntegrityError(
                f"{plan.folder} lacks {len(missing)} of the {len(plan.needed)} shards of "
                f"predictions that the run needs, beginning with number {missing[0]}",
                "capture the missing ones: lcm distill RECIPE --capture",
            )
        self._folder, self.settings = plan.folder, plan.settings
        paths = plan.present()
        try:
            self._shards = [_Shard(path, plan.settings) for path in paths]
            found = [shard.documents() for shard in self._shards]
        except (OSError, LcmError) as error:
            raise _unreadable(error) from error
        # Sorted by the first half of the keys, for `_find`.
        keys_K2 = np.concatenate([keys for keys, _ in found])
        order_K = keys_K2[:, 0].argsort(kind="stable")
        self._keys_K2 = keys_K2[order_K]
        numbers = np.repeat(np.arange(len(found), dtype=np.int32), [len(keys) for keys, _ in found])
        self._shard_K = numbers[order_K]
        self._start_K = np.concatenate([starts for _, starts in found])[order_K]

    def outputs(self, batch: Batch, places: Sequence[Place], draw: int) -> Tensor:
        """Return the teacher's output for each predicted concept of a batch, (B, S, D), else 0.

        Raises IntegrityError if a document has not been captured.
        """
        dtype = np.float16 if self.settings.store == "float16" else np.float32
        out_BSD = np.zeros(batch.concepts_BSD.shape, dtype)
        for place in places:
            row = self._find(place.key)
            shard, start = self._shards[self._shard_K[row]], int(self._start_K[row])
            try:
                out_BSD[place.where] = shard.outputs(draw, start, place.count)
            except (OSError, LcmError) as error:
                raise _unreadable(error) from error
        return torch.from_numpy(out_BSD)

    def _find(self, key: bytes) -> int:
        """Return the row of a key; the first half is searched, the second half compared."""
        high, low = np.frombuffer(key, np.uint64)
        firsts_K = self._keys_K2[:, 0]
        row = int(firsts_K.searchsorted(high))
        while row < len(firsts_K) and firsts_K[row] == high:
            if self._keys_K2[row, 1] == low:
                return row
            row += 1
        raise IntegrityError(
            f"{self._folder} lacks a document of the data, which have changed since", AGAIN
        )


def _unreadable(error: OSError | LcmError) -> IntegrityError:
    what = error.message if isinstance(error, LcmError) else str(error)
    return IntegrityError(
        f"captured predictions cannot be read: {what}",
        "delete the damaged shard and capture it again: lcm distill RECIPE --capture",
    )


def check_capturable(architecture: str, draws: int) -> None:
    """Raise an LcmError for models that cannot be captured, or only without `draws`."""
    if architecture == "quant":
        raise UsageError(
            "predictions of a quant model cannot be captured: they differ in each step",
            "capture base, sonar_llm, one_tower or two_tower models; "
            "for others, leave distill.capture out",
        )
    if architecture in ("base", "sonar_llm") and draws > 1:
        raise IntegrityError(
            f"distill.draws = {draws}: a {architecture} model has one prediction per document, "
            "without noise",
            "leave distill.draws out",
        )


class TaughtData:
    """Training data whose batches also hold draws of noise and a teacher's outputs for them.

    The draw changes from epoch to epoch, and repeats after `draws` of them. The batch of the next
    step is made while this one is used.
    """

    def __init__(
        self,
        data: ConceptData,
        config: AnyConfig,
        noise: DocumentDraws | None,
        captured: CapturedPredictions | None,
        draws: int = 1,
    ) -> None:
        self._data, self._config, self._draws = data, config, draws
        self._noise, self._captured = noise, captured
        self._made: dict[tuple[int, Share], Future[MicroBatches]] = {}
        self._maker = ThreadPoolExecutor(1, "taught")

    @property
    def summary(self) -> str:
        """The summary of the data."""
        return self._data.summary

    def validation(self, limit: int) -> list[Batch]:
        """Return at most `limit` held-out documents, which have no captured outputs."""
        return self._data.validation(limit)

    def batch(self, number: int) -> Batch:
        """Return the batch of a step."""
        return self.micro_batches(number, Share()).own[0]

    def micro_batches(self, number: int, share: Share) -> MicroBatches:
        """Return one process's share of the batch of a step."""
        wanted = [(number, share), (number + 1, share)]
        for one in wanted:
            if one not in self._made:
                self._made[one] = self._maker.submit(self._make, *one)
        for old in [other for other in self._made if other not in wanted]:
            self._made.pop(old).cancel()
        return self._made.pop((number, share)).result()

    def _make(self, number: int, share: Share) -> MicroBatches:
        draw = self._data.epoch(number) % self._draws
        batches = self._data.micro_batches(number, share)
        return replace(batches, own=[self.taught(batch, draw) for batch in batches.own])

    def taught(self, batch: Batch, draw: int) -> Batch:
        """Return a batch with the noise of a draw and the teacher's outputs for it."""
        found = places(batch, self._config)
        columns = dict(batch.columns)
        if self._noise is not None:
            columns |= self._noise.columns(batch, found, draw)
        if self._captured is not None:
            columns[OUTPUTS] = self._captured.outputs(batch, found, draw)
        return replace(batch, columns=columns)
