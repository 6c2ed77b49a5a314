"""Particulars of `lcm generate`: its space and model, and its text, JSON and trace output."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lcm_cli import console
from lcm_cli.documents import Document, SpaceInfo, check_target
from lcm_cli.errors import NotFoundError, UsageError
from lcm_cli.schema import counted
from lcm_cli.text.languages import language
from lcm_cli.version import __version__

from ._result import Result
from ._space import LocatedSpace

if TYPE_CHECKING:
    from lcm_cli.models.generate import GenerateOptions
    from lcm_cli.writing.writer import Writer, WrittenContinuation, WrittenSentence

SHOWN_CHARACTERS = 60  # of a text in a trace; the JSON has all of it
STOPS = {
    "end": "the end-of-text concept was reached",
    "repetition": "the model began to repeat itself",
    "length": "--max-concepts is reached",
}


def locate_generation_space(named: str | None, own: str, needs_text: bool) -> LocatedSpace | None:
    """Locate the space that is `named`, or else the model's `own`.

    Return None if the model does not name its space, or if that is not installed and the call can
    do without text. Raises NotFoundError otherwise.
    """
    if named is not None:
        return LocatedSpace(named)
    if not own:
        return None
    try:
        return LocatedSpace(own)
    except NotFoundError as error:
        if needs_text:
            raise
        console.info(f"{error.message}: reading and writing concepts only")
        return None


def check_generation(
    model: str,
    space: LocatedSpace | None,
    to: Sequence[str] | None,
    *,
    json: bool,
    output: str | None,
    concepts_out: str | None,
    force: bool,
) -> None:
    """Refuse outputs that conflict or exist already, and text where no space is known."""
    if space is None and to:
        raise UsageError(
            f"the space of {model} is not known, so it has no languages",
            "name the space: --space SPACE, or drop --to",
        )
    if concepts_out == "-" and json and output in (None, "-"):
        raise UsageError(
            "--json and --concepts-out - both use stdout", "write one of them to a file"
        )
    if concepts_out is not None:
        check_target(concepts_out, force=force)
    elif space is None and not json:
        raise UsageError(
            f"the space of {model} is not known, so there is no text to print",
            "name a file for the concepts: --concepts-out FILE, or the space: --space SPACE",
        )


def load_writer(
    model: str, space: LocatedSpace | None, device: str, precision: str, batch_tokens: int | None
) -> "Writer":
    """Load the model and its space; this imports torch."""
    from lcm_cli.models import load_model
    from lcm_cli.writing.writer import Writer

    loaded = load_model(model, device=device, precision=precision, packed=True)
    return Writer(loaded, None if space is None else space.load(device, precision, batch_tokens))


@contextmanager
def concepts_file(
    path: str | None, info: SpaceInfo, force: bool
) -> Iterator[Callable[["WrittenContinuation"], None]]:
    """Open --concepts-out; yield a function that writes the concepts of a continuation."""
    if path is None:
        yield lambda done: None
        return
    from lcm_cli.documents import open_writer

    def write(done: "WrittenContinuation") -> None:
        if done.sentences:
            file.write(done.document())
        else:
            console.warn(f"{done.id}: nothing was added, so no concepts are written")

    with open_writer(path, info, dtype="float32", force=force) as file:
        yield write


class Printer:
    """Prints continuations: a single document sentence by sentence, `several` one after another.

    `words` is whether standard output receives text.
    """

    def __init__(self, out: Result, *, several: bool, words: bool) -> None:
        self._out, self._several, self._words = out, several, words

    def begin(self, codes: Sequence[str]) -> None:
        """Print the heading of the first language, if others follow."""
        if self._words and not self._several and len(codes) > 1:
            self._out.text(f"{language(codes[0]).name} ({codes[0]}):")

    def sentence(self, number: int, sentence: "WrittenSentence") -> None:
        """Print a sentence in the first language, and its trace."""
        if self._words:
            self._out.text(next(iter(sentence.texts.values())))
        show_trace(sentence)

    def end(self, document: Document, done: "WrittenContinuation") -> None:
        """Print what `sentence` has not: one of `several` documents, or the other languages."""
        if self._words:
            blocks = {code: [each.texts[code] for each in done.sentences] for code in done.texts}
            if self._several:
                self._out.document(document, blocks, True)
            else:
                for code in list(blocks)[1:]:
                    heading = f"\n{language(code).name} ({code}):"
                    self._out.text("\n".join([heading, *blocks[code]]))
        if self._several:
            for sentence in done.sentences:
                show_trace(sentence)


def report(document: Document, done: "WrittenContinuation", words: bool) -> None:
    """Report on stderr how much was added, and why it stopped."""
    added = len(done.sentences)
    count = str(added) if words else counted(added, "concept")
    console.info(f"{document.label}: {count} added; {STOPS[done.stop]}")


def show_trace(sentence: "WrittenSentence") -> None:
    """Print the steps to a sentence as a table on stderr: the first of each run of equal texts."""
    if not sentence.steps:
        return
    last: str | None = None
    rows = [("step", "noise", "cosine", "")]
    for step in sentence.steps:
        if step.text is None or step.text != last or step is sentence.steps[-1]:
            numbers = f"{step.step}", f"{step.noise:.3f}", f"{step.similarity:.3f}"
            rows.append((*numbers, _shortened(step.text or "")))
        last = step.text
    console.info(f"how sentence {sentence.index} came about:")
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        aligned = (cell.rjust(width) for cell, width in zip(row, widths, strict=False))
        console.info(f"  {'  '.join(aligned)}  {row[3]}".rstrip())


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def record(
    done: "WrittenContinuation", name: str, writer: "Writer", options: "GenerateOptions"
) -> dict[str, Any]:
    """Return the JSON object of one document."""
    model, space = writer.model, writer.space_info
    return {
        "id": done.id,
        "lang": done.lang or None,
        "model": name,
        "architecture": model.config.architecture,
        "prompt": done.prompt,
        "sentences": [_sentence(sentence) for sentence in done.sentences],
        "texts": done.texts,
        "plans": [{"before": plan.before, "texts": plan.texts} for plan in done.plans],
        "stop": done.stop,
        "score": None if done.score is None else round(done.score, 4),
        "options": {key: value for key, value in asdict(options).items() if key != "seed"},
        "space": space.name or None,
        "fingerprint": space.fingerprint or None,
        "device": str(model.device),
        "precision": model.precision,
        "seed": options.seed,
        "version": __version__,
    }


def _sentence(sentence: "WrittenSentence") -> dict[str, Any]:
    found: dict[str, Any] = {"index": sentence.index, "texts": sentence.texts}
    if sentence.steps:
        found["trace"] = [
            {
                "step": step.step,
                "noise": round(step.noise, 4),
                "similarity": round(step.similarity, 4),
                "text": step.text,
            }
            for step in sentence.steps
        ]
    return found
