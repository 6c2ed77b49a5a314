"""What travels through every command: a document, and what a file says of its concepts' space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from lcm_cli.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Concepts: TypeAlias = "NDArray[np.floating[Any]]"  # a string: numpy is imported when it is needed
Scores: TypeAlias = "NDArray[np.float32]"


@dataclass(frozen=True)
class SpaceInfo:
    """What a concept file says of the space that its concepts lie in.

    `fingerprint` identifies the weights. Name and fingerprint are empty where the file, made by
    another program, does not say.
    """

    name: str
    fingerprint: str
    dim: int


@dataclass(eq=False)
class Document:
    """A text, its sentences, or its concepts: as much of these as is known so far."""

    id: str
    lang: str = ""  # a language code such as "fra_Latn"; empty if unknown
    text: str = ""  # not yet split into sentences
    sentences: list[str] = field(default_factory=list)
    paragraphs: list[int] = field(default_factory=list)  # of each sentence; empty if unknown
    concepts: Concepts | None = None  # (S, D) float32 or float16, one row a sentence
    origin: str = ""  # where it was read, for messages: "corpus.jsonl line 3"
    space: SpaceInfo | None = None  # of the concepts, if the file tells
    split: str = ""  # which part of a corpus it is in, such as "train"; empty if none
    target: Document | None = None  # what a model is to make of it: a summary, for one
    plans: Document | None = None  # a sentence for each paragraph, that says what it is about
    fragility: Scores | None = None  # of each sentence, (S,) float32; written, and read by training

    @property
    def label(self) -> str:
        """What messages call this document: where it comes from, and its id if that adds to it."""
        if not self.origin:
            return repr(self.id)
        # Without an id of its own a document has one made of these parts: "corpus.jsonl:3".
        if self.origin.replace(" line ", ":").replace(" row ", ":").endswith(self.id):
            return self.origin
        return f"{self.origin} ({self.id!r})"


class SpaceLike(Protocol):
    """The part of a loaded space that tells whose concepts it understands."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dim(self) -> int: ...


def target_of(id: str, lang: str, origin: str, **known: Any) -> Document:
    """Return the target of the document that has these fields; `known` are more of its own."""
    return Document(id, lang, origin=f"{origin}, its target", **known)


def plans_of(id: str, lang: str, origin: str, **known: Any) -> Document:
    """Return the plans of the document that has these fields; `known` are more of their own."""
    return Document(id, lang, origin=f"{origin}, its plans", **known)


def check_plans(document: Document) -> None:
    """Raise IntegrityError unless the plans, if any, are of the paragraphs and the same width."""
    from lcm_cli.text.paragraphs import count

    plans, own = document.plans, document.concepts
    if plans is None:
        return
    given = len(plans.sentences) if plans.concepts is None else len(plans.concepts)
    if document.sentences and given != count(document.paragraphs):
        raise IntegrityError(
            f"{document.label} has {given} plans and {count(document.paragraphs)} paragraphs",
            "give one sentence for each paragraph; in a text blank lines part these",
        )
    if own is not None and plans.concepts is not None and own.shape[1] != plans.concepts.shape[1]:
        raise IntegrityError(
            f"{document.label} has concepts of width {own.shape[1]}, and its plans"
            f" {plans.concepts.shape[1]}",
            "embed the text again: lcm embed FILE -o NEW.parquet",
        )


def filled(part: Document) -> Document | None:
    """Return a document that belongs to another, checked; None if there is nothing in it."""
    if not part.sentences and part.concepts is None:
        return None
    check_alignment(part)
    return part


def check_alignment(document: Document, *, has_sentences: bool | None = None) -> None:
    """Raise IntegrityError unless sentences, paragraphs and concepts are one to one.

    What is unknown (empty, or None) is left out; `has_sentences` says that an empty list of
    sentences is meant.
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
    if len(set(counts.values())) > 1:
        found = " and ".join(f"{count} {what}" for what, count in counts.items())
        raise IntegrityError(
            f"{document.label} has {found}, which must be as many",
            "embed its sentences again: lcm embed FILE -o NEW.parquet",
        )


def check_space(info: SpaceInfo | None, space: SpaceLike | SpaceInfo) -> None:
    """Raise IntegrityError if concepts described by `info` mean nothing in `space`.

    What the file does not say is not held against it; the width always counts.
    """
    if info is None:
        return
    if info.fingerprint and info.fingerprint != space.fingerprint:
        raise IntegrityError(
            f"these concepts were made in {described(info)}, and this is {described(space)}",
            _way_out(info, space),
        )
    if info.dim != space.dim:
        raise IntegrityError(
            f"these concepts have {info.dim} dimensions, and those of {space.name} {space.dim}",
            _way_out(info, space),
        )


def described(space: SpaceLike | SpaceInfo) -> str:
    """Return what messages call a space."""
    if not space.fingerprint:
        return "a space that is not named"
    return f"the space {space.name} (weights {space.fingerprint[:12]})"


def _way_out(info: SpaceInfo, space: SpaceLike | SpaceInfo) -> str:
    again = f"embed the text again: lcm embed TEXT --space {space.name} -o NEW.parquet"
    if not info.name:
        return f"name the space that made them with --space, or {again}"
    if info.name == space.name:
        return again
    return f"add --space {info.name}, or {again}"
