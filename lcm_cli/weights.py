"""Weights in safetensors files: reading, rounding and writing, in floats or int8.

A matrix NAME may be stored as int8 (R, C) with one float16 scale per row in NAME.scale (R,); its
weights are the products of the two, computed in float32.

Shapes: R rows, C columns, K rank of an update.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.headers import SCALE, is_scale

Store = Literal["float32", "float16", "int8"]
Network = TypeVar("Network", bound=nn.Module)

_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int8: "I8",
}
_BLOCK = 1 << 24  # bytes written, or numbers rounded, at a time
_MOST = 127  # the largest int8 number in use; -128 is left out, so the range is symmetric
_LEAST_EXACT = 2.0**-17  # the least scale that float16 rounds by at most 2^-8: see `row_scales`
_LARGEST = torch.finfo(torch.float16).max
_SAMPLED = 1 << 12  # numbers of a matrix that enter its fingerprint
_DRAWS = frozenset({"normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_"})


@dataclass(frozen=True)
class Int8Matrix:
    """A matrix in int8: `numbers` (R, C), and the float16 `scales` (R,) of its rows."""

    numbers: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """The shape of the matrix."""
        return self.numbers.shape

    @property
    def dtype(self) -> torch.dtype:
        """The default type of its weights: that of its scales, float16 in files."""
        return self.scales.dtype

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.numbers.nbytes + self.scales.nbytes

    def is_floating_point(self) -> bool:
        """Return True: its weights are floats, like those of float tensors."""
        return True

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Any) -> "Int8Matrix":
        return Int8Matrix(self.numbers[rows], self.scales[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Return the weights (R, C) in `dtype`."""
        scales = self.scales.to(device, torch.float32)
        # Exact in float32, whose significand of 24 bits holds the product of 7 bits and 11.
        return self.numbers.to(device).float().mul_(scales[:, None]).to(dtype)


@dataclass(frozen=True)
class AdaptedMatrix:
    """A matrix with a low-rank update: `base` (R, C) plus the product of `up` (R, K) and `down`.

    `down` is (K, C). The sum is computed in float32, where it is used.
    """

    base: Tensor | Int8Matrix
    up: Tensor
    down: Tensor

    @property
    def shape(self) -> torch.Size:
        """The shape of the matrix."""
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        """The default type of its weights: that of the base."""
        return self.base.dtype

    @property
    def nbytes(self) -> int:
        """The size in bytes of base and update."""
        return self.base.nbytes + self.up.nbytes + self.down.nbytes

    def is_floating_point(self) -> bool:
        """Return True: its weights are floats, like those of float tensors."""
        return True

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, rows: Any) -> "AdaptedMatrix":
        return AdaptedMatrix(self.base[rows], self.up[rows], self.down)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Return the weights (R, C) in `dtype`."""
        up, down = (part.to(device, torch.float32) for part in (self.up, self.down))
        return torch.addmm(self.base.to(device, torch.float32), up, down).to(dtype)


Weight = Tensor | Int8Matrix | AdaptedMatrix


@dataclass(frozen=True)
class Deferred:
    """A tensor that is computed when it is written, so that few are in memory at once."""

    dtype: torch.dtype
    shape: torch.Size
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.shape.numel() * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]


StoredPiece = Tensor | Deferred


@contextmanager
def without_content() -> Iterator[None]:
    """Build networks whose tensors have shapes but no content until weights are assigned."""
    with torch.device("meta"), _SkipDraws():
        yield


class _SkipDraws(TorchFunctionMode):
    """A mode that skips the drawing of initial values on the meta device.

    It would have no effect there, but its first call imports sympy, which takes two seconds.
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


def without_weights(
    build: Callable[[], Network], layers: int, weights: Mapping[str, "Weight"], source: Path
) -> Network:
    """Return the network that `build` makes, without content, for `weights` that have been read.

    Raises IntegrityError for sizes that no network has, and for more `layers` than there are
    weights: those of a damaged config.json could take hours to build.
    """
    if layers > len(weights):
        raise IntegrityError(
            f"{source} has {len(weights)} tensors, too few for the {layers} layers of its config"
        )
    try:
        with without_content():
            return build()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise IntegrityError(f"{source}: its config has impossible sizes: {reason}") from error


def read_weights(*files: Path) -> dict[str, Weight]:
    """Map the weights in the `files` of one checkpoint into memory, without reading them.

    Raises NotFoundError, or IntegrityError with the file and the tensor that are damaged.
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
            weights[name] = _join_int8(name, tensor, found.get(name + SCALE), places[name])
        # Scales are part of their matrix; without int8 numbers they would be ignored silently.
        elif name.endswith(SCALE) and name.removesuffix(SCALE) in found:
            if not is_scale(name, int8):
                matrix = found[name.removesuffix(SCALE)]
                raise _unfit(places[name], f"{name} scales a matrix in {matrix.dtype}, not int8")
        else:
            weights[name] = tensor
    return weights


def map_file(file: Path) -> dict[str, Tensor]:
    """Map the tensors of a safetensors file into memory, int8 numbers and scales apart.

    Raises as `read_weights` does.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise NotFoundError(f"no such file: {file}", "the checkpoint is incomplete: pull it again")
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError, ValueError) as error:
        hint = "it may be truncated: pull or copy it again, or reinstall lcm if it came with lcm"
        raise IntegrityError(f"{file} is damaged: {error}", hint) from error


