"""The options that commands share, and what is done the same way in every command."""

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lcm_cli import console, settings
from lcm_cli.errors import UsageError

# Options that may stand at the top of the config file, by their long names.
SHARED = (
    *("space", "model", "device", "precision", "batch_tokens", "from", "to", "one_per_line"),
    *("seed", "quiet", "verbose", "offline"),
)
_CHECKPOINTS = ("space", "model", "models")  # parameters that name some
CONFIG = "lcm.config"  # where a context keeps the path of the config file that was read


def _checked_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", device):
        raise typer.BadParameter(f"{device!r} is not one of auto, cpu, cuda, cuda:N, mps.")
    return device


def _languages(incomplete: str) -> Iterator[tuple[str, str]]:
    from lcm_cli.text.languages import SONAR, language

    return ((code, language(code).name) for code in SONAR if code.startswith(incomplete))


def _spaces(incomplete: str) -> Iterator[tuple[str, str]]:
    from lcm_cli.hub.cards import cards

    spaces = (card for card in cards().values() if card.kind == "space")
    return ((space.name, space.summary) for space in spaces if space.name.startswith(incomplete))


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE",
        help="Files, folders, globs, or - for standard input.",
        show_default=False,
    ),
]
Space = Annotated[
    str | None,
    typer.Option(
        "--space",
        metavar="SPACE",
        envvar="LCM_SPACE",
        help="A space by name, a folder, or ORG/REPO.  [default: tiny]",
        show_default=False,
        autocompletion=_spaces,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        envvar="LCM_MODEL",
        help="A concept model by name, a folder, or ORG/REPO; auto is the space's own.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        envvar="LCM_DEVICE",
        help="auto, cpu, cuda, cuda:N or mps.",
        callback=_checked_device,
    ),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16", "float16", "int8"],
    typer.Option("--precision", envvar="LCM_PRECISION", help="Number format of the computation."),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens",
        metavar="N",
        envvar="LCM_BATCH_TOKENS",
        min=1,
        help="Tokens in a batch.  [default: what suits the device]",
        show_default=False,
    ),
]
From = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="LANG",
        help="Language of the input: a code or a name; auto detects it.",
        autocompletion=_languages,
    ),
]
To = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        metavar="LANG",
        help="Target language, a code or a name; repeat it for several, or say all.",
        show_default=False,
        autocompletion=_languages,
    ),
]
OnePerLine = Annotated[
    bool, typer.Option("--one-per-line", help="Take each line of text as one sentence.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
Output = Annotated[
    str | None,
    typer.Option(
        *("-o", "--output"),
        metavar="FILE",
        help="Where the result goes; - is standard output.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output if it exists.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the random numbers.")]


def input_paths(inputs: list[str] | None) -> list[str]:
    """Return the inputs to read: those given, or standard input if it is not a terminal.

    Raises UsageError if there is nothing to read, instead of waiting for somebody to type.
    """
    if not inputs and sys.stdin.isatty():
        raise UsageError("nothing to read", "name a file or a folder, or - to type the text here")
    return inputs or ["-"]


def space_or_default(space: str | None) -> str:
    """Return the space to use; where none is chosen, say which one that is and how to choose."""
    if space is None:
        console.info("space: tiny, bundled; for all 202 languages: lcm pull sonar --set-default")
    return space or "tiny"


def _use_config(ctx: typer.Context, chosen: Path | None) -> Path | None:
    """Make what the config file says the defaults of the options that are read after this one."""
    path = None if ctx.resilient_parsing else settings.find_settings(chosen)
    if path is not None:
        names = {_key(flag): param.name for param in ctx.command.params for flag in param.opts}
        called = ctx.command_path.split()[1:]  # without the program's own name
        found = settings.defaults(path, called, names, SHARED, commands=ctx.obj)
        ctx.default_map = {names[key]: value for key, value in found.items()}
        ctx.meta[CONFIG] = path
    return path


def _key(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _common(
    *,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show errors only.")] = False,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Show more.", show_default=False)
    ] = 0,
    offline: Annotated[
        bool, typer.Option("--offline", envvar="LCM_OFFLINE", help="Never use the network.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            envvar="LCM_CONFIG",
            help="Read the defaults of options from FILE.  [default: ./lcm.toml, else the user's]",
            show_default=False,
            is_eager=True,
            callback=_use_config,
        ),
    ] = None,
) -> None:
    console.configure(quiet, verbose)
    if offline:  # huggingface_hub looks at this once, when it is imported
        os.environ["HF_HUB_OFFLINE"] = "1"
    if config is not None:
        console.detail(f"config: {config}")


def _pulling(
    *,
    pull: Annotated[
        bool,
        typer.Option("--pull", envvar="LCM_PULL", help="Download what is not on this machine."),
    ] = False,
) -> None: ...


def with_common(main: Callable[..., None]) -> Callable[..., None]:
    """Return `main` with the options that every command has added to its signature.

    A command that is given checkpoints by name has `--pull`, too, which brings them beforehand.
    """
    own, common, pulling = (
        inspect.signature(part, eval_str=True) for part in (main, _common, _pulling)
    )
    named = [name for name in _CHECKPOINTS if name in own.parameters]

    @functools.wraps(main)
    def command(**values: Any) -> None:
        _common(**{name: values.pop(name) for name in common.parameters})
        if named and values.pop("pull"):
            from ._pull import bring

            for name in named:
                bring(values[name])
        main(**values)

    last = [*(pulling.parameters.values() if named else ()), *common.parameters.values()]
    both = [*own.parameters.values(), *last]
    # Typer builds a command's options from its signature and its annotations, and wants both.
    command.__signature__ = own.replace(parameters=both)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in both}
    return command
