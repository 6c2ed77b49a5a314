"""A space whose callers share batches.

Every request runs in a thread of its own and calls `encode` and `decode` as on any space. The calls
become jobs in a queue; a single thread merges compatible jobs and runs the networks. docs/serve.md
has measurements.

Shapes: S sentences, D concept dim.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lcm_cli.progress import Progress
from lcm_cli.serving.metrics import Metrics
from lcm_cli.space import DecodeOptions, Encoded, Space, Text, Truncation

WAIT = 0.004  # seconds, at most, that a batch waits for the jobs of other requests
# Longer calls are cut into several jobs, so that short ones need not wait for the whole.
ENCODE_JOB, DECODE_JOB = 256, 64  # sentences; sentences times languages
ENCODE_BATCH, DECODE_BATCH = 512, 256


class OutOfTimeError(Exception):
    """The time limit of a request has passed, or its client has disconnected."""


class StoppedError(Exception):
    """The space has been closed."""


class Deadline:
    """The time by which a request must be done; `cancel` brings it forward to now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """The seconds left, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def cancel(self) -> None:
        """Make the deadline pass now."""
        self._end = 0.0

    def check(self) -> None:
        """Raise OutOfTimeError if the deadline has passed."""
        if not self.left:
            raise OutOfTimeError


# The deadline of the request that runs in this thread.
DEADLINE: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@dataclass(eq=False)
class _Job:
    """A call of encode or decode. Jobs with equal keys can be merged; `size` counts sentences."""

    key: Hashable
    size: int
    deadline: Deadline | None
    done: "Future[Any]" = field(default_factory=Future)


@dataclass(eq=False)
class _Encoding(_Job):
    sentences: Sequence[str] = ()
    codes: Sequence[str] = ()


@dataclass(eq=False)
class _Decoding(_Job):
    concepts_SD: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    to: Sequence[str] = ()
    options: DecodeOptions = field(default_factory=DecodeOptions)
    limits: Sequence[int] = ()


class SharedSpace(Space):
    """A space that merges the calls of all threads into batches, which its own thread runs."""

    def __init__(self, space: Space, metrics: Metrics | None = None) -> None:
        super().__init__(space.files, space.device, space.precision, space.batch_tokens)
        self.metrics = metrics or Metrics()
        self.metrics.queue = self.waiting
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._requests = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="lcm-space", daemon=True)
        self._thread.start()

    def warm_up(self) -> None:
        """Load everything that would otherwise be loaded at first use."""
        _ = self.fingerprint, self.tokenizer, self.encoder, self.decoder
        lang = self.languages[0]
        self.decode(self.encode(["."], lang).concepts, [lang])

    def close(self) -> None:
        """End the thread after its current batch; waiting jobs fail with StoppedError."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def waiting(self) -> int:
        """Return the number of jobs in the queue."""
        return len(self._jobs)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Announce calls from this thread, so that batches may wait for them briefly."""
        with self._changed:
            self._requests += 1
        try:
            yield
        finally:
            with self._changed:
                self._requests -= 1
                self._changed.notify_all()

    def encode(
        self,
        sentences: Sequence[str],
        lang: str | Sequence[str],
        progress: Progress | None = None,
    ) -> Encoded:
        """Encode as any space does, in batches shared with other threads."""
        codes = [lang] * len(sentences) if isinstance(lang, str) else list(lang)
        parts = []
        for start in range(0, len(sentences), ENCODE_JOB):
            end = start + ENCODE_JOB
            own = sentences[start:end]
            job = _Encoding(
                "encode", len(own), DEADLINE.get(), sentences=own, codes=codes[start:end]
            )
            found: Encoded = self._result(job)
            parts.append(_shifted(found, start))
            if progress:
                progress(len(own))
        if not parts:
            return Encoded(np.empty((0, self.dim), dtype=np.float32), [])
        truncated = [cut for part in parts for cut in part.truncated]
        return Encoded(np.concatenate([part.concepts for part in parts]), truncated)

    def decode(
        self,
        concepts: np.ndarray,
        to: Sequence[str],
        options: DecodeOptions | None = None,
        *,
        limits: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, list[list[Text]]]:
        """Decode as any space does, in batches shared with other threads."""
        self._check(concepts)
        options = options or DecodeOptions()
        most = [options.max_tokens] * len(concepts) if limits is None else list(limits)
        out: dict[str, list[list[Text]]] = {lang: [] for lang in to}
        # The random numbers of a draw depend on the sentence's place in the call.
        step = len(concepts) if options.sample else max(1, DECODE_JOB // max(1, len(to)))
        key = object() if options.sample else ("decode", options, tuple(to))
        for start in range(0, len(concepts) if to else 0, max(1, step)):
            rows_SD = concepts[start : start + step]
            job = _Decoding(
                *(key, len(rows_SD) * len(to), DEADLINE.get()),
                concepts_SD=rows_SD, to=to, options=options, limits=most[start : start + step],
            )  # fmt: skip
            for lang, texts in self._result(job).items():
                out[lang] += texts
            if progress:
                progress(job.size)
        return out

    def _result(self, job: _Job) -> Any:
        """Queue a job and wait for its result."""
        if job.deadline:
            job.deadline.check()
        with self._changed:
            if self._stopped:
                raise StoppedError
            self._jobs.append(job)
            self._changed.notify_all()
        return job.done.result()

    def _work(self) -> None:
        while jobs := self._next_batch():
            late = [job for job in jobs if job.deadline and not job.deadline.left]
            for job in late:
                job.done.set_exception(OutOfTimeError())
            if batch := [job for job in jobs if job not in late]:
                self._do(batch)
        for job in self._jobs:
            job.done.set_exception(StoppedError())
        self._jobs.clear()

    def _next_batch(self) -> list[_Job]:
        """Wait for jobs; return the first and all that can be merged with it, or [] at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._stopped)
            if self._stopped:
                return []
            # A lone request does not wait; several wait briefly until each of them has a job.
            self._changed.wait_for(self._is_full, WAIT)
            first = self._jobs[0]
            most = ENCODE_BATCH if isinstance(first, _Encoding) else DECODE_BATCH
            batch: list[_Job] = []
            rest: deque[_Job] = deque()
            size = 0
            for job in self._jobs:
                fits = not batch or size + job.size <= most
                if job.key == first.key and fits:
                    batch.append(job)
                    size += job.size
                else:
                    rest.append(job)
            self._jobs = rest
            return batch

    def _is_full(self) -> bool:
        return self._stopped or len(self._jobs) >= self._requests

    def _do(self, jobs: Sequence[_Job]) -> None:
        """Run jobs in one batch; if that fails, each alone, so that only the faulty ones fail."""
        try:
            results = self._run(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].done.set_exception(error)
                return
            for job in jobs:
                self._do([job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.done.set_result(result)

    def _run(self, jobs: Sequence[_Job]) -> list[Any]:
        size = sum(job.size for job in jobs)
        kind = "encode" if isinstance(jobs[0], _Encoding) else "decode"
        self.metrics.batches.observe(size, kind=kind)
        self.metrics.jobs.observe(len(jobs), kind=kind)
        if kind == "encode":
            found = self._encoded([job for job in jobs if isinstance(job, _Encoding)])
            self.metrics.encoded.add(size)
            return found
        texts = self._decoded([job for job in jobs if isinstance(job, _Decoding)])
        self.metrics.decoded.add(size)
        return texts

    def _encoded(self, jobs: Sequence[_Encoding]) -> list[Encoded]:
        sentences = [sentence for job in jobs for sentence in job.sentences]
        codes = [code for job in jobs for code in job.codes]
        found = super().encode(sentences, codes)
        parts, start = [], 0
        for job in jobs:
            end = start + job.size
            own = [cut for cut in found.truncated if start <= cut.index < end]
            parts.append(_shifted(Encoded(found.concepts[start:end], own), -start))
            start = end
        return parts

    def _decoded(self, jobs: Sequence[_Decoding]) -> list[dict[str, list[list[Text]]]]:
        first = jobs[0]
        concepts_SD = np.concatenate([job.concepts_SD for job in jobs])
        limits = [limit for job in jobs for limit in job.limits]
        found = super().decode(concepts_SD, first.to, first.options, limits=limits)
        parts, start = [], 0
        for job in jobs:
            end = start + len(job.concepts_SD)
            parts.append({lang: texts[start:end] for lang, texts in found.items()})
            start = end
        return parts


def _shifted(encoded: Encoded, by: int) -> Encoded:
    """Return `encoded` with `by` added to the indices of its truncated sentences."""
    cut = [Truncation(one.index + by, one.tokens, one.limit) for one in encoded.truncated]
    return Encoded(encoded.concepts, cut)


def run_request(space: SharedSpace, deadline: Deadline, work: Callable[[], Any]) -> Any:
    """Run `work` for a request with this deadline. Raises OutOfTimeError once it passes."""
    token = DEADLINE.set(deadline)
    try:
        deadline.check()
        with space.request():
            return work()
    finally:
        DEADLINE.reset(token)
