"""The training loop: steps, a log line, evaluation, saving, stopping. Whatever is trained."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.files import atomic_path

STATE = "state.pt"
LOG = "metrics.jsonl"
LOG_EVERY = 20  # steps

Report = Callable[[dict[str, Any]], None]


class Trainer(Protocol):
    """Something that can be trained step by step, saved and measured."""

    step: int
    steps: int
    save_every: int
    eval_every: int

    def train_step(self) -> dict[str, float]:
        """Do one optimizer step; returns what to log, summed or averaged over LOG_EVERY steps."""

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs to go on exactly here."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""

    def export(self, folder: Path) -> Path:
        """Write what is trained, ready for use, below `folder`; returns where."""

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Export and measure."""


@dataclass
class Run:
    """One training run in a folder. `stop` may be set at any time: the step in hand is finished."""

    trainer: Trainer
    folder: Path
    max_minutes: float = math.inf
    report: Report = lambda record: None
    stop: bool = False
    _seconds: float = 0.0  # spent in earlier sessions
    _started: float = field(default_factory=time.monotonic)

    def train(self) -> bool:
        """Train to the last step, or until stopped; returns whether the last step was reached.

        Saves every `save_every` steps, and at the end. Raises LcmError if the loss is not finite.
        """
        trainer, recent = self.trainer, _Recent()
        while True:
            last = trainer.step >= trainer.steps
            if last or (trainer.step and trainer.step % trainer.eval_every == 0):
                self._log({"step": trainer.step, **trainer.evaluate(self.folder)})
            if last or self.stop or self._overtime():
                self._save()
                trainer.export(self.folder)
                return last
            metrics = trainer.train_step()
            if not math.isfinite(metrics["loss"]):
                raise self._diverged(metrics["loss"])
            recent.add(metrics)
            if trainer.step % LOG_EVERY == 0:
                self._log({"step": trainer.step, **recent.take()})
            if trainer.step % trainer.save_every == 0:
                self._save()

    def resume(self) -> None:
        """Go on from the saved state.

        Raises UsageError if there is none, IntegrityError if it is damaged.
        """
        path = self.folder / STATE
        if not path.is_file():
            raise UsageError(f"nothing to resume: no {path}", "run without --resume to start")
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            self.trainer.restore(state["trainer"])
        except (RuntimeError, KeyError, EOFError, OSError, ValueError) as error:
            hint = "the recipe must have the shapes the run began with"
            raise IntegrityError(f"cannot resume from {path}: {error}", hint) from error
        self._seconds = state["seconds"]

    def _save(self) -> None:
        with atomic_path(self.folder / STATE, force=True) as temporary:
            torch.save({"trainer": self.trainer.state(), "seconds": self._spent()}, temporary)

    def _log(self, record: dict[str, Any]) -> None:
        record |= {"minutes": round(self._spent() / 60, 2)}
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.report(record)

    def _spent(self) -> float:
        return self._seconds + time.monotonic() - self._started

    def _overtime(self) -> bool:
        return time.monotonic() - self._started > 60 * self.max_minutes

    def _diverged(self, loss: float) -> LcmError:
        return LcmError(
            f"the loss is {loss} at step {self.trainer.step}; the last good state is kept",
            "lower train.learning_rate with --set and go on with --resume",
        )


class _Recent:
    """Means over the steps since the last log line, and the rate."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0
        self._since = time.monotonic()

    def add(self, metrics: dict[str, float]) -> None:
        self._count += 1
        for key, value in metrics.items():
            self._sums[key] = self._sums.get(key, 0.0) + value

    def take(self) -> dict[str, float]:
        seconds = time.monotonic() - self._since
        means = {key: value / self._count for key, value in self._sums.items()}
        means["sentences_per_second"] = self._sums.get("sentences", 0.0) / seconds
        self._reset()
        return means
