"""The pull of a planned checkpoint: ask for its licence, fetch what is missing, install it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from lcm_cli.errors import AuthError
from lcm_cli.files import disk_error
from lcm_cli.hub import pins, snapshot
from lcm_cli.hub.http import Notice, locked
from lcm_cli.paths import cache_dir
from lcm_cli.progress import StartJob, ignore, no_progress
from lcm_cli.transfer.fetch import download_folder, fetch
from lcm_cli.transfer.install import install, is_installed
from lcm_cli.transfer.plan import PullPlan


@dataclass(frozen=True)
class Pulled:
    """A checkpoint on this machine: its folder, or the card of a bundled one.

    `bytes` is the size of the files that were downloaded for it.
    """

    path: Path
    bytes: int = 0


def pull(
    plan: PullPlan,
    *,
    accept_licence: bool = False,
    force: bool = False,
    progress: StartJob = no_progress,
    notice: Notice = ignore,
) -> Pulled:
    """Carry out a plan (see resolve), unless the checkpoint is already on this machine.

    Raises AuthError if the licence must be accepted and was not, and what `fetch` and `install`
    raise. On any error, the installed checkpoint stays unchanged.
    """
    if plan.ready:
        return Pulled(plan.path)
    if plan.must_be_accepted and not accept_licence:
        raise AuthError(
            f"{plan.name} is under {plan.licence_line}",
            f"if you agree, run: {plan.command} --accept-licence",
        )
    try:
        with _locked(plan, notice):
            if not force and is_installed(plan):
                return Pulled(plan.path)
            fetched = fetch(plan, force, progress, notice)
            install(plan, fetched, notice)
            found = dict(chain.from_iterable(part.pins.items() for part in fetched.values()))
            pins.record_pins(cache_dir(), found)
            for planned in plan.parts:
                if planned.remote:
                    snapshot.record_revision(planned.remote, planned.source.revision)
            shutil.rmtree(download_folder(plan), ignore_errors=True)
    except OSError as error:
        raise disk_error(error, plan.path) from error
    return Pulled(plan.path, sum(part.bytes for part in fetched.values()))


@contextmanager
def _locked(plan: PullPlan, notice: Notice) -> Iterator[None]:
    """Hold the lock of the checkpoint's place; the Hub's client has its own."""
    if plan.in_place:
        yield
        return
    plan.path.parent.mkdir(parents=True, exist_ok=True)
    with locked(plan.path.with_name(f".{plan.path.name}.lock"), plan.name, notice):
        yield
