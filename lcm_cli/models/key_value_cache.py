"""The keys and values of concepts that a model has read, so that it reads none of them twice.

Shapes: B rows (documents), S new concepts, K keys, H heads, W head width.
"""

import torch
from torch import Tensor


class KeyValueCache:
    """The keys and values of every layer, for rows that grow by one concept at a time.

    Rows may differ in length: row b writes at `lengths_B[b]` and sees everything before that. A
    forward pass writes entries; `advance` makes them permanent. The next pass overwrites entries
    that were not advanced over: this is how a denoiser tries its noisy concept at each step
    against the same context.
    """

    def __init__(
        self, layers: int, rows: int, capacity: int, device: torch.device | None = None
    ) -> None:
        self.capacity = capacity
        self.keys: list[Tensor] = [torch.empty(0)] * layers
        self.values: list[Tensor] = [torch.empty(0)] * layers
        self.lengths_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._even = True  # all rows have the same length: slices suffice, without masks
        self._fixed = False  # see `fix`
        self._used = 0  # length of the longest row

    @property
    def rows(self) -> int:
        """Number of rows held."""
        return len(self.lengths_B)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(store.nbytes for store in self.keys + self.values)

    @property
    def fixed(self) -> bool:
        """Whether shapes and addresses stay as they are; see `fix`."""
        return self._fixed

    def fix(self) -> None:
        """From now on, keep shapes and addresses, as a CUDA graph needs, until `keep`.

        `read` then returns the whole capacity, so that `mask` or `filled` must always be applied.
        These are added to the scores, which spares each layer the conversion.
        """
        if not self._fixed:
            self._fixed, self._even = True, False
            self.lengths_B = self.lengths_B.clone()  # others may hold the old one

    def copy(self, other: "KeyValueCache") -> None:
        """Take over the content of another cache of the same shapes; this one is fixed."""
        for own, new in zip(self.keys + self.values, other.keys + other.values, strict=True):
            own.copy_(new)
        self.lengths_B.copy_(other.lengths_B)
        self._used = other._used

    def positions(self, count: int) -> Tensor:
        """Return the positions of the next `count` concepts: (S,), or (B, S) for uneven rows."""
        steps = torch.arange(count, device=self.lengths_B.device)
        return steps + self._used if self._even else self.lengths_B[:, None] + steps

    def mask(self, count: int) -> Tensor | None:
        """Return the keys that the next `count` concepts see, (B or 1, 1, S, K).

        None: those up to itself, as in causal attention. This mask is True or, after `fix`, 0 where
        a key is seen.
        """
        empty = self._used == 0 and not self._fixed
        if empty or (self._even and count == 1):
            return None
        keys = torch.arange(self._end(count), device=self.lengths_B.device)
        visible = keys <= self.positions(count)[..., None]
        return visible[None, None] if self._even else self._masking(visible[:, None])

    def filled(self) -> Tensor | None:
        """Return which keys of `read` are filled, (B, 1, 1, K), as `mask` does; None: all."""
        if self._even:
            return None
        keys = torch.arange(self._end(), device=self.lengths_B.device)
        return self._masking((keys < self.lengths_B[:, None])[:, None, None])

    def put(self, layer: int, k_BHSW: Tensor, v_BHSW: Tensor) -> None:
        """Write keys and values behind the end of each row, (B, H, S, W) each."""
        self.keys[layer] = self._write(self.keys[layer], k_BHSW)
        self.values[layer] = self._write(self.values[layer], v_BHSW)

    def read(self, layer: int, beyond: int = 0) -> tuple[Tensor, Tensor]:
        """Return keys and values, including `beyond` not yet advanced over, (B, H, K, W) each."""
        end = self._end(beyond)
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def _end(self, beyond: int = 0) -> int:
        """Return the number of entries that `read` returns."""
        return self.capacity if self._fixed else self._used + beyond

    def _masking(self, visible: Tensor) -> Tensor:
        if not self._fixed:
            return visible
        none = torch.zeros(visible.shape, dtype=self.keys[0].dtype, device=visible.device)
        return none.masked_fill_(~visible, -torch.inf)

    def _write(self, store: Tensor, x_BHSW: Tensor) -> Tensor:
        rows, heads, count, width = x_BHSW.shape
        if store.numel() == 0:
            # Zeros: masked entries are multiplied by 0, which would not remove a NaN.
            store = x_BHSW.new_zeros(rows, heads, self.capacity, width)
        if self._even:
            store[:, :, self._used : self._used + count] = x_BHSW
        else:
            rows_B1 = torch.arange(rows, device=store.device)[:, None]
            # Two index tensors around a slice: the indexed dimensions come first, (B, S, H, W).
            store[rows_B1, :, self.positions(count)] = x_BHSW.transpose(1, 2)
        return store

    def advance(self, counts: Tensor | int) -> None:
        """Make `counts` of the written concepts permanent: one number, or one per row, (B,)."""
        if self._fixed:
            self.lengths_B += counts
        else:
            self.lengths_B = self.lengths_B + counts
        if isinstance(counts, int):  # no need to measure, which would wait for the device
            self._used += counts
        else:
            self._measure()

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may occur more than once."""
        self.lengths_B = self.lengths_B[rows]
        self._fixed = False
        self.keys = [store[rows] if store.numel() else store for store in self.keys]
        self.values = [store[rows] if store.numel() else store for store in self.values]
        self._measure()

    def _measure(self) -> None:
        lengths = self.lengths_B.tolist()
        self._used = max(lengths, default=0)
        self._even = not self._fixed and min(lengths, default=0) == self._used
