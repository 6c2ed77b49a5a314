"""Options shared by commands, and the options and steps common to all of them."""

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from lcm_cli import console, settings
from lcm_cli.documents.formats.reading import ReadOptions
from lcm_cli.documents.kinds import Kind
from lcm_cli.errors import UsageError

# Options, by their long names, that the top level of the config file may set.
SHARED = (
    *("space", "model", "speech", "device", "precision", "batch-tokens", "from", "to"),
    *("one-per-line", "format", "column", "split", "output-template", "seed"),
    *("quiet", "verbose", "offline"),
)
_CHECKPOINTS = ("space", "model", "models", "speech")  # parameters that name checkpoints
CONFIG = "lcm.config"  # key of the path of the config file in a context


def _checked_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", device):
        raise typer.BadParameter(f"{device!r} is not one of auto, cpu, cuda, cuda:N, mps.")
    return device


def _one_language(source: str) -> str:
    if len(_split(source)) > 1:
        raise typer.BadParameter(f"{source!r} names several languages; documents have one each.")
    return source


def _each_language(to: list[str] | None) -> list[str] | None:
    """Split the items of a repeatable option at commas."""
    names = [name.strip() for each in to or () for name in _split(each)]
    if not all(names):
        raise typer.BadParameter(f"a language is missing in {', '.join(map(repr, to or ()))}.")
    return names or None


def _split(languages: str) -> list[str]:
    from lcm_cli.text.languages import is_listed

    if "," in languages and is_listed(languages):  # "Greek, Modern (1453-)"
        return [languages]
    return languages.split(",")


def _languages(incomplete: str) -> Iterator[tuple[str, str]]:
    from lcm_cli.text.languages import SONAR, language

    return ((code, language(code).name) for code in SONAR if code.startswith(incomplete))


def _spaces(incomplete: str) -> Iterator[tuple[str, str]]:
    from lcm_cli.hub.cards import cards

    spaces = (card for card in cards().values() if card.kind == "space")
    return ((space.name, space.summary) for space in spaces if space.name.startswith(incomplete))


def _checked_format(name: str | None) -> str | None:
    from lcm_cli.documents.kinds import NAMES

    if name is not None and name not in NAMES:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(NAMES)}.")
    return name


