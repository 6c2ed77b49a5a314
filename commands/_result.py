"""Results of the commands on documents: text, JSON and concepts, to a file or standard output."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from lcm_cli import console
from lcm_cli.files import atomic_path
from lcm_cli.pipeline import Prepared
from lcm_cli.text.languages import language
from lcm_cli.version import __version__

if TYPE_CHECKING:
    from lcm_cli.documents import ConceptWriter, SpaceInfo
    from lcm_cli.space import Space


class Result:
    """The output of a command: takes lines of text, documents, or JSON objects."""

    def __init__(self, text: Callable[[str], None], emit: Callable[[Any], None]) -> None:
        self.text = text
        self.emit = emit
        self._begun = False

    def document(self, heading: str, blocks: Mapping[str, Sequence[str]], several: bool) -> None:
        """Write the lines of a document by language code.

        The heading is for `several` documents; each language is labelled if there are several.
        """
        if several:
            gap = "\n" if self._begun else ""
            self.text(f"{gap}==> {heading} <==")
        self._begun = True
        labels = {code: [f"{language(code).name} ({code}):"] for code in blocks if len(blocks) > 1}
        parts = [[*labels.get(code, []), *lines] for code, lines in blocks.items()]
        self.text("\n\n".join("\n".join(part) for part in parts))


@contextmanager
def open_result(output: str | None, force: bool) -> Iterator[Result]:
    """Open the output: standard output, or a file that appears once it is complete."""
    if output is None or output == "-":
        yield Result(console.out, console.emit)
        return
    with atomic_path(Path(output), force=force) as temporary, temporary.open("wb") as file:

        def text(line: str) -> None:
            file.write(f"{line}\n".encode())

        yield Result(text, lambda obj: text(json.dumps(obj, ensure_ascii=False)))


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
) -> Iterator["ConceptWriter"]:
    """Open a writer of documents with concepts; without a target it prints JSON Lines."""
    from lcm_cli.documents import ConceptWriter, open_writer, to_json

    if target is None:
        yield ConceptWriter(info, dtype, lambda document: console.emit(to_json(document)))
        return
    pipe = cast(BinaryIO, Pipe())
    with open_writer(target, info, dtype=dtype, force=force, stdout=pipe, run=run) as writer:
        yield writer