def _join_int8(name: str, numbers: Tensor, scales: Tensor | None, file: Path) -> Int8Matrix:
    """Return an int8 matrix with its scales, which are read and checked: they are few."""
    if scales is None:
        raise _unfit(file, f"{name} is int8 but has no scales: {name}{SCALE} is missing")
    if numbers.ndim != 2:
        raise _unfit(file, f"{name} is int8 of shape {tuple(numbers.shape)}, not a matrix")
    if scales.dtype != torch.float16 or scales.shape != numbers.shape[:1]:
        found = f"{scales.dtype} of shape {tuple(scales.shape)}"
        rows = f"float16, one for each of {len(numbers)} rows"
        raise _unfit(file, f"{name}{SCALE} is {found}, but should be {rows}")
    if bad := int((~(scales.isfinite() & (scales > 0))).sum()):
        raise _unfit(file, f"{name}{SCALE}: {bad} of its scales are not positive numbers")
    return Int8Matrix(numbers, scales)


def _unfit(file: Path, message: str) -> IntegrityError:
    return IntegrityError(f"{file}: {message}", "the file is damaged: pull, copy or make it again")


def row_scales(weight_RC: Tensor) -> Tensor:
    """Return the scale of each row of a matrix, (R,) float16: its largest magnitude over 127.

    Rounding is idempotent: the largest number of a rounded row is 127 again, which gives the same
    scale. That holds while float16 rounds the scale by at most 2^-8 (127 / 256 < 1/2), that is down
    to 2^-17. Below, the scale is rounded up to a power of two, and the largest number is at
    least 64, which gives the same power again. A row of zeros gets the least scale, 2^-24.
    """
    least_R, most_R = weight_RC.aminmax(dim=1)
    ideal_R = torch.maximum(-least_R, most_R).float() / _MOST
    # 2^-24 is the least positive float16.
    powers = torch.exp2(torch.arange(-24.0, -16.0, device=ideal_R.device))
    # bucketize finds the first power that is not below; the clamp is for rows that need none.
    power_R = powers[torch.bucketize(ideal_R, powers).clamp(max=len(powers) - 1)]
    return torch.where(ideal_R < _LEAST_EXACT, power_R, ideal_R).half()


def round_rows(weight_RC: Tensor) -> Int8Matrix:
    """Round a matrix to int8; no weight moves by more than half the scale of its row.

    A row with numbers that are not finite, or too large for float16, gets a scale that is not
    finite.
    """
    scales_R = row_scales(weight_RC)
    numbers_RC = torch.empty(weight_RC.shape, dtype=torch.int8)
    # In blocks, because the quotients are float32, four times the size of the result.
    for part in _row_blocks(weight_RC):
        numbers_RC[part] = _numbers(weight_RC[part], scales_R[part]).to(torch.int8)
    return Int8Matrix(numbers_RC, scales_R)


def rounded(weight_RC: Tensor) -> Tensor:
    """Return a matrix with the values that it would have if it were stored as int8."""
    scales_R = row_scales(weight_RC)
    numbers_RC = _numbers(weight_RC, scales_R)
    return numbers_RC.mul_(scales_R[:, None].float()).to(weight_RC.dtype)


def _numbers(weight_RC: Tensor, scales_R: Tensor) -> Tensor:
    """Return the whole numbers of a rounded matrix, as float32."""
    return (weight_RC.float() / scales_R[:, None].float()).round_().clamp_(-_MOST, _MOST)


def pieces(
    weights: Mapping[str, Weight], store: Store | None = None, kept: tuple[str, ...] = ()
) -> dict[str, list[StoredPiece]]:
    """Return the contents of a file that stores `weights` as `store`; None keeps their types.

    With int8, matrices are rounded and vectors become float16. Tensors whose names start with one
    of `kept` keep their types. Conversion happens when a tensor is written, and then raises
    IntegrityError for numbers that are not finite or too large for `store`.
    """
    found: dict[str, list[StoredPiece]] = {}
    for name, weight in weights.items():
        unchanged = store is None or name.startswith(kept) or not weight.is_floating_point()
        # An int8 matrix keeps its numbers: rounding its weights again would give the same ones.
        if isinstance(weight, Int8Matrix) and (unchanged or store == "int8"):
            found |= {name: [weight.numbers], name + SCALE: [weight.scales]}
        elif unchanged and isinstance(weight, Tensor):
            found[name] = [weight]
        elif store == "int8" and len(weight.shape) == 2:
            found |= _round_later(name, weight)
        else:
            dtype = torch.float32 if store == "float32" else torch.float16
            dtype = weight.dtype if unchanged else dtype
            found[name] = [Deferred(dtype, weight.shape, partial(_convert, name, weight, dtype))]
    return found


