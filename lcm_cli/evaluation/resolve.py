"""From the names that a user gives to systems."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcm_cli.errors import NotFoundError, UsageError
from lcm_cli.evaluation.systems import BASELINES, Settings, SpaceItself, System, baseline
from lcm_cli.schema import nearest

if TYPE_CHECKING:
    from lcm_cli.space import Space


def systems(names: Sequence[str], space: "Space", settings: Settings) -> list[System]:
    """Return the systems called `names`, all in `space`.

    Raises UsageError for a name given twice, NotFoundError for one that is nothing.
    """
    twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if twice:
        raise UsageError(f"{twice[0]} is named twice")
    return [_system(name, space, settings) for name in names]


def _system(name: str, space: "Space", settings: Settings) -> System:
    found = baseline(name, settings)
    if found is not None:
        return found
    if name == space.name:
        return SpaceItself(name, space.fingerprint)
    near = nearest(name, BASELINES)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise NotFoundError(f"there is no model called {name!r}", hint)
