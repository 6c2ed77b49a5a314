"""The road of documents through a command: all that is cheap first, then windows of many."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from lcm_cli import console
from lcm_cli.documents import Document, check_space, read, read_concepts
from lcm_cli.documents.windows import stdin_pauses, windows
from lcm_cli.errors import LcmError, UsageError
from lcm_cli.pipeline import Decoded, Embedded, Prepared, decode, embed, prepare_documents
from lcm_cli.progress import Progress
from lcm_cli.text.segment import MAX_CHARACTERS

from ._options import input_paths
from ._place import Place, Problems

if TYPE_CHECKING:
    from lcm_cli.space import Space

SENTENCES = 4096  # most that are encoded together
ROWS = 1024  # most that are decoded together: sentences times languages
SHOWN = 10  # warnings of one kind


class Road:
    """The documents of one call on their way to concepts; made before anything heavy is loaded.

    `ahead` documents are read at once; `several` tells whether there is more than one. Ends the
    command if there is none.
    """

    def __init__(
        self,
        inputs: list[str] | None,
        place: Place,
        source: str,
        one_per_line: bool,
        ahead: int = 1,
    ) -> None:
        self.problems = Problems()
        self._place = place
        self._lang = place.language(source)
        self._one_per_line = one_per_line
        paths = input_paths(inputs)
        prepared = self._prepare(read(paths, on_error=self.problems))
        head = list(islice(prepared, ahead))
        if not head:
            self.problems.finish(any_done=False)
        self.several = len(paths) > 1 or len(head) > 1
        self._prepared = chain(head, prepared)
        self._live = "-" in paths
        self._again = 0
        self._truncated = self._pieces = 0

    def skip(self, count: int, last: str, again: int = 0) -> None:
        """Leave out the first `count` documents, which are done; `last` is the id of the last.

        The last `again` of them still have a place in the windows, so that what follows is encoded
        with the same neighbours as if this had never been stopped. Raises UsageError if it is
        another document that stands there now.
        """
        skipped = deque(islice(self._prepared, count), maxlen=max(again, 1))
        if skipped and skipped[-1].document.id != last:
            raise UsageError(
                f"document {count} was {last!r} when this was stopped, and is"
                f" {skipped[-1].document.id!r} now",
                "the input has changed: add --force to start anew",
            )
        if again:
            self._prepared, self._again = chain(skipped, self._prepared), len(skipped)

    def beginning(self, most: int) -> list[Document]:
        """Return the first documents, with about `most` sentences; they are still to come."""
        taken, count = [], 0
        for prepared in self._prepared:
            taken.append(prepared)
            count += prepared.size
            if count >= most:
                break
        self._prepared = chain(taken, self._prepared)
        return [prepared.document for prepared in taken]

    def embedded(
        self,
        space: "Space",
        progress: Progress | None,
        most: int = SENTENCES,
        ends: Callable[[Document], bool] = lambda document: False,
    ) -> Iterator[list[Embedded]]:
        """Yield the documents with their concepts, in windows of about `most` sentences.

        A document that `ends` something is the last of its window, and what follows is encoded as
        it would be if it stood at the beginning.
        """
        parts = windows(
            self._prepared,
            lambda prepared: prepared.size,
            most,
            pausing=stdin_pauses if self._live else None,
            ends=lambda prepared: ends(prepared.document),
        )
        for window in parts:
            known, self._again = self._again, max(0, self._again - len(window))
            if new := window[known:]:
                done = embed(new, space, progress)
                self._tell(done)
                yield done

    def finish(self) -> None:
        """Tell what was done to long sentences, and end with exit code 1 if there were problems."""
        if self._pieces:
            what = f"sentences over {MAX_CHARACTERS} characters"
            console.warn(f"{what} were cut into pieces, {self._pieces} in all")
        if self._truncated > SHOWN:
            console.warn(f"{self._truncated} sentences in all were over the token limit")
        self.problems.finish()

    def _prepare(self, documents: Iterator[Document]) -> Iterator[Prepared]:
        languages, where = self._place.languages, self._place.name
        for document in documents:
            try:
                yield prepare_documents(document, languages, where, self._lang, self._one_per_line)
            except LcmError as error:
                self.problems(error)

    def _tell(self, window: Sequence[Embedded]) -> None:
        for each in window:
            self._pieces += len(each.split)
            for cut in each.truncated:
                self._truncated += 1
                if self._truncated <= SHOWN:
                    what = (
                        f"{each.document.label}: sentence {cut.index + 1} has {cut.tokens} tokens"
                    )
                    console.warn(f"{what}, and only the first {cut.limit} count")


class ConceptRoad:
    """The concepts of one call on their way to text. See `Road`."""

    def __init__(self, inputs: list[str] | None, ahead: int = 1) -> None:
        self.problems = Problems()
        paths = input_paths(inputs)
        try:
            self._info, documents = read_concepts(paths, on_error=self.problems)
        except LcmError:
            self.problems.finish(any_done=False)  # it was said already why there are none
            raise
        head = list(islice(documents, ahead))
        self.several = len(paths) > 1 or len(head) > 1
        self._documents = chain(head, documents)
        self._live = "-" in paths

    def decoded(
        self, space: "Space", to: Sequence[str], search: Mapping[str, Any], progress: Progress
    ) -> Iterator[Decoded]:
        """Yield the documents with their texts; `search` holds fields of DecodeOptions."""
        from lcm_cli.space import DecodeOptions

        options = DecodeOptions(**search)
        check_space(self._info, space)
        parts = windows(
            self._documents,
            lambda document: len(to) * _size(document),
            ROWS,
            pausing=stdin_pauses if self._live else None,
        )
        for window in parts:
            yield from decode(window, to, space, options, progress)


def _size(document: Document) -> int:
    return 0 if document.concepts is None else len(document.concepts)
