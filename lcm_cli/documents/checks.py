"""Checks that concepts pass before any command uses them."""

import numpy as np
from numpy.typing import NDArray

from lcm_cli.documents.document import Concepts, Document, SpaceInfo, space_label
from lcm_cli.errors import IntegrityError

_EMBED_AGAIN = (
    "embed its sentences again: lcm embed FILE -o NEW.parquet"
    "; lcm inspect FILE lists every such document"
)


def check_concepts(document: Document, space: SpaceInfo | None = None) -> None:
    """Raise IntegrityError unless a document's concepts are usable: (S >= 1, D) and finite.

    If `space` is given, the concepts must also lie in it.
    """
    concepts = document.concepts
    if concepts is None or not len(concepts):
        raise IntegrityError(f"{document.label} has no concepts", _EMBED_AGAIN)
    finite = finite_rows(concepts)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise IntegrityError(
            f"{document.label}: {len(bad)} of its {len(concepts)} concepts have NaN or infinite"
            f" values; the first is concept {bad[0]}",
            _EMBED_AGAIN,
        )
    own = space_of(document)
    if own.dim != concepts.shape[1]:
        raise IntegrityError(
            f"{document.label}: its concepts have {concepts.shape[1]} dimensions,"
            f" but its file says {own.dim}",
            _EMBED_AGAIN,
        )
    if space is not None:
        _check_agrees(document, own, space)


def finite_rows(concepts: Concepts) -> NDArray[np.bool_]:
    """Return whether each row of (S, D) is free of NaN and infinity, (S,)."""
    if concepts.dtype != np.float16:
        rows: NDArray[np.bool_] = np.all(np.isfinite(concepts), axis=1)
        return rows
    # np.isfinite is about fifty times slower on float16 than a test of the exponent bits, which
    # are all ones in NaN and infinity.
    bits = np.ascontiguousarray(concepts).view(np.uint16)
    rows = np.all((bits & 0x7C00) != 0x7C00, axis=1)
    return rows


def _check_agrees(document: Document, own: SpaceInfo, space: SpaceInfo) -> None:
    if own.dim != space.dim:
        raise IntegrityError(
            f"{document.label}: its concepts have {own.dim} dimensions, but those before it"
            f" have {space.dim}",
            "run lcm on the files of one space at a time",
        )
    if own.fingerprint != space.fingerprint:
        raise IntegrityError(
            f"{document.label}: its concepts lie in {space_label(own)}, but those before it"
            f" in {space_label(space)}",
            "run lcm on the files of one space at a time, or embed them in the same space",
        )


def space_of(document: Document) -> SpaceInfo:
    """Return the space of a document's concepts, unnamed but with their width if unknown."""
    assert document.concepts is not None
    return document.space or SpaceInfo("", "", document.concepts.shape[1])
