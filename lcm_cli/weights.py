"""Weights in safetensors files: read, rounded and written, in whatever way they are stored.

Floats are stored as they are. A matrix NAME may also be int8 (R, C), with one scale a row in
NAME.scale, float16 (R,): the weight is the product of the two, computed in float32.

Shapes: R rows, C columns.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.headers import SCALE, is_scale

Store = Literal["float32", "float16", "int8"]

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8"}
_BLOCK = 1 << 24  # bytes written, or numbers rounded, at a time
_MOST = 127  # the greatest of the int8 numbers in use: the range is symmetric
_TRUSTED = 2.0**-17  # see `row_scales`
_LARGEST = torch.finfo(torch.float16).max
_SAMPLED = 1 << 12  # numbers of a matrix that tell it from others
_DRAWS = frozenset({"normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_"})


@dataclass(frozen=True)
class Int8Matrix:
    """A matrix as it is stored in int8: `numbers` (R, C), and the `scales` (R,) of its rows."""

    numbers: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """The shape of the matrix."""
        return self.numbers.shape

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights where none is asked for: that of the vectors beside it."""
        return self.scales.dtype

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return self.numbers.nbytes + self.scales.nbytes

    def is_floating_point(self) -> bool:
        """Return whether its weights are floats, as those of other tensors."""
        return True

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Any) -> "Int8Matrix":
        return Int8Matrix(self.numbers[rows], self.scales[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Return the weights, (R, C)."""
        scales = self.scales.to(device, torch.float32)
        # In float32 the product is exact: 7 bits times 11.
        return self.numbers.to(device).float().mul_(scales[:, None]).to(dtype)


Weight = Tensor | Int8Matrix


@dataclass(frozen=True)
class Later:
    """A tensor that is made when its turn to be written comes."""

    dtype: torch.dtype
    shape: torch.Size
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return self.shape.numel() * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]


Piece = Tensor | Later


@contextmanager
def without_content() -> Iterator[None]:
    """Build networks whose tensors have shapes but no content, until weights are assigned."""
    with torch.device("meta"), _SkipDraws():
        yield


class _SkipDraws(TorchFunctionMode):
    """Skips the drawing of initial values on the meta device.

    It would do nothing there, but its first call imports sympy and half of torch: two seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in _DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def read_weights(*files: Path) -> dict[str, Weight]:
    """Map the weights of one checkpoint, in all of its `files`, into memory; none are read yet.

    Raises NotFoundError, or IntegrityError for a damaged file, naming it and the tensor.
    """
    found: dict[str, Tensor] = {}
    places: dict[str, Path] = {}
    for file in files:
        part = map_file(file)
        found |= part
        places |= dict.fromkeys(part, file)
    int8 = {name for name, tensor in found.items() if tensor.dtype == torch.int8}
    weights: dict[str, Weight] = {}
    for name, tensor in found.items():
        if name in int8:
            weights[name] = _rows(name, tensor, found.get(name + SCALE), places[name])
        elif name.endswith(SCALE) and name.removesuffix(SCALE) in found:
            if not is_scale(name, int8):
                matrix = found[name.removesuffix(SCALE)]
                raise _unfit(places[name], f"{name} is of a matrix in {matrix.dtype}, not int8")
        else:
            weights[name] = tensor
    return weights


def map_file(file: Path) -> dict[str, Tensor]:
    """Map the tensors of a safetensors file into memory, as it holds them.

    Raises as `read_weights` does.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise NotFoundError(f"no such file: {file}", "the checkpoint is incomplete: pull it again")
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(
            f"{file} is damaged: {error}", "it may be cut short: pull or copy it again"
        ) from error


def _rows(name: str, numbers: Tensor, scales: Tensor | None, file: Path) -> Int8Matrix:
    """Put a matrix together with its scales, which are looked at: they are few."""
    if scales is None:
        raise _unfit(file, f"{name} is int8, and has no scales: {name}{SCALE} is missing")
    if numbers.ndim != 2:
        raise _unfit(file, f"{name} is int8 of shape {tuple(numbers.shape)}, and no matrix")
    if scales.dtype != torch.float16 or scales.shape != numbers.shape[:1]:
        found = f"{scales.dtype} of shape {tuple(scales.shape)}"
        rows = f"float16, one for each of {len(numbers)} rows"
        raise _unfit(file, f"{name}{SCALE} is {found}, and should be {rows}")
    if bad := int((~(scales.isfinite() & (scales > 0))).sum()):
        raise _unfit(file, f"{name}{SCALE}: {bad} of its scales are no positive numbers")
    return Int8Matrix(numbers, scales)


def _unfit(file: Path, message: str) -> IntegrityError:
    return IntegrityError(f"{file}: {message}", "the file is damaged: pull, copy or make it again")


def row_scales(weight_RC: Tensor) -> Tensor:
    """Return the scale of each row of a matrix, (R,) float16: its greatest magnitude over 127.

    Whatever is rounded with it and rounded again stays as it is, because the greatest number of a
    row is 127 then. Below 2^-17 float16 has too few digits left for that; there the scale is the
    next power of two, which a row half as great would not get.
    """
    least_R, most_R = weight_RC.aminmax(dim=1)
    ideal_R = torch.maximum(-least_R, most_R).float() / _MOST
    powers = torch.exp2(torch.arange(-24.0, -16.0))  # from the least that float16 has
    power_R = powers[torch.bucketize(ideal_R, powers).clamp(max=len(powers) - 1)]
    return torch.where(ideal_R < _TRUSTED, power_R, ideal_R).half()


def round_rows(weight_RC: Tensor) -> Int8Matrix:
    """Round a matrix to int8; no weight moves by more than half the scale of its row.

    Numbers that are not finite, or too great for float16, give a scale that is not.
    """
    scales_R = row_scales(weight_RC)
    numbers_RC = torch.empty(weight_RC.shape, dtype=torch.int8)
    for part in _parts(weight_RC):
        ratios = weight_RC[part].float() / scales_R[part, None].float()
        numbers_RC[part] = ratios.round_().clamp_(-_MOST, _MOST).to(torch.int8)
    return Int8Matrix(numbers_RC, scales_R)


def pieces(
    weights: Mapping[str, Weight], store: Store | None = None, kept: tuple[str, ...] = ()
) -> dict[str, list[Piece]]:
    """Return what a file has to hold for `weights` to be stored as `store`; None is as they are.

    Stored as int8, vectors become float16. Tensors whose names begin as one in `kept` stay as they
    are. What has to be computed for it is when it is written: then IntegrityError is raised for
    numbers that are not finite or too great.
    """
    found: dict[str, list[Piece]] = {}
    for name, weight in weights.items():
        as_it_is = store is None or name.startswith(kept) or not weight.is_floating_point()
        if isinstance(weight, Int8Matrix) and (as_it_is or store == "int8"):
            found |= {name: [weight.numbers], name + SCALE: [weight.scales]}
        elif as_it_is:
            found[name] = [cast(Tensor, weight)]
        elif store == "int8" and len(weight.shape) == 2:
            found |= _rounded(name, cast(Tensor, weight))
        else:
            dtype = torch.float32 if store == "float32" else torch.float16
            found[name] = [Later(dtype, weight.shape, partial(_cast, name, weight, dtype))]
    return found


def _rounded(name: str, weight: Tensor) -> dict[str, list[Piece]]:
    def scales() -> Tensor:
        found = row_scales(weight)
        if not bool((found.float() * _MOST <= _LARGEST).all()):
            raise _too_great(name, "int8")
        return found

    return {
        name: [Later(torch.int8, weight.shape, lambda: round_rows(weight).numbers)],
        name + SCALE: [Later(torch.float16, weight.shape[:1], scales)],
    }


def _cast(name: str, weight: Weight, dtype: torch.dtype) -> Tensor:
    found = weight.to("cpu", dtype)
    if not bool(found.isfinite().all()):
        raise _too_great(name, str(dtype).removeprefix("torch."))
    return found


def _too_great(name: str, store: str) -> IntegrityError:
    return IntegrityError(
        f"{name} cannot be stored as {store}: it has numbers beyond {_LARGEST:,.0f}, or not finite",
        "lcm inspect tells which are not finite; float32 holds all others",
    )


def write_safetensors(path: Path, tensors: Mapping[str, Sequence[Piece]]) -> str:
    """Write tensors, each the concatenation of its pieces along the first axis; returns the sha256.

    The library's own writer wants every tensor in memory at once; this one maps 16 MiB at a time.
    """
    # The widest numbers first, as the library does: so each lies at a multiple of its size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1][0].dtype.itemsize, item[0]))
    header: dict[str, Any] = {}
    end = 0
    for name, parts in ordered:
        start, end = end, end + sum(part.nbytes for part in parts)
        shape = [sum(len(part) for part in parts), *parts[0].shape[1:]]
        dtype = _DTYPES[parts[0].dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned, which a memory map needs
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in _blocks([len(text).to_bytes(8, "little"), text], ordered):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _blocks(
    head: Iterable[bytes], tensors: Iterable[tuple[str, Sequence[Piece]]]
) -> Iterator[bytes | memoryview]:
    yield from head
    for _, parts in tensors:
        for part in parts:
            made = part.make() if isinstance(part, Later) else part
            flat = made.contiguous().view(-1).view(torch.uint8)
            for start in range(0, len(flat), _BLOCK):
                yield flat[start : start + _BLOCK].numpy().data


def sampled(weights: Mapping[str, Weight]) -> Iterator[bytes]:
    """Yield what tells `weights` from others, however they are stored: names, shapes, numbers.

    The numbers are those of the weights in float32. Of a large matrix evenly spaced rows are read,
    its first and its last among them: at least 4, and as many as have 4,096 numbers.
    """
    for name, weight in sorted(weights.items()):
        yield f"{name} {list(weight.shape)}\n".encode()
        numbers = _some(weight).to("cpu", torch.float32) + 0.0  # -0 is 0
        yield numbers.numpy().astype("<f4").tobytes()


def _some(weight: Weight) -> Weight:
    if len(weight.shape) != 2:
        return weight
    rows, columns = weight.shape
    count = max(4, _SAMPLED // max(1, columns))
    if rows <= count:
        return weight
    return weight[torch.tensor([i * (rows - 1) // (count - 1) for i in range(count)])]


def relative_error(before: Mapping[str, Weight], after: Mapping[str, Weight]) -> float:
    """Return how far weights have moved: the root of the sum of squares, over that of `before`."""
    moved = total = 0.0
    for name, weight in before.items():
        for part in _parts(weight):
            old = weight[part].to("cpu", torch.float32)
            moved += float((after[name][part].to("cpu", torch.float32) - old).square().sum())
            total += float(old.square().sum())
    return (moved / total) ** 0.5 if total else 0.0


def _parts(weight: Weight) -> Iterator[slice]:
    """Yield slices of a tensor's first axis that fit into memory."""
    size = max(1, _BLOCK // max(1, weight.shape[1:].numel()))
    yield from (slice(start, start + size) for start in range(0, len(weight), size))
