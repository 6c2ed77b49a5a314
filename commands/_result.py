"""Results of the commands on documents: text, JSON and concepts, to a file or standard output."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from lcm_cli import console
from lcm_cli.documents import Document
from lcm_cli.documents.kinds import BINARY, NAMES, kind_of
from lcm_cli.errors import UsageError
from lcm_cli.files import atomic_path, make_folder
from lcm_cli.pipeline import Prepared
from lcm_cli.text.languages import language, short_tag
from lcm_cli.version import __version__

if TYPE_CHECKING:
    from lcm_cli.documents import ConceptWriter, SpaceInfo
    from lcm_cli.space import Space

DEFAULT_TEMPLATE = "{stem}.{lang}{ext}"


@dataclass(frozen=True)
class OutputKind:
    """The kind of a document's output: suffix, whether it is text, whether it has no markup."""

    suffix: str = ".txt"
    is_text: bool = True
    plain: bool = True


def check_name(path: str, kind: OutputKind) -> None:
    """Raise UsageError if the suffix of an output file names another format than its content."""
    named, held = kind_of(PurePosixPath(path).suffix), kind_of(kind.suffix)
    if named and held and named != held and {named, held} != {"text", "markdown"}:
        raise UsageError(
            f"{path} would hold {NAMES[held]}, not {NAMES[named]}",
            f"choose a name with the suffix {kind.suffix}",
        )


class Result:
    """The output of a command: takes lines of text, documents, files, or JSON objects.

    `name` is the name of the file, None for standard output; `as_json` restricts it to JSON.
    """

    def __init__(
        self,
        write: Callable[[bytes], None] | None = None,
        name: str | None = None,
        as_json: bool = False,
    ) -> None:
        self._write = write
        self._name = name
        self._as_json = as_json
        self._begun = False

    def text(self, line: str) -> None:
        """Write a line."""
        if self._write is None:
            console.out(line)
        else:
            self._write(f"{line}\n".encode())

    def emit(self, obj: Any) -> None:
        """Write an object as a line of JSON."""
        if self._write is None:
            console.emit(obj)
        else:
            self.text(json.dumps(obj, ensure_ascii=False))

    def document(
        self, document: Document, blocks: Mapping[str, Sequence[str]], several: bool
    ) -> None:
        """Write the lines of a document by language code.

        Each of `several` documents has a heading, and each of several languages a label.
        """
        if several:
            gap = "\n" if self._begun else ""
            self.text(f"{gap}==> {document.label} <==")
        self._begun = True
        labels = {code: [f"{language(code).name} ({code}):"] for code in blocks if len(blocks) > 1}
        parts = [[*labels.get(code, []), *lines] for code, lines in blocks.items()]
        self.text("\n\n".join("\n".join(part) for part in parts))

    def check(
        self, document: Document, kind: OutputKind, codes: Sequence[str], several: bool
    ) -> None:
        """Raise UsageError if the document's files cannot be written here, before any work."""
        if self._as_json:
            return
        if self._name is not None:
            check_name(self._name, kind)
        if self._write is None and not kind.is_text:
            console.out_bytes([])  # refuses a terminal
        if kind.plain or (len(codes) == 1 and not several):
            return
        if self._name is not None or not kind.is_text:
            where = self._name or "standard output"
            raise UsageError(
                f"{where} can hold only one document in one language as {kind.suffix}",
                "name a folder for one file each: -o FOLDER/",
            )

    def files(
        self, document: Document, kind: OutputKind, contents: Mapping[str, bytes], several: bool
    ) -> None:
        """Write a document by language code: a single file unchanged, several with headings."""
        alone = len(contents) == 1 and not several
        shown = self._write is None and kind.is_text and sys.stdout.isatty()
        if shown or not alone:
            texts = {code: [_text(data)] for code, data in contents.items()}
            self.document(document, texts, several)
            return
        for data in contents.values():
            if kind.plain and not data.endswith((b"\n", b"\r")):
                data += b"\n"
            if self._write is None:
                console.out_bytes([data])
            else:
                self._write(data)


def _text(data: bytes) -> str:
    """Return a file as text to print, without BOM, carriage returns and final line break."""
    return data.decode("utf-8-sig").replace("\r", "").removesuffix("\n")


class FolderResult(Result):
    """A file for each document and language, named by a template."""

    def __init__(self, template: str, force: bool) -> None:
        super().__init__()
        self._template = template
        self._force = force
        self._owners: dict[Path, tuple[str, str]] = {}  # label and language

    def check(
        self, document: Document, kind: OutputKind, codes: Sequence[str], several: bool
    ) -> None:
        for code in codes:
            self._path(document, kind, code)

    def document(
        self, document: Document, blocks: Mapping[str, Sequence[str]], several: bool
    ) -> None:
        contents = {code: "\n".join([*lines, ""]).encode() for code, lines in blocks.items()}
        self.files(document, OutputKind(), contents, several)

    def files(
        self, document: Document, kind: OutputKind, contents: Mapping[str, bytes], several: bool
    ) -> None:
        for code, data in contents.items():
            path = self._path(document, kind, code)
            make_folder(path.parent)
            with atomic_path(path, force=self._force) as temporary:
                temporary.write_bytes(data)
            console.info(f"wrote {path}")

    def _path(self, document: Document, kind: OutputKind, code: str) -> Path:
        names = {"lang": short_tag(code), "code": code, "ext": kind.suffix}
        path = Path(self._template.format(stem=file_stem(document), **names))
        check_name(str(path), kind)
        owner = document.label, code
        other = self._owners.setdefault(path, owner)
        if other != owner:
            both = [f"{label} in {language(code).name}" for label, code in (owner, other)]
            raise UsageError(
                f"{both[0]} and {both[1]} would both be written to {path}",
                "use distinct names: --output-template '{stem}.{code}{ext}'",
            )
        if path.exists() and not self._force:
            raise UsageError(f"{path} exists already", "add --force, or choose another folder")
        return path


