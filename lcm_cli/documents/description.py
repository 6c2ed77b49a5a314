"""Statistics of files of documents and concepts, including their damage."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lcm_cli.documents import dataset, shares
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
    also shards and unlisted; for one in shares also shares (count, and the numbers of those that
    are finished, unfinished and missing). Of a data set that lacks shares, those that are finished
    are described.
    Broken documents are counted and listed under problems. Raises NotFoundError for a missing path,
    IntegrityError if a file cannot be read to its end.
    """
    totals = _Totals()
    unreadable: list[LcmError] = []
    folders, divided = _dataset_folders(Path(path))
    paths = [str(folder) for folder in folders] if divided else [path]
    sources = list(expand_paths(paths, unreadable.append))
    if unreadable and not sources:
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
    if folders or divided:
        report |= {"kind": "dataset", **_about_dataset(folders, totals), **divided}
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


def _dataset_folders(path: Path) -> tuple[list[Path], dict[str, Any]]:
    """Return the folders with a manifest that make up a data set, and a report on its shares."""
    if not path.is_dir():
        return [], {}
    if (division := shares.read_division(path)) is None:
        return ([path] if dataset.read_manifest(path) else []), {}
    found = shares.tally(path, division.count)
    folders = [shares.folder_of(path, index) for index in found.finished]
    return folders, {"shares": {"count": division.count, **found._asdict()}}


def _about_dataset(folders: list[Path], totals: _Totals) -> dict[str, Any]:
    """Compare the folders of a data set with their manifests, including the checksums."""
    found = [(folder, dataset.read_manifest(folder)) for folder in folders]
    manifests = [(folder, manifest) for folder, manifest in found if manifest is not None]
    for message in _differences(manifests, totals):
        totals.problem(message)
    unlisted = [name for each in manifests for name in dataset.unlisted(*each)]
    return {"shards": sum(len(each.shards) for _, each in manifests), "unlisted": unlisted}


def _differences(manifests: list[tuple[Path, dataset.Manifest]], totals: _Totals) -> Iterator[str]:
    for folder, manifest in manifests:
        for shard in manifest.shards:
            if sha256(folder / shard.file) != shard.sha256:
                yield f"{folder / shard.file} has another sha256 than its manifest lists"
    for what in ("documents", "concepts"):
        count, listed = getattr(totals, what), sum(getattr(each, what) for _, each in manifests)
        if count != listed:
            first = manifests[0][0]
            where = first if len(manifests) == 1 else first.parent
            yield f"{where} has {count} {what}, but its manifest lists {listed}"
