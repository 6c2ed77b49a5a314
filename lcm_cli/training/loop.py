"""The training loop of models and spaces: steps, log, evaluation, saving, stopping."""

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
    """Something that can be trained step by step, saved and evaluated."""

    step: int
    steps: int
    save_every: int
    eval_every: int
    sample_every: int  # 0: never
    keep: int  # saved states
    patience: int  # evaluations without improvement before the run ends; 0: no limit
    unit: str  # what `train_step` counts: "concepts", "sentences"
    peak_flops: float | None  # of the device, where it is known
    world: World  # the processes that train together

    @property
    def summary(self) -> str:
        """Model and data, in one line."""

    def train_step(self) -> dict[str, Any]:
        """Do one optimizer step; return its metrics, logged as means over LOG_EVERY steps.

        Metrics may be tensors. They are read only when logged, so that the host need not wait for
        the device before the next steps.
        """

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs to continue exactly."""

    def shards(self) -> dict[str, Any] | None:
        """Return the part of the state that is sharded over processes, if any."""

    def restore(self, state: dict[str, Any], shards: Path | None = None) -> None:
        """Restore `state`, and the sharded part from the folder `shards`."""

    def export(self, folder: Path) -> Path:
        """Write the trained checkpoint below `folder`; return its path."""

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Return scores; {"eval": {"loss": ...}} decides which weights are the best."""

    def sample(self) -> dict[str, Any]:
        """Return a sample of the model's output for the log."""


@dataclass
class Run:
    """One training run in a folder. `stop` may be set at any time: the current step is finished.

    `report` receives every record of the log, `live` the means after every step.
    """

    trainer: Trainer
    folder: Path
    max_minutes: float = math.inf
    report: OnRecord = lambda record: None
    live: OnRecord = lambda record: None
    stop: bool = False
    _seconds: float = 0.0  # spent before the run was resumed
    _best: float = math.inf
    _waited: int = 0  # evaluations since the best one
    _evaluated: int = -1  # the step of the last evaluation
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._recent = _Recent(self.trainer)

    def train(self) -> bool:
        """Train to the last step, or until stopped; return whether training is done.

        Saves every `save_every` steps, and at the end. Raises LcmError if the loss is not finite
        or the disk is full; earlier states are kept.
        """
        trainer, recent = self.trainer, self._recent
        recent.start()
        # A pass more than there are steps: the last one evaluates, samples and saves.
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
            # Reading the tensors of a GPU would make the host wait for the step.
            if waiting and not (logging or saving or self._due(trainer.eval_every)):
                continue
            means = recent.means()
            if not math.isfinite(means.get("loss", 0.0)):  # no loss if all batches were skipped
                raise self._diverged(means["loss"])
            self.live({"step": trainer.step, **means})
            if logging:
                self._log({"step": trainer.step, **recent.take()})
            if saving:
                self._save()

    def resume(self) -> None:
        """Continue from the last saved state.

        Raises UsageError if there is none, IntegrityError if it is damaged or does not suit the
        recipe.
        """
        state, shards = read_state(self.folder)
        try:
            self.trainer.restore(state["trainer"], shards)
            self._seconds, self._best = state["seconds"], state["best"]
            self._waited, self._evaluated = state["waited"], state["evaluated"]
            self._recent.restore(state.get("recent", {}))  # earlier states have none
        except (IntegrityError, RuntimeError, KeyError, ValueError, TypeError) as error:
            hint = f"the recipe must have the run's first shapes: {self.folder}/recipe.json"
            reason = f"its state lacks {error}" if isinstance(error, KeyError) else error
            raise IntegrityError(
                f"cannot resume the run in {self.folder}: {reason}", hint
            ) from error
        self._forget_later_records()

    def _due(self, every: int) -> bool:
        return every > 0 and self.trainer.step > 0 and self.trainer.step % every == 0

    def _evaluate(self) -> None:
        step = self.trainer.step
        if self._evaluated == step:  # evaluated already, before the run was stopped
            return
        record = self.trainer.evaluate(self.folder)
        # Rounding may differ: the first process decides for all, which then export together.
        score = self.trainer.world.agree(record.get("eval", {}).get("loss", math.nan))
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
            "recent": self._recent.state(),
        }
        shards = trainer.shards()
        # The state first: if the export fails, nothing is lost.
        save_state(self.folder, trainer.step, state, trainer.keep, trainer.world, shards)
        trainer.export(self.folder)

    def _log(self, record: dict[str, Any]) -> None:
        if len(record) == 1 or not self.trainer.world.leads:  # only the step
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
        """Cut off log records after the saved state; the steps will be done and logged again."""
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
        except ValueError:  # the run was killed while writing it
            return False
        step = record.get("step", 0)
        # A state saved within the loop precedes the evaluation of its step, which is then repeated.
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
            "lower train.learning_rate with --set and continue with --resume",
        )


class _Recent:
    """Means over the steps since the last log line, the rate, and the time left."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.restore({})

    def start(self) -> None:
        """Start the clock, without the time between the construction of a run and its training."""
        self._since = time.monotonic() - self._before

    def state(self) -> dict[str, Any]:
        """Return the sums so far, so that a resumed run logs the means of an uninterrupted one."""
        return {
            "sums": {key: float(value) for key, value in self._sums.items()},
            "counts": dict(self._counts),
            "steps": self._steps,
            "seconds": time.monotonic() - self._since,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the sums in a `state`; an empty one has none."""
        self._sums: dict[str, Any] = dict(state.get("sums", {}))
        self._counts: dict[str, int] = dict(state.get("counts", {}))
        self._steps: int = state.get("steps", 0)
        self._before: float = state.get("seconds", 0.0)
        self.start()

    def add(self, metrics: dict[str, Any]) -> bool:
        """Add the metrics of a step; return whether some are tensors, not read yet."""
        self._steps += 1
        for key, value in metrics.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + 1
        return any(not isinstance(value, int | float) for value in metrics.values())

    def means(self) -> dict[str, float]:
        trainer = self._trainer
        means = {key: float(value) / self._counts[key] for key, value in self._sums.items()}
        seconds = time.monotonic() - self._since  # float() above waited for the device
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
        self.restore({})
        return means
