"""lcm similar: the sentences nearest in meaning to a query, in any language of the space."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_cli import console
from lcm_cli.documents import Document
from lcm_cli.errors import UsageError

from . import _options as options

if TYPE_CHECKING:
    from lcm_cli.pipeline import Prepared
    from lcm_cli.search.corpus import Hit
    from lcm_cli.space import Space

    from ._result import Result

EPILOG = """\
lcm similar "Where is my dog?" --in corpus/

lcm similar "Wo ist mein Hund?" --in corpus/ --to English -k 3

lcm similar questions.txt --in corpus.index/ --json
"""


def main(
    query: Annotated[
        str,
        typer.Argument(
            metavar="QUERY",
            help="A sentence, or a file whose sentences are the queries; - for standard input.",
            show_default=False,
        ),
    ],
    within: Annotated[
        list[str] | None,
        typer.Option(
            "--in",
            metavar="CONCEPTS",
            help="File or folder of concepts, or an index, to search; repeat for several.",
            show_default=False,
        ),
    ] = None,
    to: options.To = None,
    source: options.From = "auto",
    count: Annotated[
        int, typer.Option("-k", min=1, metavar="N", help="Number of sentences for each query.")
    ] = 5,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare every sentence, even if an index has a graph.")
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
    """Find the sentences nearest in meaning to a query, in any language of the space.

    Each line of the result gives the cosine, the document, the number of the sentence in it, the
    language and the sentence, separated by tabs.
    """
    from ._corpora import Corpora, required
    from ._result import open_result
    from ._space import LocatedSpace

    with open_result(output, force) as out:
        paths = required(within)
        if query == "-" and "-" in paths:
            raise UsageError("- (standard input) is named twice", "it can be read only once")
        located = LocatedSpace(space)
        codes = located.targets(to)
        asked = _Queries(query, located, source, one_per_line)
        corpora = Corpora(paths)
        loaded = located.load(device, precision, batch_tokens)
        corpora.check(loaded)
        queries = asked.embedded(loaded)
        found = corpora.search(_concepts(queries), count, exact=exact)
        if found and len(found[0]) < count:
            console.info(f"there are only {len(found[0])} sentences to search")
        texts = _translated(found, codes, loaded)
        several = len(found) > 1
        for (sentence, lang), hits in zip(_sentences(queries), found, strict=True):
            if json:
                out.emit(_record(sentence, lang, hits, texts, loaded))
            else:
                asked_for = Document(sentence, lang, origin=sentence)
                _show(out, asked_for, hits, texts, codes, several)
    asked.finish()
    corpora.problems.finish()


class _Queries:
    """The sentences to search for: those of a file or the argument itself."""

    def __init__(self, query: str, located: Any, source: str, one_per_line: bool) -> None:
        from lcm_cli.pipeline import prepare_documents

        from ._road import Road

        self._road: Road | None = None
        self._typed: Prepared | None = None
        if not query.strip():
            raise UsageError("the query is empty", "write a sentence, or name a file")
        if query == "-" or _is_path(query):
            self._road = Road([query], located, source, one_per_line)
        else:
            typed = Document("query", text=query, origin="the query")
            where = located.languages, located.name, located.language(source)
            self._typed = prepare_documents(typed, *where, one_per_line=True)

    def embedded(self, space: "Space") -> "list[Prepared]":
        """Return the queries with their concepts."""
        from lcm_cli.pipeline import embed

        if self._road is None:
            assert self._typed is not None
            (typed,) = embed([self._typed], space)
            for cut in typed.truncated:
                what = f"the query has {cut.tokens} tokens"
                console.warn(f"{what}; only the first {cut.limit} are encoded")
            return [typed]
        with console.progress("embedding (sentences)") as advance:
            return [each for window in self._road.embedded(space, advance) for each in window]

    def finish(self) -> None:
        """Exit if a file had problems."""
        if self._road is not None:
            self._road.finish()


def _is_path(query: str) -> bool:
    """Return whether the query names a file: one that exists, or a word like "name.txt".

    A missing file of such a name is then reported, rather than searched for as a sentence.
    """
    try:
        if Path(query).exists():
            return True
    except OSError:  # a sentence may be too long for a name
        return False
    return re.fullmatch(r"\S+\.[a-z]{2,11}", query) is not None


def _concepts(queries: "Sequence[Prepared]") -> Any:
    import numpy as np

    return np.concatenate([each.concepts for each in queries])


def _sentences(queries: "Sequence[Prepared]") -> Iterator[tuple[str, str]]:
    for each in queries:
        for sentence in each.document.sentences:
            yield sentence, each.document.lang


def _translated(
    found: "list[list[Hit]]", codes: Sequence[str], space: "Space"
) -> "dict[int, dict[str, str]]":
    """Return the text of each hit by its id() and language: its own text, or decoded."""
    import numpy as np

    from lcm_cli.writing.links import hide

    hits = [hit for row in found for hit in row]
    texts: dict[int, dict[str, str]] = {id(hit): {} for hit in hits}
    for code in codes:
        other = [hit for hit in hits if not (hit.lang == code and hit.text)]
        for hit in hits:
            texts[id(hit)][code] = hit.text
        if other:
            limits = [_limit(hit, space) for hit in other]
            concepts = np.stack([hit.concept for hit in other]).astype(np.float32)
            sentences, langs = [hit.text for hit in other], [hit.lang for hit in other]
            masks, concepts = hide(sentences, langs, concepts, space)
            with console.progress("decoding (sentences)", len(other)) as advance:
                done = space.decode(concepts, [code], limits=limits, progress=advance)[code]
            for hit, masked, best in zip(other, masks, done, strict=True):
                texts[id(hit)][code] = masked.restore(best[0].text)
    return texts


def _limit(hit: "Hit", space: "Space") -> int:
    known = hit.text and hit.lang in space.languages
    return space.limits([hit.text], hit.lang)[0] if known else 256


def _show(
    out: "Result",
    query: Document,
    hits: "list[Hit]",
    texts: "dict[int, dict[str, str]]",
    codes: Sequence[str],
    several: bool,
) -> None:
    lines = []
    for hit in hits:
        shown = [texts[id(hit)][code] for code in codes] or [hit.text]
        cells = [f"{hit.score:.3f}", hit.document, str(hit.number), hit.lang, *shown]
        lines.append("\t".join(" ".join(cell.split()) for cell in cells))
    out.document(query, {query.lang: lines}, several)


def _record(
    sentence: str,
    lang: str,
    hits: "list[Hit]",
    texts: "dict[int, dict[str, str]]",
    space: "Space",
) -> dict[str, Any]:
    from ._result import provenance

    found = [
        {
            "score": round(hit.score, 4),
            "id": hit.document,
            "index": hit.number,
            "lang": hit.lang,
            "text": hit.text,
            "texts": texts[id(hit)],
        }
        for hit in hits
    ]
    return {"query": sentence, "lang": lang, "found": found, **provenance(space)}
