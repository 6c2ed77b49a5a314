"""What `lcm generate` does: a model in its space, documents in windows, and what is printed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from lcm_cli import __version__, console
from lcm_cli.documents import Document, SpaceInfo, check_space, check_target, read_any
from lcm_cli.documents.windows import stdin_pauses, windows
from lcm_cli.errors import LcmError, NotFoundError, UsageError
from lcm_cli.hub.locate import ModelFiles, locate_space
from lcm_cli.models.config import AnyConfig, QuantizerConfig, read_model_config
from lcm_cli.pipeline import find_languages, space_info
from lcm_cli.schema import counted
from lcm_cli.text.languages import find_language, language

from ._options import input_paths
from ._place import Problems
from ._result import Result, result

if TYPE_CHECKING:
    from lcm_cli.models.generate import GenerateOptions
    from lcm_cli.writing.writer import Continued, Writer, WrittenSentence

SHOWN = 60  # characters of a text in a trace; JSON has all
CONCEPTS = 512  # of prompts, in documents that are continued together
STOPS = {
    "end": "the end-of-text concept came",
    "repetition": "it began to repeat itself",
    "length": "--max-concepts is reached",
}


@dataclass(frozen=True)
class Request:
    """What was asked for. `common` are fields of GenerateOptions, `own` those of a model's own."""

    inputs: list[str] | None
    model: str
    files: ModelFiles
    space: str | None
    to: list[str] | None
    source: str
    one_per_line: bool
    common: Mapping[str, Any]
    own: Mapping[str, Any]
    trace: bool
    json: bool
    output: str | None
    concepts_out: str | None
    force: bool
    device: str
    precision: str
    batch_tokens: int | None


def carry_out(request: Request) -> None:
    """Continue all documents; all that is cheap is checked before anything is loaded."""
    space = _space(request, read_model_config(request.files.config))
    codes, lang = _languages(request, space)
    if request.concepts_out == "-" and request.json and request.output in (None, "-"):
        raise UsageError("--json and --concepts-out - both want stdout", "name a file for one")
    if request.concepts_out is not None:
        check_target(request.concepts_out, force=request.force)
    elif space is None and not request.json:
        raise UsageError(
            f"the space of {request.model} is not known, so there are no words to print",
            "name a file for the concepts: --concepts-out FILE, or the space: --space SPACE",
        )
    problems, paths = Problems(), input_paths(request.inputs)
    documents = read_any(paths, on_error=problems)
    head = list(islice(documents, 2))
    if not head:
        problems.finish(any_done=False)
    writer, options = _load(request, space)
    ready = _ready(chain(head, documents), writer, codes, options, (lang, request), problems)
    first = list(islice(ready, 1))
    if not first:  # before any output is opened
        problems.finish(any_done=False)
    pausing = stdin_pauses if "-" in paths else None
    with result(request.output, request.force) as out, _concepts(request, writer) as keep:
        several = len(paths) > 1 or len(head) > 1
        printer = _Printer(request, writer, options, out, several)
        for window in windows(chain(first, ready), _size, CONCEPTS, pausing=pausing):
            printer.begin(window[0], codes)
            found = writer.continue_all(
                window,
                codes,
                options,
                trace=request.trace,
                on_sentence=None if several else printer.sentence,
            )
            for document, done in zip(window, found, strict=True):
                printer.end(document, done)
                keep(done)
    problems.finish(any_done=printer.count > 0)


def _space(request: Request, config: AnyConfig | QuantizerConfig) -> str | None:
    """Return the space to use: the one named, else the model's own; None where none is here."""
    if request.space is not None:
        locate_space(request.space)
        return request.space
    own = config.space.name
    if not own:
        return None
    try:
        locate_space(own)
    except NotFoundError as error:
        if request.to or request.concepts_out is None:
            raise
        console.info(f"{error.message}: concepts go in, and concepts come out")
        return None
    return own


def _languages(request: Request, space: str | None) -> tuple[list[str], str]:
    """Return the codes of the target languages, and that of the input, or auto."""
    if space is None:
        if request.to:
            raise UsageError(
                f"the space of {request.model} is not known, so it has no languages",
                "name the space: --space SPACE, or leave out --to",
            )
        return [], "auto"
    files = locate_space(space)
    within = tuple(files.config["languages"])
    codes = find_languages(request.to or (), within, files.name)
    lang = request.source
    return codes, lang if lang == "auto" else find_language(lang, within, files.name).code


def _load(request: Request, space: str | None) -> "tuple[Writer, GenerateOptions]":
    """Load the model and its space; this is what imports torch."""
    from lcm_cli.models import load_model
    from lcm_cli.models.generate import GenerateOptions
    from lcm_cli.space import load_space, pick_device
    from lcm_cli.writing.writer import Writer, sampler

    device = str(pick_device(request.device))
    dtype = "auto" if request.precision == "int8" else request.precision
    packed = device == "cpu" and dtype in ("auto", "float32")
    model = load_model(str(request.model), device=device, dtype=dtype, packed=packed)
    options = GenerateOptions(**request.common, sampler=sampler(model, **request.own))
    loaded = None
    if space is not None:
        loaded = load_space(
            space,
            device=device,
            precision=request.precision,
            batch_tokens=request.batch_tokens,
        )
    return Writer(model, loaded), options


