"""The road of documents through a command: cheap checks first, then windows of many documents."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lcm_cli import console
from lcm_cli.documents import Document, check_space, read, read_any, read_concepts
from lcm_cli.documents.formats.reading import DETECT, ReadOptions
from lcm_cli.documents.windows import stdin_pauses, windows
from lcm_cli.errors import LcmError, UsageError
from lcm_cli.pipeline import (
    Decoded,
    Prepared,
    decode,
    embed,
    hear,
    prepare_documents,
    text_needs_space,
    without_target,
)
from lcm_cli.progress import Progress
from lcm_cli.text.segment import MAX_CHARACTERS, Split

from ._options import input_paths
from ._problems import Problems
from ._space import LocatedSpace

if TYPE_CHECKING:
    from lcm_cli.documents.shares import Share
    from lcm_cli.models.generate import GenerateOptions
    from lcm_cli.space import Space
    from lcm_cli.writing.writer import Writer

WINDOW_SENTENCES = 4096  # encoded together
WINDOW_ROWS = 1024  # decoded together: sentences times languages
WINDOW_CONCEPTS = 512  # of prompts that are continued together
SHOWN_WARNINGS = 10  # about sentences over the token limit

Item = TypeVar("Item")


class _Inputs(Generic[Item]):
    """The documents of one call, read as they are needed.

    `several` is whether there is more than one input or document, after reading ahead.
    """

    def __init__(self, inputs: list[str] | None) -> None:
        self.problems = Problems()
        self.several = False
        self._paths = input_paths(inputs)
        self._items: Iterator[Item] = iter(())

    def _read_ahead(
        self, items: Iterator[Item], count: int, *, allow_empty: bool = False
    ) -> list[Item]:
        """Read the first `count` items now and return them; end the command if there are none."""
        head = list(islice(items, count))
        if not (head or allow_empty):
            self.problems.finish(any_done=False)
        self.several = len(self._paths) > 1 or len(head) > 1
        self._items = chain(head, items)
        return head

    def _windows(
        self,
        size: Callable[[Item], int],
        most: int,
        ends: Callable[[Item], bool] | None = None,
    ) -> Iterator[list[Item]]:
        pausing = stdin_pauses if "-" in self._paths else None
        return windows(self._items, size, most, pausing=pausing, ends=ends)


class Road(_Inputs[Prepared]):
    """The texts of one call on their way to concepts; created before anything heavy is loaded.

    The first `ahead` documents are prepared at once. Ends the command if there are none, except of
    a `share`, which may be empty.
    """

    def __init__(
        self,
        inputs: list[str] | None,
        space: LocatedSpace | None,
        source: str,
        one_per_line: bool,
        ahead: int = 1,
        reading: ReadOptions = DETECT,
        split: Split = "auto",
        speech: str | None = None,
        share: "Share | None" = None,
    ) -> None:
        super().__init__(inputs)
        self._speech = speech
        self._share = share
        self._split = split
        self._reading = reading
        self._space = space
        self._lang = "auto" if space is None else space.language(source)
        self._one_per_line = one_per_line
        self._restored = 0  # leading documents that only fill their places in the windows
        self._truncated = self._pieces = 0
        head = self._read_ahead(self._prepared(), ahead, allow_empty=share is not None)
        # For the unit of progress.
        self.spoken = bool(head) and head[0].document.recording is not None

    def skip(self, count: int, last: str, restored: int = 0) -> None:
        """Skip the first `count` documents, which are done; `last` is the id of the last one.

        The last `restored` of them keep their places in the windows, so that the documents after
        them are encoded with the same neighbours as in an uninterrupted run. Raises UsageError if
        the id of the last one has changed.
        """
        skipped = deque(islice(self._items, count), maxlen=max(restored, 1))
        # Recordings without speech were found out only when they were heard, and not counted.
        if skipped and skipped[-1].document.recording is not None:
            for each in self._items if skipped[-1].document.id != last else ():
                skipped.append(each)
                if each.document.id == last:
                    break
        if skipped and skipped[-1].document.id != last:
            raise UsageError(
                f"document {count} was {last!r} when the run stopped, and is now"
                f" {skipped[-1].document.id!r}",
                "the input has changed: add --force to start over",
            )
        if restored:
            self._items, self._restored = chain(skipped, self._items), len(skipped)

    def beginning(self, most: int) -> list[Document]:
        """Return the first documents, of about `most` sentences in all, without consuming them."""
        taken, count = [], 0
        for prepared in self._items:
            taken.append(prepared)
            count += prepared.size
            if count >= most:
                break
        self._items = chain(taken, self._items)
        return [prepared.document for prepared in taken]

    def embedded(
        self,
        space: "Space | None",
        progress: Progress | None,
        most: int = WINDOW_SENTENCES,
        ends: Callable[[Document], bool] = lambda document: False,
    ) -> Iterator[list[Prepared]]:
        """Yield the documents with their concepts, in windows of about `most` sentences.

        A document for which `ends` is true is the last of its window, and the window sizes start
        over after it, as they do after a recording, which is encoded on its own. `space` is None
        only if all documents have concepts.
        """
        for window in self._windows(
            lambda prepared: prepared.size,
            most,
            lambda p: p.document.recording is not None or ends(p.document),
        ):
            restored, self._restored = self._restored, max(0, self._restored - len(window))
            if new := window[restored:]:
                heard = list(self._heard(new, space, progress if self.spoken else None))
                done = heard if space is None else embed(heard, space, progress)
                self._report_cuts(done)
                if done:
                    yield done

    def _heard(
        self, window: Sequence[Prepared], space: "Space | None", progress: Progress | None
    ) -> Iterator[Prepared]:
        """Yield the documents, recordings with the concepts of their utterances."""
        for each in window:
            recording = each.document.recording
            if recording is None or space is None:
                yield each
                continue
            console.detail(f"listening to {recording.name} ({recording.seconds:.0f} s)")
            try:
                yield hear(each, space, progress)
            except LcmError as error:
                self.problems(error)

    def accepted(
        self, window: Sequence[Prepared], check: Callable[[Prepared], None]
    ) -> list[Prepared]:
        """Return the documents that pass a check, and report the others."""
        passed = []
        for each in window:
            try:
                check(each)
                passed.append(each)
            except LcmError as error:
                self.problems(error)
        return passed

    def finish(self, any_done: bool = True) -> None:
        """Report how many long sentences were cut, and exit if there were problems."""
        if self._pieces:
            what = f"sentences over {MAX_CHARACTERS} characters"
            console.warn(f"{what} were cut into pieces, {self._pieces:,} in all")
        if self._truncated > SHOWN_WARNINGS:
            console.warn(f"{self._truncated:,} sentences in all exceed the token limit")
        self.problems.finish(any_done)

    def _read(self) -> Iterator[Document]:
        return read(self._paths, self._reading, on_error=self.problems, share=self._share)

    def _prepared(self) -> Iterator[Prepared]:
        for document in self._read():
            try:
                yield self._prepare(document)
            except LcmError as error:
                self.problems(error)

    def _prepare(self, document: Document) -> Prepared:
        if self._space is None:
            raise text_needs_space(document)
        languages, name = self._space.languages, self._space.name
        return prepare_documents(
            document, languages, name, self._lang, self._one_per_line, self._split, self._speech
        )

    def _report_cuts(self, window: Sequence[Prepared]) -> None:
        for each in window:
            self._pieces += len(each.split)
            for cut in each.truncated:
                self._truncated += 1
                if self._truncated <= SHOWN_WARNINGS:
                    what = (
                        f"{each.document.label}: sentence {cut.index + 1} has {cut.tokens} tokens"
                    )
                    console.warn(f"{what}; only the first {cut.limit} are encoded")


class PromptRoad(Road):
    """Documents to continue: texts on their way to concepts, and documents that have concepts.

    `plans` is whether the model reads the plans of documents. Without a space, text is refused.
    """

    def __init__(
        self,
        inputs: list[str] | None,
        space: LocatedSpace | None,
        source: str,
        one_per_line: bool,
        ahead: int,
        plans: bool,
    ) -> None:
        self._plans = plans
        super().__init__(inputs, space, source, one_per_line, ahead)

    def prompts(
        self, writer: "Writer", to: Sequence[str], options: "GenerateOptions"
    ) -> Iterator[list[Document]]:
        """Return windows of documents that can be continued; end the command if there are none."""
        accepted = self._accepted(writer, to, options)
        head = list(islice(accepted, 1))
        if not head:
            self.finish(any_done=False)
        return chain(head, accepted)

    def _accepted(
        self, writer: "Writer", to: Sequence[str], options: "GenerateOptions"
    ) -> Iterator[list[Document]]:
        for window in self.embedded(writer.space, None, WINDOW_CONCEPTS):
            documents = []
            for each in window:
                try:
                    writer.check(each.document, to, options)
                    documents.append(each.document)
                except LcmError as error:
                    self.problems(error)
            if documents:
                yield documents

    def _read(self) -> Iterator[Document]:
        return read_any(self._paths, self._reading, on_error=self.problems)

    def _prepare(self, document: Document) -> Prepared:
        if document.concepts is None:
            return super()._prepare(without_target(document, keep_plans=self._plans))
        if self._lang != "auto":
            document.lang = document.lang or self._lang
        return Prepared(document)


class ConceptRoad(_Inputs[Document]):
    """The concepts of one call on their way to text; created before anything heavy is loaded."""

    def __init__(self, inputs: list[str] | None, ahead: int = 1) -> None:
        super().__init__(inputs)
        try:
            self._info, documents = read_concepts(self._paths, on_error=self.problems)
        except LcmError:
            self.problems.finish(any_done=False)  # the reason has been shown already
            raise
        self._read_ahead(documents, ahead)

    def decoded(
        self, space: "Space", to: Sequence[str], search: Mapping[str, Any], progress: Progress
    ) -> Iterator[Decoded]:
        """Yield the documents with their texts; `search` holds fields of DecodeOptions."""
        from lcm_cli.space import DecodeOptions

        options = DecodeOptions(**search)
        check_space(self._info, space)
        for window in self._windows(lambda document: len(to) * _size(document), WINDOW_ROWS):
            yield from decode(window, to, space, options, progress)


def _size(document: Document) -> int:
    return 0 if document.concepts is None else len(document.concepts)
