"""Read the shards of torch.distributed.checkpoint without running code that they contain.

torch unpickles the metadata and all values that are not tensors; here both are limited to data.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as kinds
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from lcm_cli.errors import IntegrityError

_METADATA = ".metadata"
_ALLOWED = {
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
}


class DataReader(FileSystemReader):
    """Reads shards whose metadata consist of torch's own data classes."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata. Raises IntegrityError if they are damaged or name anything else."""
        path = Path(self.path) / _METADATA
        try:
            with path.open("rb") as file:
                metadata = _DataUnpickler(file).load()
        except Exception as error:  # a damaged pickle can raise almost anything
            raise IntegrityError(f"{path} cannot be read: {error}") from error
        if not isinstance(metadata, Metadata):
            raise IntegrityError(f"{path} does not hold the metadata of shards")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in _ALLOWED
        if module == "torch":
            known = known or isinstance(getattr(torch, name, None), torch.dtype)
        if module == kinds.__name__:
            known = getattr(getattr(kinds, name, None), "__module__", "") == module
        if not known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not data")
        return super().find_class(module, name)


class DataPlanner(DefaultLoadPlanner):
    """Reads values other than tensors as torch reads weights: numbers, strings, lists, dicts."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Read a value, and pass it on in a pickle of our own."""
        safe = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), safe)
        safe.seek(0)
        super().load_bytes(read_item, safe)
