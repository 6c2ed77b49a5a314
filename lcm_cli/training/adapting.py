"""The adapters of a run: its recipe's table [adapter], applied to the checkpoint to start from."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lcm_cli.errors import IntegrityError
from lcm_cli.hub.locate import AdapterConfig, ModelFiles, SpaceFiles
from lcm_cli.space.adapters import adapter_state, attach, fingerprint, load_adapter_state
from lcm_cli.training.recipes.adapter import AdapterOptions


def add_adapters(
    networks: Sequence[nn.Module],
    options: AdapterOptions,
    start: str,
    files: SpaceFiles | ModelFiles,
    seed: int,
    default: Sequence[str] = ("*",),
) -> AdapterConfig:
    """Freeze the networks of the checkpoint `start` and add adapters; return what describes them.

    `default` are the modules to adapt if the recipe names none. Raises IntegrityError if the
    modules do not fit, or if `start` is an adapter itself.
    """
    if files.adapter is not None:
        raise IntegrityError(
            f"start = {start!r} is an adapter itself",
            f"merge it first: lcm checkpoints convert {start} -o DIR, then start from DIR",
        )
    modules, o = options.modules or tuple(default), options
    attach(networks, modules, rank=o.rank, alpha=o.alpha, dropout=o.dropout, seed=seed)
    return AdapterConfig(start, fingerprint(files.contents), o.rank, o.alpha, modules)


def trained_state(network: nn.Module, adapter: AdapterConfig | None) -> dict[str, Tensor]:
    """Return the tensors of a network that a state keeps: those of its adapters, or all."""
    return adapter_state(network) if adapter else network.state_dict()


def restore_trained(
    network: nn.Module, state: Mapping[str, Tensor], adapter: AdapterConfig | None
) -> None:
    """Restore a `trained_state`. Raises ValueError if the adapters are others."""
    if adapter:
        load_adapter_state(network, state)
    else:
        network.load_state_dict(state)


def base_of(adapter: AdapterConfig | None) -> str:
    """Return the fingerprint that the states of a run record, "" without adapters."""
    return adapter.fingerprint if adapter else ""


def check_base(state: Mapping[str, Any], adapter: AdapterConfig | None) -> None:
    """Raise ValueError unless a saved state belongs to the same base, or to none either."""
    before, now = state.get("base", ""), base_of(adapter)
    if bool(before) != bool(now):
        raise ValueError("[adapter] cannot be added or removed within a run")
    if before != now:
        raise ValueError(f"the weights of its start have changed: {before} then, {now} now")
