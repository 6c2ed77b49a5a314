"""Shared parts of `lcm translate`: citations, JSON, and the report of doubtful sentences."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lcm_cli import console
from lcm_cli.documents.formats.captions import SUFFIXES, Captions
from lcm_cli.schema import counted
from lcm_cli.text.languages import language
from lcm_cli.writing.translate import DOUBTS, Rendering, Translation

from ._result import OutputKind, provenance, truncations
from ._road import SHOWN_WARNINGS

if TYPE_CHECKING:
    from lcm_cli.pipeline import Prepared
    from lcm_cli.space import Space
    from lcm_cli.writing.glossary import Glossary, Term


class DoubtReport:
    """Warns about refused sentences; `finish` reports the doubtful ones and missed terms."""

    def __init__(self, near: float, glossary: "Glossary | None") -> None:
        self._near, self._glossary = near, glossary
        self._total = self._doubtful = self._shown = 0
        self._found: Counter[Term] = Counter()
        self._missed: Counter[Term] = Counter()

    def add(self, translation: Translation) -> None:
        """Count the sentences of a document, and warn about refused ones."""
        for code, renderings in translation.sentences.items():
            for n, rendering in enumerate(renderings):
                self._total += 1
                self._doubtful += rendering.doubt is not None
                self._count_terms(translation, n, code, rendering)
                if rendering.doubt not in (None, "far") and self._shown < SHOWN_WARNINGS:
                    self._shown += 1
                    place = f"{translation.document.label}: sentence {n + 1}"
                    console.warn(f"{place} ({language(code).name}): {DOUBTS[rendering.doubt]}")

    def finish(self, hint: str) -> None:
        """Report the counts; `hint` tells users where the doubtful sentences are marked."""
        for term, missed in self._missed.items():
            total = counted(self._found[term], "sentence")
            console.info(f"glossary: {term} missed in {missed:,} of {total}")
        if self._doubtful:
            are = "is" if self._doubtful == 1 else "are"
            total = counted(self._total, "sentence")
            limit = f"below {self._near:.2f} or refused"
            console.info(f"{self._doubtful:,} of {total} {are} doubtful ({limit}); {hint}")

    def _count_terms(
        self, translation: Translation, n: int, code: str, rendering: Rendering
    ) -> None:
        if self._glossary is None:
            return
        document = translation.document
        for term in self._glossary.found(document.sentences[n], document.lang, code):
            self._found[term] += 1
            if term.term in rendering.lost:
                self._missed[term] += 1


def cited(each: "Prepared", translation: Translation, code: str) -> Iterator[str]:
    """Yield the sentences in one language, each followed by its source and defects."""
    sources = translation.document.sentences
    for n, (source, said) in enumerate(zip(sources, translation.sentences[code], strict=True)):
        yield said.text
        mark = f"doubtful, {DOUBTS[said.doubt]}: " if said.doubt else ""
        where = f"{n + 1}, {each.place(n)}" if each.place(n) else str(n + 1)
        yield f"    {mark}[{where}] {said.similarity:.2f}  {source}"
        if said.lost:
            yield f"    missing: {', '.join(said.lost)}"
        for other in said.candidates[1:]:
            yield f"    or {other.similarity:.2f} ({other.score:.3f})  {other.text}"


def with_captions(each: "Prepared", suffix: str) -> "Prepared":
    """Return a document of speech with the skeleton of subtitles, if the output's suffix is one."""
    document = each.document
    if not document.times or suffix not in SUFFIXES:
        return each
    captions = Captions(document.sentences, document.times, suffix)
    passages = list(range(len(document.sentences)))
    return replace(each, document=replace(document, skeleton=captions), passages=passages)


def output_kind(each: "Prepared", cite: bool = False) -> OutputKind:
    """Return the kind of a document's output: its own format, or text for citations."""
    skeleton = each.document.skeleton
    if skeleton is None or cite:
        return OutputKind()
    return OutputKind(skeleton.suffix, skeleton.is_text, plain=False)


def rendered(each: "Prepared", translation: Translation, one_per_line: bool) -> dict[str, bytes]:
    """Return the document by language code, in the format of its file if it has one."""
    skeleton = each.skeleton()
    if skeleton is None:
        texts = {code: translation.text(code, one_per_line) for code in translation.sentences}
        return {code: f"{text}\n".encode() for code, text in texts.items()}
    return {
        code: each.render(skeleton, [one.text for one in said], code)
        for code, said in translation.sentences.items()
    }


def record(
    each: "Prepared", translation: Translation, one_per_line: bool, space: "Space"
) -> dict[str, Any]:
    """Return the JSON object of a document."""
    return {
        "id": each.document.id,
        "lang": each.document.lang,
        "sentences": [
            _sentence(n, text, {code: said[n] for code, said in translation.sentences.items()})
            | _times(each, n)
            for n, text in enumerate(each.document.sentences)
        ],
        "translations": _whole(each, translation, one_per_line),
        "truncated": truncations(each),
        **provenance(space),
    }


def _times(each: "Prepared", n: int) -> dict[str, float]:
    """Return start and end of a sentence of speech, in seconds."""
    times = each.document.times
    return dict(zip(("start", "end"), times[n], strict=True)) if times else {}


def _whole(each: "Prepared", translation: Translation, one_per_line: bool) -> dict[str, str]:
    """Return the document by language code: in its format, unless that is binary."""
    if not output_kind(each).is_text:
        return {code: translation.text(code, one_per_line) for code in translation.sentences}
    files = rendered(each, translation, one_per_line)
    return {code: data.decode("utf-8-sig").removesuffix("\n") for code, data in files.items()}


def _sentence(n: int, text: str, said: dict[str, Rendering]) -> dict[str, Any]:
    found = {
        "index": n + 1,
        "text": text,
        "texts": {code: one.text for code, one in said.items()},
        "similarity": {code: round(one.similarity, 4) for code, one in said.items()},
        "doubt": {code: one.doubt for code, one in said.items()},
        "lost": {code: list(one.lost) for code, one in said.items()},
    }
    if any(one.candidates for one in said.values()):
        found["candidates"] = {
            code: [
                {
                    "text": other.text,
                    "score": round(other.score, 4),
                    "similarity": round(other.similarity, 4),
                }
                for other in one.candidates
            ]
            for code, one in said.items()
        }
    return found