def _round_later(name: str, weight: Weight) -> dict[str, list[StoredPiece]]:
    # Both pieces compute the scales, each when it is written: computing them once, beforehand,
    # would read all matrices before the first one is written.
    def whole() -> Tensor:
        return weight if isinstance(weight, Tensor) else weight.to("cpu", torch.float32)

    def scales() -> Tensor:
        found = row_scales(whole())
        if not bool((found.float() * _MOST <= _LARGEST).all()):
            raise _out_of_range(name, "int8")
        return found

    return {
        name: [Deferred(torch.int8, weight.shape, lambda: round_rows(whole()).numbers)],
        name + SCALE: [Deferred(torch.float16, weight.shape[:1], scales)],
    }


def _convert(name: str, weight: Weight, dtype: torch.dtype) -> Tensor:
    found = weight.to("cpu", dtype)
    if not bool(found.isfinite().all()):
        raise _out_of_range(name, str(dtype).removeprefix("torch."))
    return found


def _out_of_range(name: str, store: str) -> IntegrityError:
    return IntegrityError(
        f"{name} cannot be stored as {store}: it has numbers beyond {_LARGEST:,.0f} or not finite",
        "lcm inspect counts those that are not finite; float32 can store all others",
    )


def write_safetensors(path: Path, tensors: Mapping[str, Sequence[StoredPiece]]) -> str:
    """Write tensors, each the concatenation of its pieces along the first axis; return the sha256.

    The safetensors library's writer needs all tensors in memory at once; this one holds one piece.
    """
    # The widest types first, as in the library's files, so that each number is aligned to its size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1][0].dtype.itemsize, item[0]))
    header: dict[str, Any] = {}
    end = 0
    for name, parts in ordered:
        start, end = end, end + sum(part.nbytes for part in parts)
        shape = [sum(len(part) for part in parts), *parts[0].shape[1:]]
        dtype = _DTYPES[parts[0].dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    # A file consists of the header's length in 8 bytes, the header, and the data.
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data to 8 bytes for memory maps
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in _blocks([len(text).to_bytes(8, "little"), text], ordered):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _blocks(
    head: Iterable[bytes], tensors: Iterable[tuple[str, Sequence[StoredPiece]]]
) -> Iterator[bytes | memoryview]:
    yield from head
    for _, parts in tensors:
        for part in parts:
            made = part.make() if isinstance(part, Deferred) else part
            # As bytes, because numpy has no bfloat16.
            flat = made.contiguous().view(-1).view(torch.uint8)
            for start in range(0, len(flat), _BLOCK):
                yield flat[start : start + _BLOCK].numpy().data


def sampled(weights: Mapping[str, Weight]) -> Iterator[bytes]:
    """Yield the bytes of a fingerprint of `weights`: names, shapes and float32 numbers.

    They do not depend on the stored types as long as the values are equal. Of a large matrix, only
    evenly spaced rows are read, from the first to the last: at least 4, and about 4,096 numbers.
    An update is a part of its own, because sums of products differ by rounding between machines.
    """
    for name, weight in sorted(_without_updates(weights)):
        yield f"{name} {list(weight.shape)}\n".encode()
        numbers = _sample_rows(weight).to("cpu", torch.float32) + 0.0  # turns -0 into 0
        yield numbers.numpy().astype("<f4").tobytes()


def _without_updates(weights: Mapping[str, Weight]) -> Iterator[tuple[str, Tensor | Int8Matrix]]:
    for name, weight in weights.items():
        if isinstance(weight, AdaptedMatrix):
            yield from (
                (name, weight.base),
                (f"{name}+up", weight.up),
                (f"{name}+down", weight.down),
            )
        else:
            yield name, weight


def _sample_rows(weight: Tensor | Int8Matrix) -> Tensor | Int8Matrix:
    if len(weight.shape) != 2:
        return weight
    rows, columns = weight.shape
    count = max(4, _SAMPLED // max(1, columns))
    if rows <= count:
        return weight
    return weight[torch.tensor([i * (rows - 1) // (count - 1) for i in range(count)])]


def relative_error(before: Mapping[str, Weight], after: Mapping[str, Weight]) -> float:
    """Return the root of the summed squared changes, divided by that of the squares of `before`."""
    moved = total = 0.0
    for name, weight in before.items():
        for part in _row_blocks(weight):
            old = weight[part].to("cpu", torch.float32)
            moved += float((after[name][part].to("cpu", torch.float32) - old).square().sum())
            total += float(old.square().sum())
    return (moved / total) ** 0.5 if total else 0.0


def _row_blocks(weight: Weight) -> Iterator[slice]:
    """Yield slices of a tensor's first axis with at most 16 Mi numbers, or one row."""
    # The inner bound is for a tensor without columns.
    size = max(1, _BLOCK // max(1, weight.shape[1:].numel()))
    yield from (slice(start, start + size) for start in range(0, len(weight), size))
