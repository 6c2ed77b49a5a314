"""Pulls from the command line: the plan on stderr, the question about the licence, progress."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lcm_cli import console
from lcm_cli.errors import AuthError, LcmError

if TYPE_CHECKING:
    from lcm_cli.transfer.plan import PullPlan
    from lcm_cli.transfer.pull import Pulled


def make_plan(name: str, revision: str = "", force: bool = False) -> "PullPlan":
    """Plan the pull of `name`, and describe it on stderr."""
    # huggingface_hub reads these once, when it is imported.
    if not sys.stderr.isatty() or console.is_quiet():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if console.is_quiet():
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    from lcm_cli.transfer.resolve import resolve

    plan = resolve(name, revision=revision).plan(force=force)
    console.info(f"{plan.name}: {plan.summary}")
    console.info(f"licence: {plan.licence_line}")
    for note in plan.notes:
        console.warn(note)
    return plan


def pull_planned(
    plan: "PullPlan", accept_licence: bool = False, force: bool = False, ask: bool = True
) -> "Pulled":
    """Carry out a plan; with `ask`, ask at a terminal whether the licence is accepted."""
    from lcm_cli.transfer.pull import pull

    if not plan.ready:
        console.info(f"to download: {download_size(plan)}")
        accept_licence = accept_licence or (ask and plan.must_be_accepted and _ask_licence(plan))
    return pull(
        plan,
        accept_licence=accept_licence,
        force=force,
        progress=console.progress,
        notice=console.info,
    )


def bring(names: str | Sequence[str] | None) -> None:
    """Pull those of the named checkpoints, and of the bases of adapters, that are missing.

    Other names (a folder, a misspelling, "auto") are left to the command.
    """
    from lcm_cli.hub import locate

    for name in [names] if isinstance(names, str) else names or ():
        _bring(name)
        if base := locate.base_of(name):
            _bring(base)


def _bring(name: str) -> None:
    from lcm_cli.hub import cards, locate

    known = cards.cards().get(name)
    if known is None and (Path(name).exists() or not locate.is_repository(name)):
        return
    if not _is_present(name, known.kind if known else ""):
        pull_planned(make_plan(name))


def _is_present(name: str, kind: str) -> bool:
    from lcm_cli.hub import locate

    for way in [locate.WAYS[kind]] if kind else locate.WAYS.values():
        try:
            way(name)
        except LcmError:  # missing, or of another kind
            continue
        return True
    return False


def download_size(plan: "PullPlan") -> str:
    """Return the size of a download, for people."""
    known = sum(part.bytes or 0 for part in plan.parts)
    if plan.parts and all(part.bytes is None for part in plan.parts):
        return "an unknown amount"
    unsure = any(part.bytes is None or not part.exact for part in plan.parts)
    size = f"{known / 1e9:.2f} GB" if known >= 1e8 else f"{known / 1e6:.1f} MB"
    return f"about {size}" if unsure else size


def _ask_licence(plan: "PullPlan") -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    # Not typer.confirm, which writes a space to stdout, where only the path may go.
    question = f"Use {plan.name} under {plan.licence_line.partition(' (')[0]}? [y/N] "
    sys.stderr.write(console.printable(question))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AuthError(f"the licence of {plan.name} was not accepted", "nothing was downloaded")
    return True
