"""lcm mine: translations in two corpora, or in two versions of a document."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_cli import console
from lcm_cli.errors import UsageError
from lcm_cli.schema import counted

from . import _options as options

if TYPE_CHECKING:
    import numpy as np

    from lcm_cli.documents import Document
    from lcm_cli.space import Space

    from ._road import PromptRoad
    from ._space import LocatedSpace

EPILOG = """\
lcm mine english.txt german.txt -o pairs.tsv

lcm mine english/ german/ --threshold 1.25 --json > pairs.jsonl

lcm mine story.txt geschichte.txt --align
"""
EMBEDDING, COMPARING = "embedding (sentences)", "comparing (sentences)"


def main(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A", help="File, folder or glob of text or concepts.", show_default=False
        ),
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="The same, in another language.", show_default=False)
    ],
    source: Annotated[
        str,
        typer.Option(
            "--from", metavar="LANG", help="Language of A: a code, a name, or auto to detect it."
        ),
    ] = "auto",
    source_b: Annotated[
        str,
        typer.Option(
            "--from-b", metavar="LANG", help="Language of B: a code, a name, or auto to detect it."
        ),
    ] = "auto",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="X",
            help="Smallest margin of a pair; higher is stricter.  [default: 1.18]",
            show_default=False,
        ),
    ] = None,
    align: Annotated[
        bool,
        typer.Option(
            "--align", help="A and B are versions of the same documents: align them in order."
        ),
    ] = False,
    json: options.Json = False,
    output: options.Output = None,
    force: options.Force = False,
    one_per_line: options.OnePerLine = False,
    space: options.Space = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    batch_tokens: options.BatchTokens = None,
) -> None:
    """Find translations: pairs of sentences with the same meaning in two corpora.

    Each line of the result gives the score, the sentence of A and that of B, separated by tabs. The
    score is the margin, which compares the cosine of a pair with those of its neighbours; with
    --align, it is the cosine.
    """
    from ._result import open_result
    from ._space import LocatedSpace

    if align and threshold is not None:
        raise UsageError("--threshold has no effect with --align", "drop one of them")
    if first == second == "-":
        raise UsageError("- (standard input) is named twice", "it can be read only once")
    with open_result(output, force) as out:
        located = LocatedSpace(space)
        roads = [
            _road(path, located, lang, one_per_line)
            for path, lang in ((first, source), (second, source_b))
        ]
        loaded = located.load(device, precision, batch_tokens)
        for road in roads:
            _check(road.beginning(1), loaded)
        a, b = (
            _pile(road, path, loaded, json)
            for road, path in zip(roads, (first, second), strict=True)
        )
        found = _aligned(a, b, loaded) if align else _mined(a, b, threshold)
        for score, left, right in found:
            if json:
                out.emit({"score": round(score, 4), "a": left.record(), "b": right.record()})
            else:
                out.text(f"{score:.4f}\t{left.line}\t{right.line}")
    for road in roads:
        road.finish()


@dataclass(frozen=True)
class _Span:
    """Consecutive sentences of a document."""

    document: "Document"
    start: int
    count: int = 1

    @property
    def text(self) -> str:
        from lcm_cli.pipeline import prose

        return prose(self.document.sentences[self.start :][: self.count], self.document.lang)

    @property
    def line(self) -> str:
        """The text without tabs and line breaks."""
        return " ".join(self.text.split())

    def record(self) -> dict[str, Any]:
        """Return the span for JSON."""
        numbers = list(range(self.start + 1, self.start + self.count + 1))
        text = self.text if self.document.sentences else ""
        document = self.document
        return {"id": document.id, "indices": numbers, "lang": document.lang, "text": text}


Found = Iterator[tuple[float, _Span, _Span]]


def _road(path: str, located: "LocatedSpace", lang: str, one_per_line: bool) -> "PromptRoad":
    from ._road import PromptRoad

    # It accepts both text and concepts.
    return PromptRoad([path], located, lang, one_per_line, ahead=1, plans=False)


def _pile(road: "PromptRoad", path: str, space: "Space", json: bool) -> "list[Document]":
    """Return the documents of a corpus with their concepts."""
    documents: list[Document] = []
    with console.progress(f"{EMBEDDING}, {path}") as advance:
        for window in road.embedded(space, advance):
            documents += [each.document for each in window]
    _check(documents, space)
    for document in documents:
        if not json and not document.sentences:
            raise UsageError(
                f"{document.label} has concepts, but not the text of its sentences",
                "add --json to print their numbers, or give the text",
            )
    return documents


def _check(documents: "Sequence[Document]", space: "Space") -> None:
    from lcm_cli.documents import check_space
    from lcm_cli.documents.checks import space_of

    for document in documents:
        if document.concepts is not None:
            check_space(space_of(document), space)


def _mined(first: "list[Document]", second: "list[Document]", threshold: float | None) -> Found:
    from lcm_cli.search.corpus import concepts_of
    from lcm_cli.search.mining import THRESHOLD, mine

    spans = [
        [_Span(document, at) for document in pile for at in range(len(concepts_of(document)))]
        for pile in (first, second)
    ]
    total = sum(map(len, spans))
    least = THRESHOLD if threshold is None else threshold
    with console.progress(COMPARING, total) as advance:
        pairs = mine(_matrix(first), _matrix(second), threshold=least, progress=advance)
    console.info(
        f"{counted(len(pairs), 'pair')} in {len(spans[0])} and {counted(len(spans[1]), 'sentence')}"
    )
    for pair in pairs:
        yield pair.score, spans[0][pair.x], spans[1][pair.y]


def _aligned(first: "list[Document]", second: "list[Document]", space: "Space") -> Found:
    from lcm_cli.search.alignment import align

    if len(first) != len(second):
        raise UsageError(
            f"A has {counted(len(first), 'document')}, but B has {len(second)}",
            "align versions of the same documents, in the same order",
        )
    linked, alone = 0, [0, 0]
    for a, b in zip(first, second, strict=True):
        for link in align(_side(a, space), _side(b, space)):
            if link.x_count and link.y_count:
                linked += 1
                yield (
                    link.score,
                    _Span(a, link.x, link.x_count),
                    _Span(b, link.y, link.y_count),
                )
            alone[0] += link.x_count if not link.y_count else 0
            alone[1] += link.y_count if not link.x_count else 0
    console.info(
        f"{counted(linked, 'pair')}; left out: {counted(alone[0], 'sentence')} of A and"
        f" {alone[1]} of B"
    )


def _side(document: "Document", space: "Space") -> Any:
    """Return the concepts of a document and of its joined neighbours, for the alignment."""
    from lcm_cli.search.alignment import Side
    from lcm_cli.search.corpus import concepts_of

    texts = [_Span(document, at, 2).text for at in range(len(document.sentences) - 1)]
    if not texts or document.lang not in space.languages:
        return Side.of(concepts_of(document))
    with console.progress(f"{EMBEDDING}, joined") as advance:
        joined = space.encode(texts, document.lang, advance).concepts
    return Side.of(concepts_of(document), joined)


def _matrix(documents: "list[Document]") -> "np.ndarray":
    import numpy as np

    from lcm_cli.search.corpus import concepts_of

    return np.concatenate([concepts_of(document) for document in documents])
