"""The [data] table of a concept model's recipe: data sets, and how documents become batches."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from lcm_cli.errors import IntegrityError

_ENTRY = re.compile(r"(?P<path>.+?)(=(?P<split>[^=:/]+))?(:(?P<weight>\d+(\.\d+)?))?")


@dataclass(frozen=True)
class DataSet:
    """One entry of `train` or `validation`.

    `path`: a data set, a folder of Parquet files, one such file, or a glob. `split`: use only the
    documents of this split. `weight`: how often an epoch uses each document; 0.5 means every other
    epoch. `task`: the model's prompt to put between a source and its target. `concepts` and
    `target` name the columns of the source's and the target's concepts, if they differ from those
    in docs/data.md.
    """

    path: str
    split: str = ""
    weight: float = 1.0
    task: str = ""
    concepts: str = ""
    target: str = ""

    def __post_init__(self) -> None:
        """Raise IntegrityError unless the weight is a positive number."""
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise IntegrityError(f"{self.path}: weight {self.weight} must be above 0")


@dataclass(frozen=True)
class DataOptions:
    """The data of a concept model.

    An entry of `train` and `validation` is PATH[=SPLIT][:WEIGHT], or a table with the keys of
    `DataSet`. `batch_concepts` is the number of concepts in a batch, over all processes. Documents
    longer than `wrap` concepts are cut into pieces of about equal length; `packing` packs several
    short ones into a row. Documents with fewer than `min_sentences` or more than `max_sentences`
    are left out, as are those for which `filter`, a condition on their columns, is not true.
    `prefix` and `suffix` are sentences put before and after each document; the defaults are the
    text that opens the model's prompts, if it has one (SONAR-LLM), and the model's end of text.
    `plan` puts a break after each paragraph of a plain document and, if the documents have plans,
    its plan before each paragraph. The data are divided into `readers` parts, of which each process
    reads its own; the order of documents depends on this number, not on that of processes.
    """

    train: tuple[str | DataSet, ...]
    validation: tuple[str | DataSet, ...] = ()
    batch_concepts: int = 7168
    wrap: int = 128
    packing: bool = False
    min_sentences: int = 1
    max_sentences: int | None = None
    filter: str = ""
    prefix: tuple[str, ...] | None = None
    suffix: tuple[str, ...] | None = None
    plan: bool = False
    readers: int = 8

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid values."""
        if not self.train:
            raise IntegrityError("train names no data", 'train = ["corpus/=train"]')
        for name in ("batch_concepts", "wrap", "min_sentences", "readers"):
            least = 2 if name == "wrap" else 1
            if getattr(self, name) < least:
                raise IntegrityError(f"{name} = {getattr(self, name)} must be at least {least}")
        if self.max_sentences is not None and self.max_sentences < self.min_sentences:
            raise IntegrityError(
                f"max_sentences = {self.max_sentences} is less than"
                f" min_sentences = {self.min_sentences}"
            )


def as_data_set(entry: str | DataSet) -> DataSet:
    """Parse an entry: "wiki/=train:4" is the split train of wiki/, four times per epoch.

    An entry that is the name of an existing file or folder is taken whole, even with "=" or ":".
    """
    if isinstance(entry, DataSet):
        return entry
    if not entry:
        raise IntegrityError("an entry of the data is empty", 'train = ["corpus/=train"]')
    if Path(entry).exists():
        return DataSet(entry)
    found = _ENTRY.fullmatch(entry)
    if found is None:  # the entry contains line breaks
        return DataSet(entry)
    return DataSet(found["path"], found["split"] or "", float(found["weight"] or 1))
