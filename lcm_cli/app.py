"""The program `lcm`: dispatch to the commands by name, and reporting of errors.

Only the module of the called command is imported; `lcm --help` and shell completion import all.
"""

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from types import FrameType
from typing import Annotated, Any

import typer

from lcm_cli import console
from lcm_cli.errors import LcmError, NotFoundError, UsageError
from lcm_cli.version import __version__

COMMANDS = (  # in the order of the help, which lists groups last
    "summarize",
    "expand",
    "generate",
    "translate",
    "embed",
    "decode",
    "similar",
    "index",
    "mine",
    "serve",
    "inspect",
    "train",
    "distill",
    "evaluate",
    "plot",
    "languages",
    "pull",
    "doctor",
    "checkpoints",
)
_STYLE: dict[str, Any] = {
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
INTERRUPTED = 130  # a shell's exit code for a program stopped by Ctrl-C
# Each of them decides how long OpenMP's idle threads spin before they sleep.
SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINS = "5000"  # well under a millisecond; docs/benchmarks.md compares it with other numbers
REPEATED = 0.5  # seconds; a closing terminal sends SIGHUP twice within less


class Stopped(BaseException):
    """A signal that ends the program as Ctrl-C does: temporary files are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number  # as in a shell


def main(args: Sequence[str] | None = None) -> int:
    """Run `lcm` with `args`, by default the process's, and return the exit code."""
    args = list(sys.argv[1:] if args is None else args)
    console.prepare_streams()
    _let_idle_threads_sleep()
    try:
        with on_signals(_stop, "SIGTERM", "SIGHUP"):
            return _run(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Stopped as stop:
        return stop.exit_code
    except Exception as error:
        known = _translate(error)
        if os.environ.get("LCM_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        console.show_error(known)
        return known.exit_code


@contextmanager
def on_signals(handle: Callable[[int], None], *names: str) -> Iterator[None]:
    """Call `handle` with the number of each signal of these names that arrives.

    Signals in quick succession count once, and ignored ones (nohup) stay ignored. Does nothing
    outside the main thread, which alone receives signals.
    """
    received = -REPEATED

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal received
        since, received = time.monotonic() - received, time.monotonic()
        if since >= REPEATED:
            handle(number)

    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _let_idle_threads_sleep() -> None:
    """Let OpenMP's idle threads sleep soon, unless the user has chosen; torch is not loaded yet.

    Threads that spin occupy a processor, and if other programs need it, the thread that they wait
    for gets its turn only after milliseconds, in every operation (docs/install.md). Threads that
    sleep at once wake too late for the next operation; GNU's runtime can let them spin briefly.
    """
    if not any(name in os.environ for name in SPINNING):
        os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": SPINS}


def _stop(number: int) -> None:
    raise Stopped(number)


def _run(args: list[str]) -> int:
    _refuse_empty(args)
    called = args[:1] if args[:1] and args[0] in COMMANDS else COMMANDS
    app = _build(called)
    # Not standalone, so exceptions propagate; returns the code of a typer.Exit, or None.
    return app(args, prog_name="lcm", standalone_mode=False, obj=COMMANDS) or 0


def _refuse_empty(args: Sequence[str]) -> None:
    """Raise UsageError for an empty argument: as the name of a file it would be this folder."""
    for before, arg in pairwise(["lcm", *args]):
        if not arg or re.fullmatch("--[a-z-]+=", arg):
            what = f"{arg} has no value" if arg else f"the argument after {before} is empty"
            raise UsageError(what, "perhaps a variable of the shell is not set")


def _build(names: Iterable[str]) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False, **_STYLE)
    app.callback(invoke_without_command=True)(_root)
    for name in names:
        _add(app, name, name)
    return app


def _add(app: typer.Typer, name: str, module_name: str) -> None:
    """Add a command, or a group of the commands that its module lists in SUBCOMMANDS."""
    # Imported by name because commands is a layer above this module.
    module = import_module(f"lcm_cli.commands.{module_name}")
    if hasattr(module, "SUBCOMMANDS"):
        group = typer.Typer(help=module.HELP, **_STYLE)
        group.callback()(lambda: None)  # without a callback, one command would not make a group
        for subcommand in module.SUBCOMMANDS:
            _add(group, subcommand, f"{module_name}_{subcommand}")
        app.add_typer(group, name=name)
        return
    with_common = import_module("lcm_cli.commands._options").with_common
    app.command(name, epilog=_examples(module.EPILOG))(with_common(module.main))


def _show_version(wanted: bool) -> None:
    if wanted:
        console.out(f"lcm {__version__}")
        raise typer.Exit


def _root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            *("-V", "--version"), is_eager=True, callback=_show_version, help="Show the version."
        ),
    ] = False,
) -> None:
    """Language modelling in concept space: a sentence is a vector, a text a path of vectors.

    Summarize, translate and embed text in many languages, and train the models that do it.
    """
    if ctx.invoked_subcommand is None:
        if not sys.stdout.isatty():
            raise UsageError("no command given", "see the commands: lcm --help")
        console.out(ctx.get_help())


def _examples(epilog: str) -> str:
    """Return a command's examples under a heading; \\b keeps the help from rewrapping them."""
    lines = (f"  {line}" for line in epilog.splitlines() if line.strip())
    return "\n".join(["\b", "Examples:", *lines])


def _translate(error: Exception) -> LcmError:
    """Return any exception as an LcmError."""
    if isinstance(error, LcmError):
        return error
    if isinstance(error, typer.TyperException):
        return _usage(error)
    # Typer itself prints the help, with this function.
    if isinstance(error, OSError) and traceback.extract_tb(error.__traceback__)[-1].name == "echo":
        return console.stdout_error(error)
    if isinstance(error, FileNotFoundError) and error.filename:
        return NotFoundError(f"no such file: {os.fsdecode(error.filename)}")
    if isinstance(error, OSError) and error.filename and error.strerror:
        return LcmError(f"{os.fsdecode(error.filename)}: {error.strerror}")
    if isinstance(error, typer.Abort):
        return LcmError("aborted")
    summary = f"unexpected {type(error).__name__}: {error}".strip(": \n").replace("\n", " ")
    return LcmError(f"{summary}; run again with LCM_DEBUG=1 for the traceback")


def _with_value(error: typer.TyperException, message: str) -> str:
    """Return a parser's message with the bad value; pydantic writes only "Input should be ..."."""
    failures: Any = getattr(error.__cause__, "errors", None)
    if failures is None:
        return message
    failure = failures()[0]
    said = " ".join(failure["msg"].split())
    better = said.removeprefix("Value error, ")
    if better.startswith("Input "):
        better = repr(failure["input"]) + better.removeprefix("Input").split(", unable")[0]
    return message.replace(said, better)


def _usage(error: typer.TyperException) -> LcmError:
    """Return a parser's error as a UsageError, with the config file that a bad value is from."""
    ctx: Any = getattr(error, "ctx", None)
    param: Any = getattr(error, "param", None)
    message = _with_value(error, " ".join(error.format_message().split())).removesuffix(".")
    message = message[:1].lower() + message[1:]
    if ctx is not None and param is not None:
        source = getattr(ctx.get_parameter_source(param.name), "name", "")
        if source == "DEFAULT_MAP":
            message = f"{ctx.meta.get('lcm.config')}: {message}"
    hint = f"see the options: {ctx.command_path} --help" if ctx is not None else ""
    return UsageError(message, hint)