class _NothingWritten(Exception):
    """Discards an output file."""


def file_stem(document: Document) -> str:
    """Return the stem of a document's files, with its folders below the input folder."""
    name = document.id
    suffix = PurePosixPath(name).suffix
    name = name.removesuffix(suffix) if kind_of(suffix) else name
    # An id may be any text; as a path it must stay below the output folder.
    parts = (re.sub(r"[\\:*?\"<>|\x00-\x1f]+", "-", part) for part in name.split("/"))
    return "/".join(part for part in parts if part.strip(". ")) or "document"


def _template(output: str | None, template: str | None) -> str | None:
    """Return the template of the output files, None for a single output.

    Raises UsageError for an unknown field, and for a folder that is a file.
    """
    folder = output is not None and (output.endswith("/") or Path(output).is_dir())
    if template is None and not folder:
        return None
    if output is not None and not folder:
        raise UsageError(
            f"{output} is one file, but --output-template names several",
            "end the name of the folder with a slash, or drop one of the two",
        )
    template = template or DEFAULT_TEMPLATE
    try:
        template.format(stem="", lang="", code="", ext="")
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{template!r} is not a template of file names",
            "use {stem}, {lang} (fr), {code} (fra_Latn) and {ext} (.txt)",
        ) from error
    # Braces in the name of the folder are not fields.
    return (
        (output or "").replace("{", "{{").replace("}", "}}")
        + ("/" if output and not output.endswith("/") else "")
        + template
    )


@contextmanager
def open_results(
    output: str | None,
    force: bool,
    template: str | None,
    *,
    as_json: bool,
    own_format: bool = False,
) -> Iterator[Result]:
    """Open the output as `open_result` does, or a folder with files named by `template`.

    Raises UsageError if the template has unknown fields, and for JSON in a folder, since JSON is
    one stream.
    """
    names = _template(output, template)
    if names is None:
        with open_result(output, force, as_json=as_json, own_format=own_format) as result:
            yield result
        return
    if as_json:
        raise UsageError("--json writes one file", "name it: -o FILE.jsonl")
    yield FolderResult(names, force)


@contextmanager
def open_result(
    output: str | None, force: bool, *, as_json: bool = False, own_format: bool = False
) -> Iterator[Result]:
    """Open the output: standard output, or a file that appears once it is complete.

    Only documents in their `own_format` may have a binary one. Raises UsageError for the name of
    another.
    """
    if output is None or output == "-":
        yield Result(as_json=as_json)
        return
    if not own_format and kind_of(PurePosixPath(output).suffix) in BINARY:
        check_name(output, OutputKind())
    with (
        suppress(_NothingWritten),
        atomic_path(Path(output), force=force) as temporary,
        temporary.open("wb") as file,
    ):

        def write(data: bytes) -> None:
            file.write(data)

        yield Result(write, output, as_json)
        if not file.tell():
            raise _NothingWritten  # every document failed: leave no empty file


class Pipe(io.RawIOBase):
    """Binary standard output, through the console, which handles a closed pipe."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        console.out_bytes((data,))
        return len(data)


def provenance(space: "Space", seed: int | None = None) -> dict[str, Any]:
    """Return the provenance of a JSON result; `seed` is None if no random numbers were drawn."""
    return {
        "space": space.name,
        "fingerprint": space.fingerprint,
        "device": str(space.device),
        "precision": space.precision,
        "seed": seed,
        "version": __version__,
    }


def truncations(prepared: Prepared) -> list[dict[str, int]]:
    """Return the sentences over the token limit for JSON, with indices from 1."""
    return [asdict(cut) | {"index": cut.index + 1} for cut in prepared.truncated]


@contextmanager
def concept_writer(
    target: str | None,
    info: "SpaceInfo",
    dtype: Literal["float16", "float32"],
    force: bool,
    run: dict[str, Any],
    allow_empty: bool = False,
) -> Iterator["ConceptWriter"]:
    """Open a writer of documents with concepts; without a target it prints JSON Lines."""
    from lcm_cli.documents import ConceptWriter, open_writer, to_json

    if target is None:
        yield ConceptWriter(info, dtype, lambda document: console.emit(to_json(document)))
        return
    pipe = cast(BinaryIO, Pipe())
    with open_writer(
        target, info, dtype=dtype, force=force, stdout=pipe, run=run, allow_empty=allow_empty
    ) as writer:
        yield writer