def _formats(incomplete: str) -> Iterator[tuple[str, str]]:
    from lcm_cli.documents.kinds import NAMES

    return ((kind, name) for kind, name in NAMES.items() if kind.startswith(incomplete))


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE",
        help="Files, folders, globs or addresses (https://...); - for standard input.",
        show_default=False,
    ),
]
Space = Annotated[
    str | None,
    typer.Option(
        "--space",
        metavar="SPACE",
        envvar="LCM_SPACE",
        help="Space: a name, a folder, or ORG/REPO.  [default: tiny]",
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
        help="Concept model: a name, a folder, or ORG/REPO; auto is the space's own.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        envvar="LCM_DEVICE",
        help="Device: auto, cpu, cuda, cuda:N or mps.",
        callback=_checked_device,
    ),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16", "float16", "int8"],
    typer.Option(
        "--precision", envvar="LCM_PRECISION", help="Numerical precision of the computation."
    ),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens",
        metavar="N",
        envvar="LCM_BATCH_TOKENS",
        min=1,
        help="Tokens in a batch.  [default: depends on the device]",
        show_default=False,
    ),
]
From = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="LANG",
        help="Input language, a code or a name; auto detects it.",
        callback=_one_language,
        autocompletion=_languages,
    ),
]
To = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        metavar="LANG",
        help="Target language, a code or a name, or all; for several, repeat it or use commas.",
        show_default=False,
        callback=_each_language,
        autocompletion=_languages,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="Input format: text, markdown, html, srt, ...  [default: detected]",
        show_default=False,
        callback=_checked_format,
        autocompletion=_formats,
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        "--column",
        metavar="NAME",
        help="Column with the text, in tables (CSV, TSV, JSON).",
        show_default=False,
    ),
]
OnePerLine = Annotated[
    bool, typer.Option("--one-per-line", help="Treat each line of text as one sentence.")
]
Split = Annotated[
    Literal["auto", "sat"],
    typer.Option(
        "--split", help="How sentences are found: by rules, or by SaT for text without punctuation."
    ),
]
Speech = Annotated[
    str | None,
    typer.Option(
        "--speech",
        metavar="ENCODER",
        envvar="LCM_SPEECH",
        help="Speech encoder of recordings: a name, a folder, or ORG/REPO.  "
        "[default: the space's for the language]",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
Output = Annotated[
    str | None,
    typer.Option(
        *("-o", "--output"),
        metavar="FILE",
        help="Write the result to FILE; - is standard output.",
        show_default=False,
    ),
]
Outputs = Annotated[
    str | None,
    typer.Option(
        *("-o", "--output"),
        metavar="FILE",
        help="Write to FILE, or a file for each result to FOLDER/; - is standard output.",
        show_default=False,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        "--output-template",
        metavar="NAME",
        help="Names of the files in the output folder.  [default: {stem}.{lang}{ext}]",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing output.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Random seed.")]


def read_options(format: str | None, column: str | None, *, whole: bool = False) -> ReadOptions:
    """Return how the inputs are read."""
    return ReadOptions(cast(Kind | None, format), column, whole)


def input_paths(inputs: list[str] | None) -> list[str]:
    """Return the inputs, or standard input if there are none and it is not a terminal.

    Raises UsageError if there is nothing to read, rather than wait for someone to type.
    """
    if not inputs and sys.stdin.isatty():
        raise UsageError("nothing to read", "name a file or a folder, or - to type the text")
    return inputs or ["-"]


def space_or_default(space: str | None) -> str:
    """Return the chosen space, or the default one with a note on how to choose another."""
    if space is None:
        console.info("space: tiny, bundled; for all 202 languages: lcm pull sonar --set-default")
    return space or "tiny"


def _use_config(ctx: typer.Context, chosen: Path | None) -> Path | None:
    """Take the defaults of all options parsed after this one from the config file."""
    path = None if ctx.resilient_parsing else settings.find_settings(chosen)
    if path is not None:
        options = dict(_configurable(ctx.command.params))
        called = ctx.command_path.split()[1:]  # without the program's own name
        takes = {key: _takes(option) for key, option in options.items()}
        found = settings.defaults(path, called, takes, SHARED, commands=ctx.obj)
        ctx.default_map = {options[key].name: value for key, value in found.items()}
        ctx.meta[CONFIG] = path
    return path


def _configurable(params: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options that a config file may set, by their keys there."""
    for param in params:
        for flag in param.opts:
            if flag.startswith("--") and flag != "--config":
                yield flag.removeprefix("--"), param


def _takes(option: Any) -> settings.Takes:
    if option.count:
        return "count"
    if option.is_flag:
        return "switch"
    return "list" if option.multiple else "value"


def _common(
    *,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show only errors.")] = False,
    verbose: Annotated[
        int,
        typer.Option("-v", "--verbose", count=True, help="Show more details.", show_default=False),
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
            help="Read option defaults from FILE.  [default: ./lcm.toml, else the user's]",
            show_default=False,
            is_eager=True,
            callback=_use_config,
        ),
    ] = None,
) -> None:
    console.configure(quiet, verbose)
    if offline:  # read by huggingface_hub only when it is imported
        os.environ["HF_HUB_OFFLINE"] = "1"
    if config is not None:
        console.detail(f"config: {config}")


def _pulling(
    *,
    pull: Annotated[
        bool,
        typer.Option("--pull", envvar="LCM_PULL", help="Download missing checkpoints first."),
    ] = False,
) -> None: ...


def with_common(main: Callable[..., None]) -> Callable[..., None]:
    """Return `main` with the common options added to its signature.

    A command that takes checkpoints by name also gets `--pull`, which downloads them first.
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
    # Typer reads both the signature and the annotations of a command.
    command.__signature__ = own.replace(parameters=both)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in both}
    return command
