"""The training loop: steps, a log line, evaluation, saving, stopping. Whatever is trained."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lcm_cli.errors import IntegrityError, LcmError
from lcm_cli.files import atomic_path, disk_error
from lcm_cli.training.curves import LOG, LOG_EVERY
from lcm_cli.training.parallel import World
from lcm_cli.training.states import read_state, save_state

BEST = "best"

OnRecord = Callable[[dict[str, Any]], None]


class Trainer(Protocol):
    """Something that can be trained step by step, saved and measured."""

    step: int
    steps: int
    save_every: int
    eval_every: int
    sample_every: int  # 0: never
    keep: int  # saved states
    patience: int  # evaluations without a better one before the run ends; 0: it goes on
    unit: str  # what `train_step` counts: "concepts", "sentences"
    peak_flops: float | None  # of the device, where it is known
    world: World  # the processes that train together

    @property
    def summary(self) -> str:
        """What is trained, on what, in one line."""

    def train_step(self) -> dict[str, Any]:
        """Do one optimizer step; returns what to log, averaged over LOG_EVERY steps.

        What is a tensor is waited for as late as that: the device goes on with the next steps.
        """

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs to go on exactly here."""

    def shards(self) -> dict[str, Any] | None:
        """Return what of the state is cut among processes, if anything is."""

    def restore(self, state: dict[str, Any], shards: Path | None = None) -> None:
        """Go back to where `state` was taken, and `shards` were written."""

    def export(self, folder: Path) -> Path:
        """Write what is trained, ready for use, below `folder`; returns where."""

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Measure; {"eval": {"loss": ...}} decides which weights are the best."""

    def sample(self) -> dict[str, Any]:
        """Return something that what is trained made, to look at."""


@dataclass
class Run:
    """One training run in a folder. `stop` may be set at any time: the step in hand is finished.

    `report` is told every record of the log, `live` every step.
    """

    trainer: Trainer
    folder: Path
    max_minutes: float = math.inf
    report: OnRecord = lambda record: None
    live: OnRecord = lambda record: None
    stop: bool = False
    _seconds: float = 0.0  # spent in earlier sessions
    _best: float = math.inf
    _waited: int = 0  # evaluations since the best one
    _evaluated: int = -1  # the step of the last evaluation
    _started: float = field(default_factory=time.monotonic)

    def train(self) -> bool:
        """Train to the last step, or until stopped; returns whether training is done.

        Saves every `save_every` steps, and at the end. Raises LcmError if the loss is not finite
        or the disk is full; what was saved before stays.
        """
        trainer, recent = self.trainer, _Recent(self.trainer)
        while True:
            last = trainer.step >= trainer.steps
            if last or self._due(trainer.eval_every):
                self._evaluate()
            if last or self._due(trainer.sample_every):
                self._log({"step": trainer.step, **trainer.sample()})
            last = last or 0 < trainer.patience <= self._waited
            if last or trainer.world.any(self.stop or self._overtime()):
                self._save()
                return last
            waiting = recent.add(trainer.train_step())
            logging, saving = trainer.step % LOG_EVERY == 0, self._due(trainer.save_every)
            if waiting and not (logging or saving or self._due(trainer.eval_every)):
                continue
            means = recent.means()
            if not math.isfinite(means.get("loss", 0.0)):  # it lacks where batches were skipped
                raise self._diverged(means["loss"])
            self.live({"step": trainer.step, **means})
            if logging:
                self._log({"step": trainer.step, **recent.take()})
            if saving:
                self._save()

    def resume(self) -> None:
        """Go on from the last saved state.

        Raises UsageError if there is none, IntegrityError if it is damaged or of another recipe.
        """
        state, shards = read_state(self.folder)
        try:
            self.trainer.restore(state["trainer"], shards)
            self._seconds, self._best = state["seconds"], state["best"]
            self._waited, self._evaluated = state["waited"], state["evaluated"]
        except (IntegrityError, RuntimeError, KeyError, ValueError, TypeError) as error:
            hint = f"the recipe must have the shapes the run began with: {self.folder}/recipe.json"
            raise IntegrityError(
                f"cannot resume the run in {self.folder}: {error}", hint
            ) from error
        self._forget_later_records()

    def _due(self, every: int) -> bool:
        return every > 0 and self.trainer.step > 0 and self.trainer.step % every == 0

    def _evaluate(self) -> None:
        step = self.trainer.step
        if self._evaluated == step:  # before the run was stopped
            return
        record = self.trainer.evaluate(self.folder)
        score = record.get("eval", {}).get("loss", math.nan)
        self._evaluated = step
        if score < self._best:
            self._best, self._waited = score, 0
            self.trainer.export(self.folder / BEST)
        elif not math.isnan(score):
            self._waited += 1
        self._log({"step": step, **record})

    def _save(self) -> None:
        trainer = self.trainer
        state = {
            "trainer": trainer.state(),
            "seconds": self._spent(),
            "best": self._best,
            "waited": self._waited,
            "evaluated": self._evaluated,
        }
        shards = trainer.shards()
        save_state(self.folder, trainer.step, state, trainer.keep, trainer.world, shards)
        trainer.export(self.folder)

    def _log(self, record: dict[str, Any]) -> None:
        if len(record) == 1 or not self.trainer.world.leads:  # nothing but the step
            return
        record |= {"minutes": round(self._spent() / 60, 2)}
        path = self.folder / LOG
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise disk_error(error, path) from error
        self.report(record)

    def _forget_later_records(self) -> None:
        """Cut from the log what a kill left behind the saved state: it will be written again."""
        path = self.folder / LOG
        if not path.is_file() or not self.trainer.world.leads:
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        with atomic_path(path, force=True) as temporary:
            kept = "".join(line for line in lines if self._was_before(line))
            temporary.write_text(kept, encoding="utf-8")

    def _was_before(self, line: str) -> bool:
        try:
            record = json.loads(line)
        except ValueError:  # cut off by the kill
            return False
        step = record.get("step", 0)
        if {"eval", "sample"} & set(record):
            return bool(step < self.trainer.step or step == self._evaluated)
        return bool(step <= self.trainer.step)

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
    """Means over the steps since the last log line, the rate, and how long it will take."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._steps = 0
        self._since = time.monotonic()

    def add(self, metrics: dict[str, Any]) -> bool:
        """Add those of a step; returns whether some are not known yet."""
        self._steps += 1
        for key, value in metrics.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + 1
        return any(not isinstance(value, int | float) for value in metrics.values())

    def means(self) -> dict[str, float]:
        trainer = self._trainer
        means = {key: float(value) / self._counts[key] for key, value in self._sums.items()}
        seconds = time.monotonic() - self._since  # after the device has done it all
        means[f"{trainer.unit}_per_second"] = self._sums.get(trainer.unit, 0.0) / seconds
        flops = self._sums.get("flops", 0.0)
        means.pop("flops", None)
        if flops and trainer.peak_flops:
            means["mfu"] = flops / seconds / trainer.peak_flops
        left = trainer.steps - trainer.step
        means["eta_minutes"] = round(left * seconds / self._steps / 60, 2)
        return means

    def take(self) -> dict[str, float]:
        means = self.means()
        self._reset()
        return means