def _ready(
    documents: Iterator[Document],
    writer: "Writer",
    codes: Sequence[str],
    options: "GenerateOptions",
    reading: tuple[str, Request],
    problems: Problems,
) -> Iterator[Document]:
    """Yield the documents with their concepts; what cannot be continued is reported."""
    lang, request = reading
    for document in documents:
        try:
            if document.concepts is None:
                document = writer.embedded(document, lang, request.one_per_line)
            else:
                place = _place(writer)
                if place.fingerprint:  # else any concepts of the model's width will do
                    check_space(document.space, place)
                document.lang = document.lang or ("" if lang == "auto" else lang)
            writer.check(document, codes, options)
        except LcmError as error:
            problems(error)
            continue
        yield document


def _place(writer: "Writer") -> SpaceInfo:
    """Return what the concepts that a model takes are of."""
    if writer.space is not None:
        return space_info(writer.space)
    config = writer.model.config
    name, fingerprint = config.space.name, config.space.fingerprint
    return SpaceInfo(name or "the model", fingerprint, config.concept_dim)


def _size(document: Document) -> int:
    return 0 if document.concepts is None else len(document.concepts)


@contextmanager
def _concepts(request: Request, writer: "Writer") -> Iterator[Callable[["Continued"], None]]:
    """Open --concepts-out; yields what takes the continuations."""
    if request.concepts_out is None:
        yield lambda done: None
        return
    from lcm_cli.documents import open_writer

    config = writer.model.config
    info = SpaceInfo(config.space.name, config.space.fingerprint, config.concept_dim)
    info = info if writer.space is None else space_info(writer.space)

    def keep(done: "Continued") -> None:
        if done.sentences:
            file.write(done.document())
        else:
            console.warn(f"{done.id}: nothing was added, so there are no concepts to write")

    with open_writer(request.concepts_out, info, dtype="float32", force=request.force) as file:
        yield keep


class _Printer:
    """Prints what comes: a single document sentence by sentence, several one after the other."""

    def __init__(
        self,
        request: Request,
        writer: "Writer",
        options: "GenerateOptions",
        out: Result,
        several: bool,
    ) -> None:
        self.count = 0  # documents that are done
        self._request, self._writer, self._options = request, writer, options
        self._out, self._several = out, several
        # Concepts that go to stdout leave no room for words there.
        self._silent = request.json or writer.space is None or request.concepts_out == "-"

    def begin(self, document: Document, codes: Sequence[str]) -> None:
        """Print the heading of the first language, if there are others to come."""
        if not (self._several or self._silent) and len(codes) > 1:
            self._out.text(f"{language(codes[0]).name} ({codes[0]}):")

    def sentence(self, number: int, sentence: "WrittenSentence") -> None:
        """Print a sentence in the first language at once."""
        if not self._silent:
            self._out.text(next(iter(sentence.texts.values())))
        if not self._request.json:
            show_trace(sentence)

    def end(self, document: Document, done: "Continued") -> None:
        """Print the rest of a document."""
        self.count += 1
        if self._request.json:
            self._out.emit(record(done, self._request.model, self._writer, self._options))
        elif not self._silent:
            blocks = {
                code: [sentence.texts[code] for sentence in done.sentences] for code in done.texts
            }
            if self._several:
                self._out.document(document.label, blocks, True)
            else:
                for code in list(blocks)[1:]:
                    heading = f"\n{language(code).name} ({code}):"
                    self._out.text("\n".join([heading, *blocks[code]]))
        if self._several and not self._request.json:
            for sentence in done.sentences:
                show_trace(sentence)
        added = len(done.sentences)
        count = counted(added, "concept") if self._silent else f"{added}"
        console.info(f"{document.label}: {count} added; {STOPS[done.stop]}")


def show_trace(sentence: "WrittenSentence") -> None:
    """Write the steps to a sentence as a table on stderr; of those that say the same, the first."""
    if not sentence.steps:
        return
    last: str | None = None
    rows = [("step", "noise", "cosine", "")]
    for step in sentence.steps:
        if step.text is None or step.text != last or step is sentence.steps[-1]:
            numbers = f"{step.step}", f"{step.noise:.3f}", f"{step.similarity:.3f}"
            said = step.text or ""
            cells = (*numbers, said if len(said) <= SHOWN else f"{said[:SHOWN]}…")
            rows.append(cells)
        last = step.text
    console.info(f"how sentence {sentence.index} came about:")
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        aligned = (cell.rjust(width) for cell, width in zip(row, widths, strict=False))
        console.info(f"  {'  '.join(aligned)}  {row[3]}".rstrip())


def record(
    done: "Continued", name: str, writer: "Writer", options: "GenerateOptions"
) -> dict[str, Any]:
    """Return the JSON object of one document."""
    model, place = writer.model, _place(writer)
    known = writer.space is not None or bool(model.config.space.name)
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
        "space": place.name if known else None,
        "fingerprint": place.fingerprint or None,
        "device": str(model.device),
        "precision": str(model.dtype).removeprefix("torch."),
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
