"""The space, model and indexes of a server, and the threads in which its requests run."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from lcm_cli.documents import Document, check_space
from lcm_cli.models import load_model
from lcm_cli.pipeline import Prepared, prepare_documents
from lcm_cli.search.index import Index
from lcm_cli.serving.batching import (
    DEADLINE,
    Deadline,
    OutOfTimeError,
    SharedSpace,
    run_request,
)
from lcm_cli.serving.languages import Guess, resolve_or_guess
from lcm_cli.serving.metrics import Metrics
from lcm_cli.serving.requests import Limits, RefusedError, refusing
from lcm_cli.space import Space
from lcm_cli.text.languages import language, short_tag
from lcm_cli.writing.answer_model import AnswerModel, load_answer_model
from lcm_cli.writing.answers import AUTO, EXTRACTIVE
from lcm_cli.writing.writer import Writer

T = TypeVar("T")

THREADS = 64  # requests processed at a time
RETRY_AFTER = "2"  # seconds


@dataclass(frozen=True)
class LoadedModel:
    """A concept model: it continues documents, and may have been trained to summarize."""

    name: str
    writer: Writer
    answers: AnswerModel | None


class Service:
    """The resources that requests share: space, model (if any), indexes and threads."""

    def __init__(
        self,
        space: SharedSpace,
        model: LoadedModel | None = None,
        limits: Limits | None = None,
        indexes: Sequence[Index] = (),
    ) -> None:
        self.space, self.model, self.limits = space, model, limits or Limits()
        self.indexes = indexes
        self._model_lock = threading.Lock()
        self._pending = 0
        self._pending_lock = threading.Lock()  # requests begin and end in different threads
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lcm-request")

    @property
    def name(self) -> str:
        """The name of the space."""
        return public_name(self.space.name)

    @cached_property
    def languages(self) -> list[dict[str, Any]]:
        """The languages of the space, as LibreTranslate lists them."""
        codes = {code: short_tag(code, self.space.languages) for code in self.space.languages}
        targets = sorted(codes.values())
        listed = [
            {"code": short, "name": language(code).name, "targets": targets, "id": code}
            for code, short in codes.items()
        ]
        return sorted(listed, key=lambda one: str(one["name"]))

    def short(self, code: str) -> str:
        """Return the short code of a language of the space."""
        return short_tag(code, self.space.languages)

    def guess(self, query: str, text: str) -> Guess:
        """Return the language that `query` names, or that of `text` if it is "auto"."""
        return resolve_or_guess(query, text, self.space.languages, self.space.name)

    def prepare(self, text: str, query: str = AUTO, *, id: str = "text") -> Prepared:
        """Split a text into sentences; `query` names its language, or is "auto"."""
        if not text.strip():
            raise RefusedError(400, "the text is empty")
        code = self.guess(query, text).code
        with refusing():
            return prepare_documents(
                Document(id, text=text), self.space.languages, self.space.name, code
            )

    def check_size(self, sentences: int) -> None:
        """Refuse a request of too many sentences."""
        if sentences > self.limits.sentences:
            most = self.limits.sentences
            raise RefusedError(
                413, f"the request has {sentences} sentences to process; the limit is {most}"
            )

    @contextmanager
    def model_turn(self) -> Iterator[None]:
        """Wait for the model, which, unlike the space, serves one request at a time."""
        deadline = DEADLINE.get()
        if not self._model_lock.acquire(timeout=deadline.left if deadline else -1):
            raise OutOfTimeError
        try:
            yield
        finally:
            self._model_lock.release()

    def submit(self, deadline: Deadline, work: Callable[[], T]) -> "Future[T]":
        """Run `work` in a thread. Raises RefusedError (429) if too many requests are waiting."""
        with self._pending_lock:
            if self._pending >= self.limits.requests:
                wait = {"Retry-After": RETRY_AFTER}
                raise RefusedError(429, "too many requests, try again later", wait)
            self._pending += 1
        future: Future[T] = self._threads.submit(run_request, self.space, deadline, work)
        future.add_done_callback(self._release)
        return future

    async def run(self, deadline: Deadline, work: Callable[[], T]) -> T:
        """Return the result of `work`. Raises RefusedError if it takes too long (504)."""
        future = asyncio.wrap_future(self.submit(deadline, work))
        try:
            return await asyncio.wait_for(future, deadline.left)
        except (TimeoutError, OutOfTimeError) as error:
            deadline.cancel()
            raise too_slow(self.limits) from error
        except asyncio.CancelledError:
            deadline.cancel()
            raise

    def close(self) -> None:
        """End the threads; requests still running in them fail."""
        self.space.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _release(self, _: object) -> None:
        with self._pending_lock:
            self._pending -= 1


def too_slow(limits: Limits) -> RefusedError:
    """Return the refusal of a request that takes too long."""
    return RefusedError(504, f"the request took longer than {limits.seconds:g} seconds")


def load_service(
    space: Space,
    wanted: str = AUTO,
    limits: Limits | None = None,
    metrics: Metrics | None = None,
    indexes: Sequence[Index] = (),
    precision: str = AUTO,
) -> Service:
    """Load everything that requests need, so that none has to wait for it.

    `wanted` names the concept model: `auto` for the space's own, `extractive` for none;
    `precision` is that of the model. Raises
    IntegrityError for an index of another space, and the errors of `load_answer_model` and
    `load_model`.
    """
    for index in indexes:
        check_space(index.space, space)
    shared = SharedSpace(space, metrics)
    shared.warm_up()
    service = Service(shared, _load_model(wanted, shared, precision), limits, indexes)
    # Load the language identifier now; the first requests would all load it at once.
    service.prepare("It is cold. The cat sleeps.")
    return service


def _load_model(wanted: str, space: SharedSpace, precision: str) -> LoadedModel | None:
    answers = load_answer_model(wanted, "summarize", space, must_suit=False, precision=precision)
    if answers is not None:
        return LoadedModel(public_name(answers.name), Writer(answers.model, space), answers)
    if wanted in (AUTO, EXTRACTIVE):
        return None
    model = load_model(wanted, device=str(space.device), precision=precision, packed=True)
    return LoadedModel(public_name(wanted), Writer(model, space), None)


def public_name(name: str) -> str:
    """Return the name of a checkpoint without its parent folders."""
    path = Path(name)
    return path.resolve().name if path.is_absolute() or path.exists() else name
