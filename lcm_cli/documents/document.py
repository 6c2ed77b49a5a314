"""The document that every command passes on, and the description of its concepts' space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from lcm_cli.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lcm_cli.documents.formats.skeleton import Passage, Skeleton
    from lcm_cli.documents.formats.written import TextForm
    from lcm_cli.documents.recording import Recording

Concepts: TypeAlias = "NDArray[np.floating[Any]]"  # a string, since numpy is imported lazily
Scores: TypeAlias = "NDArray[np.float32]"


@dataclass(frozen=True)
class SpaceInfo:
    """The space of the concepts in a file, as recorded there.

    `fingerprint` identifies the weights. Name and fingerprint are empty if the file, written by
    another program, does not record them.
    """

    name: str
    fingerprint: str
    dim: int


@dataclass(eq=False)
class Document:
    """A document: whichever of its text, sentences and concepts are known so far."""

    id: str
    lang: str = ""  # a language code such as "fra_Latn"; empty if unknown
    text: str = ""  # not yet split into sentences
    sentences: list[str] = field(default_factory=list)
    paragraphs: list[int] = field(default_factory=list)  # of each sentence; empty if unknown
    concepts: Concepts | None = None  # (S, D) float32 or float16, one row a sentence
    origin: str = ""  # where it was read, for messages: "corpus.jsonl line 3"
    space: SpaceInfo | None = None  # of the concepts, if the file records it
    split: str = ""  # the part of a corpus that it belongs to, such as "train"; empty if none
    target: Document | None = None  # the text that a model should produce, such as a summary
    plans: Document | None = None  # one sentence per paragraph, stating its topic
    fragility: Scores | None = None  # per sentence, (S,) float32; only training reads it
    form: TextForm | None = None  # of its file, if that is plain text
    passages: tuple[Passage, ...] = ()  # of its file; empty for plain text, which blocks divide
    recording: Recording | None = None  # speech, not yet encoded
    times: list[tuple[float, float]] = field(default_factory=list)  # of each sentence, in seconds
    skeleton: Skeleton | None = None  # of its file, if the text can be replaced in it

    @property
    def label(self) -> str:
        """The document's name in messages: its origin, and its id unless derived from that."""
        if not self.origin:
            return repr(self.id)
        # The reader gives a document without an id one made of its origin: "corpus.jsonl:3".
        if self.origin.replace(" line ", ":").replace(" row ", ":").endswith(self.id):
            return self.origin
        return f"{self.origin} ({self.id!r})"


class SpaceLike(Protocol):
    """The attributes of a loaded space that identify it."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dim(self) -> int: ...


def target_of(id: str, lang: str, origin: str, **known: Any) -> Document:
    """Return a target for the document with this id, language and origin, with fields `known`."""
    return Document(id, lang, origin=f"{origin}, its target", **known)


def plans_of(id: str, lang: str, origin: str, **known: Any) -> Document:
    """Return plans for the document with this id, language and origin, with fields `known`."""
    return Document(id, lang, origin=f"{origin}, its plans", **known)


def check_plans(document: Document) -> None:
    """Raise IntegrityError unless there is one plan per paragraph, as wide as the concepts."""
    from lcm_cli.text.paragraphs import count

    plans, own = document.plans, document.concepts
    if plans is None:
        return
    plan_count = len(plans.sentences) if plans.concepts is None else len(plans.concepts)
    if document.sentences and plan_count != count(document.paragraphs):
        raise IntegrityError(
            f"{document.label} has {plan_count} plans and {count(document.paragraphs)} paragraphs",
            "give one sentence for each paragraph; in a text, blank lines separate paragraphs",
        )
    if own is not None and plans.concepts is not None and own.shape[1] != plans.concepts.shape[1]:
        raise IntegrityError(
            f"{document.label} has concepts of width {own.shape[1]}, but plans of width"
            f" {plans.concepts.shape[1]}",
            "embed the text again: lcm embed FILE -o NEW.parquet",
        )


def checked_part(part: Document) -> Document | None:
    """Return a target or plans after `check_alignment`; None if they are empty."""
    if not part.sentences and part.concepts is None:
        return None
    check_alignment(part)
    return part


def check_alignment(document: Document, *, has_sentences: bool | None = None) -> None:
    """Raise IntegrityError unless sentences, paragraphs, concepts and scores match in number.

    Those that are unknown (empty, or None) are ignored; with `has_sentences` an empty list of
    sentences counts as 0 sentences.
    """
    counts = {}
    if document.sentences or has_sentences:
        counts["sentences"] = len(document.sentences)
    if document.concepts is not None:
        counts["concepts"] = len(document.concepts)
    if document.paragraphs:
        counts["paragraph numbers"] = len(document.paragraphs)
    if document.fragility is not None:
        counts["fragility scores"] = len(document.fragility)
    if document.times:
        counts["times"] = len(document.times)
    if len(set(counts.values())) > 1:
        found = " and ".join(f"{count} {what}" for what, count in counts.items())
        raise IntegrityError(
            f"{document.label} has {found}; the numbers must match",
            "embed its sentences again: lcm embed FILE -o NEW.parquet",
        )


def check_space(info: SpaceInfo | None, space: SpaceLike | SpaceInfo) -> None:
    """Raise IntegrityError unless concepts described by `info` lie in `space`.

    Concepts of unknown origin pass if their width matches.
    """
    if info is None:
        return
    if info.fingerprint and info.fingerprint != space.fingerprint:
        raise IntegrityError(
            f"these concepts lie in {space_label(info)}, not in {space_label(space)}",
            _hint(info, space),
        )
    if info.dim != space.dim:
        raise IntegrityError(
            f"these concepts have {info.dim} dimensions, but those of {space.name} have"
            f" {space.dim}",
            _hint(info, space),
        )


def space_label(space: SpaceLike | SpaceInfo) -> str:
    """Return the name of a space in messages."""
    if not space.fingerprint:
        return "an unnamed space"
    return f"the space {space.name} (weights {space.fingerprint[:12]})"


def _hint(info: SpaceInfo, space: SpaceLike | SpaceInfo) -> str:
    again = f"embed the text again: lcm embed TEXT --space {space.name} -o NEW.parquet"
    if not info.name:
        return f"name the space that made them with --space, or {again}"
    if info.name == space.name:
        return again
    return f"add --space {info.name}, or {again}"
