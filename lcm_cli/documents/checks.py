"""What concepts must be before anything is done with them."""

import numpy as np
from numpy.typing import NDArray

from lcm_cli.documents.document import Concepts, Document, SpaceInfo, described
from lcm_cli.errors import IntegrityError

_EMBED_AGAIN = (
    "embed its sentences again: lcm embed FILE -o NEW.parquet"
    "; lcm inspect FILE lists every such document"
)


def check_concepts(document: Document, space: SpaceInfo | None = None) -> None:
    """Raise IntegrityError unless a document's concepts can be used: (S >= 1, D), all finite.

    `space`: what other documents lie in, which this one must agree with.
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
            f" and its file says {own.dim}",
            _EMBED_AGAIN,
        )
    if space is not None:
        _check_agrees(document, own, space)


def finite_rows(concepts: Concepts) -> NDArray[np.bool_]:
    """Return which rows of (S, D) have no NaN and no infinity in them."""
    if concepts.dtype != np.float16:
        rows: NDArray[np.bool_] = np.all(np.isfinite(concepts), axis=1)
        return rows
    # NumPy's own test is some fifty times slower than a look at the exponent bits.
    bits = np.ascontiguousarray(concepts).view(np.uint16)
    rows = np.all((bits & 0x7C00) != 0x7C00, axis=1)
    return rows


def _check_agrees(document: Document, own: SpaceInfo, space: SpaceInfo) -> None:
    if own.dim != space.dim:
        raise IntegrityError(
            f"{document.label}: its concepts have {own.dim} dimensions, and those before it"
            f" {space.dim}",
            "these are of several spaces: give them to lcm one space at a time",
        )
    if own.fingerprint != space.fingerprint:
        raise IntegrityError(
            f"{document.label}: its concepts are of {described(own)}, and those before it"
            f" of {described(space)}",
            "give them to lcm one space at a time, or embed one of them again",
        )


def space_of(document: Document) -> SpaceInfo:
    """Return what is known of the space of a document's concepts, at least their width."""
    assert document.concepts is not None
    return document.space or SpaceInfo("", "", document.concepts.shape[1])
