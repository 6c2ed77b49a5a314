"""Statistics of files of documents and concepts, including their damage."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lcm_cli.documents import dataset
from lcm_cli.documents.checks import finite_rows
from lcm_cli.documents.document import Concepts, Document, SpaceInfo, space_label
from lcm_cli.documents.reading import read_source
from lcm_cli.documents.sources import expand_paths
from lcm_cli.errors import LcmError
from lcm_cli.files import sha256

LISTED = 20  # problems, or bad concepts of a document, that are listed; all are counted


def describe(path: str) -> dict[str, Any]:
    """Return a description of a file, folder or stream of documents, as plain data for JSON.

    Keys: path, kind (documents, concepts or dataset), formats, bytes, space, dtypes, documents,
    targets and plans (the number of documents that have them), splits, sentences, concepts,
    languages, sentence_characters (per sentence), document_sentences (per document), norms (of the
    concepts), non_finite (concepts with NaN or infinity), problems, problem_count; for a data set
    also shards and unlisted.
    Broken documents are counted and listed under problems. Raises NotFoundError for a missing path,
    IntegrityError if a file cannot be read to its end.
    """
    totals = _Totals()
    unreadable: list[LcmError] = []
    sources = list(expand_paths([path], unreadable.append))
    if not sources:
        raise unreadable[0]
    for error in unreadable:
        totals.problem(error.message)
    for source in sources:
        for item in read_source(source, concepts=True, stdin=None):
            if isinstance(item, LcmError):
                totals.problem(item.message)
            else:
                totals.document(item)
    files = [source.path for source in sources if source.path and source.path.is_file()]
    report = {
        "path": path,
        "kind": "concepts" if totals.concepts else "documents",
        "formats": sorted({source.kind or "stream" for source in sources}),
        "bytes": sum(file.stat().st_size for file in files),
        **totals.report(),
    }
    manifest = dataset.read_manifest(Path(path)) if Path(path).is_dir() else None
    if manifest is not None:
        report |= {"kind": "dataset", **_about_dataset(Path(path), manifest, totals)}
    return report | {"problems": totals.problems, "problem_count": totals.problem_count}


@dataclass
class _Range:
    """The minimum, mean and maximum of numbers that arrive in parts."""

    count: int = 0
    total: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, values: Any) -> None:
        numbers = np.asarray(values, dtype=np.float64)
        if numbers.size:
            self.count += numbers.size
            self.total += float(numbers.sum())
            self.low = min(self.low, float(numbers.min()))
            self.high = max(self.high, float(numbers.max()))

    def report(self, digits: int) -> dict[str, float] | None:
        if not self.count:
            return None
        numbers = {"min": self.low, "mean": self.total / self.count, "max": self.high}
        return {key: round(value, digits) for key, value in numbers.items()}


@dataclass
class _Totals:
    """The counts and ranges over the documents read so far."""

    documents: int = 0
    targets: int = 0  # documents with a target
    plans: int = 0  # documents with plans
    sentences: int = 0
    concepts: int = 0
    non_finite: int = 0
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    dtypes: set[str] = field(default_factory=set)
    spaces: list[SpaceInfo] = field(default_factory=list)
    characters: _Range = field(default_factory=_Range)
    lengths: _Range = field(default_factory=_Range)
    norms: _Range = field(default_factory=_Range)

    def problem(self, message: str) -> None:
        self.problem_count += 1
        if len(self.problems) < LISTED:
            self.problems.append(message)

    def document(self, document: Document) -> None:
        self.documents += 1
        self.targets += document.target is not None
        self.plans += document.plans is not None
        self.languages[document.lang or "unknown"] += 1
        if document.split:
            self.splits[document.split] += 1
        self.sentences += len(document.sentences)
        self.characters.add([len(sentence) for sentence in document.sentences])
        if document.concepts is not None:
            self._concepts(document, document.concepts)
        if document.sentences or document.concepts is not None:
            units = document.sentences if document.concepts is None else document.concepts
            self.lengths.add(len(units))

    def _concepts(self, document: Document, concepts: Concepts) -> None:
        self.concepts += len(concepts)
        self.dtypes.add(str(concepts.dtype))
        space = document.space or SpaceInfo("", "", concepts.shape[1])
        if space not in self.spaces:
            if self.spaces:
                self.problem(f"{document.label}: in {space_label(space)}, {space.dim} dimensions")
            self.spaces.append(space)
        if space.dim != concepts.shape[1]:
            self.problem(f"{document.label}: {concepts.shape[1]} dimensions, not {space.dim}")
        finite = finite_rows(concepts)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            self.non_finite += len(bad)
            self.problem(f"{document.label}: NaN or infinite: {_listed(bad)}")
        # In float32: the squares of a float16 overflow from 256 on.
        self.norms.add(np.linalg.norm(concepts[finite].astype(np.float32), axis=1))

    def report(self) -> dict[str, Any]:
        return {
            "space": _about_space(self.spaces[0]) if self.spaces else None,
            "dtypes": sorted(self.dtypes),
            "documents": self.documents,
            "targets": self.targets,
            "plans": self.plans,
            "splits": dict(self.splits.most_common()),
            "sentences": self.sentences,
            "concepts": self.concepts,
            "languages": dict(self.languages.most_common()),
            "sentence_characters": self.characters.report(1),
            "document_sentences": self.lengths.report(1),
            "norms": self.norms.report(4),
            "non_finite": self.non_finite,
        }


def _listed(indices: Any) -> str:
    numbers = ", ".join(map(str, indices[:LISTED]))
    return f"concept {numbers}" + (", …" if len(indices) > LISTED else "")


def _about_space(space: SpaceInfo) -> dict[str, Any]:
    return {
        "name": space.name or None,
        "fingerprint": space.fingerprint or None,
        "dim": space.dim,
    }


def _about_dataset(folder: Path, manifest: dataset.Manifest, totals: _Totals) -> dict[str, Any]:
    """Compare a data set with its manifest, including the checksums."""
    for message in _differences(folder, manifest, totals):
        totals.problem(message)
    return {"shards": len(manifest.shards), "unlisted": dataset.unlisted(folder, manifest)}


def _differences(folder: Path, manifest: dataset.Manifest, totals: _Totals) -> Iterator[str]:
    for shard in manifest.shards:
        if sha256(folder / shard.file) != shard.sha256:
            yield f"{folder / shard.file} has another sha256 than its manifest lists"
    for what, count in (("documents", manifest.documents), ("concepts", manifest.concepts)):
        if getattr(totals, what) != count:
            yield f"{folder} has {getattr(totals, what)} {what}, but its manifest lists {count}"
