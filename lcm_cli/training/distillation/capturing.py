"""Capture a teacher's predictions, shard by shard.

Any number of processes can share the work: each captures its own shards, and a shard that exists is
not captured again. So the same command continues after an interruption.

Shapes: D concept dim, K documents, N predicted concepts, T concepts of a shard.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lcm_cli.documents.dataset import LOCK, write_json
from lcm_cli.documents.shares import LOCK_SECONDS, Share
from lcm_cli.errors import LcmError, UsageError
from lcm_cli.files import atomic_path, make_folder
from lcm_cli.headers import read_entries
from lcm_cli.models.interface import Batch, ConceptModel
from lcm_cli.progress import Progress, StartJob
from lcm_cli.training.data.batches import ConceptData, Unit
from lcm_cli.training.distillation.draws import DocumentDraws, Place, places
from lcm_cli.training.distillation.predictions import (
    ABOUT,
    DRAW,
    KEYS,
    STARTS,
    Plan,
    Settings,
    check_folder,
    read_settings,
)
from lcm_cli.training.distillation.teaching import Recorder, predicted, shared_draws
from lcm_cli.weights import StoredPiece, pieces, write_safetensors

_STALE = 3600.0  # seconds after which a partial file is that of a killed process


class Captured(NamedTuple):
    """The state of a capture: its documents, and its shards that are present and missing."""

    documents: int
    shards: int
    missing: int


def begin(folder: Path, settings: Settings, *, force: bool = False) -> Settings:
    """Begin a capture in `folder`, or continue one with the same settings; return these.

    With `force`, replace one with other settings. Raises UsageError if the folder holds anything
    else, LcmError if another process does not finish this step.
    """
    from filelock import FileLock, Timeout

    check_folder(folder)
    make_folder(folder)
    try:
        with FileLock(folder / LOCK, timeout=LOCK_SECONDS):
            return _begin(folder, settings, force)
    except Timeout as error:
        raise LcmError(
            f"{folder} is being written by another process", "wait for it, or choose another name"
        ) from error


def _begin(folder: Path, settings: Settings, force: bool) -> Settings:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if names and ABOUT not in names:
        raise UsageError(
            f"{folder} holds no captured predictions: it has {names[0]} in it",
            "choose another folder",
        )
    for part in folder.glob(".*.part"):
        if time.time() - part.stat().st_mtime > _STALE:
            part.unlink(missing_ok=True)
    found = None if force or not names else read_settings(folder)
    if found is None:
        write_json(folder / ABOUT, asdict(settings))
        for path in folder.glob("*.safetensors"):
            if not path.name.startswith(settings.digest):
                path.unlink()
        return settings
    if found != settings:
        name = next(name for name, value in vars(settings).items() if getattr(found, name) != value)
        raise UsageError(
            f"{folder} holds predictions with a different {name}: "
            f"{getattr(found, name)}, not {getattr(settings, name)}",
            "choose another folder, or add --force to start over",
        )
    return found


class Capture:
    """Captures the shards of a plan that belong to one process."""

    def __init__(
        self, teacher: ConceptModel, data: ConceptData, noise: DocumentDraws | None, plan: Plan
    ) -> None:
        self._teacher, self._data, self._noise, self._plan = teacher.eval(), data, noise, plan
        self._recorder = Recorder(teacher, [])

    def run(self, share: Share, progress: StartJob, *, force: bool = False) -> Captured:
        """Capture the shards of a share, all of them with `force`, else the missing ones.

        Raises LcmError if the disk is full; the shards captured so far are kept.
        """
        plan = self._plan
        own = plan.needed[share.index :: share.count]
        todo = [number for number in own if force or not plan.path(number).is_file()]
        total = sum(len(unit[2]) for number in todo for unit in plan.shards[number])
        with progress("capturing predictions (documents)", total) as advance:
            for number in todo:
                # Another process with the same share may have captured it in the meantime.
                if force or not plan.path(number).is_file():
                    self._write(number, advance)
        present = plan.present()
        documents = sum(int(read_entries(path)[2][KEYS]["shape"][0]) for path in present)
        return Captured(documents, len(present), len(plan.needed) - len(present))

    def _write(self, number: int, advance: Progress) -> None:
        tensors = self._tensors(self._plan.shards[number])
        with atomic_path(self._plan.path(number), force=True) as temporary:
            write_safetensors(temporary, tensors)
        advance(sum(len(unit[2]) for unit in self._plan.shards[number]))

    def _tensors(self, units: list[Unit]) -> dict[str, list[StoredPiece]]:
        keys, counts = list[bytes](), list[int]()
        outputs: list[list[Tensor]] = [[] for _ in range(self._plan.settings.draws)]
        for batch, found in self._documents(units):
            keys += [place.key for place in found]
            counts += [place.count for place in found]
            for draw, parts in enumerate(outputs):
                parts.append(self._outputs(batch, found, draw))
        keys_K2 = torch.from_numpy(np.frombuffer(b"".join(keys), np.int64).reshape(-1, 2).copy())
        counts_K = torch.tensor(counts, dtype=torch.long)
        # A shard may have no documents at all, and cat needs one tensor.
        empty_TD = torch.zeros(0, self._plan.settings.dim)
        weights = {DRAW.format(n): torch.cat([empty_TD, *parts]) for n, parts in enumerate(outputs)}
        about: dict[str, list[StoredPiece]] = {
            KEYS: [keys_K2],
            STARTS: [counts_K.cumsum(0) - counts_K],
        }
        return about | pieces(weights, self._plan.settings.store)

    def _documents(self, units: list[Unit]) -> Iterator[tuple[Batch, list[Place]]]:
        """Yield the distinct documents of row groups in batches, one per row."""
        seen = set[bytes]()
        for batch in self._data.read(units):
            rows = []
            for place in places(batch, self._teacher.config):
                if place.key not in seen:
                    seen.add(place.key)
                    rows.append(place)
            if rows:
                kept = [replace(place, row=number) for number, place in enumerate(rows)]
                yield batch.rows([place.row for place in rows]), kept

    @torch.no_grad()
    def _outputs(self, batch: Batch, found: list[Place], draw: int) -> Tensor:
        """Return the teacher's outputs for all predicted concepts of a batch, (N, D)."""
        teacher = self._teacher
        if self._noise is not None:
            batch = replace(batch, columns=self._noise.columns(batch, found, draw))
        there = batch.to(teacher.device)
        lower = self._plan.settings.precision != "float32"
        dtype = getattr(torch, self._plan.settings.precision) if lower else None
        with (
            self._recorder.active(),
            torch.autocast(teacher.device.type, dtype, enabled=lower),
        ):
            teacher.loss(there, **shared_draws(teacher, there))
        assert self._recorder.output is not None
        return predicted(teacher, there, self._recorder.output).float().cpu()
