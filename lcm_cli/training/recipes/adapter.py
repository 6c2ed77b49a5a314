"""The table [adapter] of recipes."""

import math
from dataclasses import dataclass

from lcm_cli.errors import IntegrityError


@dataclass(frozen=True)
class AdapterOptions:
    """The [adapter] table: `start` is frozen, and low-rank updates of its matrices are trained.

    An update is the product of two matrices of `rank` columns and rows, times `alpha` / `rank`
    (LoRA, arXiv 2106.09685). `dropout` applies to its inputs. `modules` are patterns of the names
    of linear maps; by default all maps of a model, and all in the layers of a space's decoder.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid numbers."""
        if self.rank < 1:
            raise IntegrityError(f"adapter.rank must be at least 1, not {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise IntegrityError(f"adapter.alpha must be a positive number, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise IntegrityError(f"adapter.dropout must be in [0, 1), not {self.dropout}")


def check_adapter(adapter: AdapterOptions | None, start: str, distill: object | None) -> None:
    """Raise IntegrityError if a recipe with `start` and [distill] leaves nothing to adapt."""
    if adapter is None:
        return
    if distill is not None:
        raise IntegrityError(
            "[adapter] cannot be combined with a teacher", "distil without [adapter]"
        )
    if not start:
        hint = 'name the checkpoint to adapt: start = "tiny"'
        raise IntegrityError("[adapter] needs start", hint)
