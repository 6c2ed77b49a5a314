"""The config file: defaults of the commands' options.

    device = "cpu"              # flat keys: options that commands share
    [summarize]                 # a table: options of that command
    length = "20%"
    [checkpoints.convert]       # of a command in a group
    force = true

Keys are the long option names, with `-` or `_`. An option that can be repeated takes a list, or one
value. Flags and environment variables override the file.
"""

import json
import os
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.files import atomic_path, disk_error, not_there, read_utf8
from lcm_cli.paths import user_config_file
from lcm_cli.schema import nearest, toml_table

LOCAL = Path("lcm.toml")
Takes = Literal["value", "list", "switch", "count"]  # what an option takes


def find_settings(chosen: Path | None = None) -> Path | None:
    """Return the config file to use: `chosen`, else ./lcm.toml, else the user's, else None.

    Raises NotFoundError if `chosen` does not exist, UsageError if it is a folder or a device.
    """
    if chosen is not None:
        _check_chosen(chosen)
        return chosen
    return next((path for path in (LOCAL, user_config_file()) if path.is_file()), None)


def _check_chosen(path: Path) -> None:
    if path.is_dir():
        inside = path / LOCAL
        hint = f"did you mean {inside}?" if inside.is_file() else f"name a file: {inside}"
        raise UsageError(f"{path} is a folder, not a config file", hint)
    if not path.exists():
        raise not_there(path, "config file")
    # Without options, /dev/null is a config file, and so is a pipe such as <(command).
    if not (path.is_file() or path.is_fifo() or path.samefile(os.devnull)):
        raise UsageError(f"{path} is not a regular file, so not a config file", "name another file")


def read_settings(path: Path) -> dict[str, Any]:
    """Read a config file. Raises IntegrityError if it is not TOML or not UTF-8."""
    return toml_table(read_utf8(path), str(path))


def defaults(
    path: Path,
    command: Sequence[str],
    options: Mapping[str, Takes],
    shared: Collection[str],
    commands: Collection[str],
) -> dict[str, Any]:
    """Return the defaults in the file at `path` for the options of `command`.

    `command` is a command's name, after its group's if it has one. `options` are the options of the
    command, `shared` those allowed as flat keys, `commands` all commands; names have `-`, not `_`.
    A number is returned as a string, as on a command line, and a single value for a list in a list.
    Raises IntegrityError for an unknown key or a value of the wrong type.
    """
    data = read_settings(path)
    tables = {key for key, value in data.items() if isinstance(value, dict)}
    for key in data.keys() - tables:
        if key in commands:
            hint = f"put its options in a table: [{key}]"
            raise IntegrityError(f"{path}: {key!r} is a command, not an option", hint)
    for key in tables:
        if _hyphenated(key) in shared:
            _fitted(path, key, data[key], options.get(_hyphenated(key), "value"))  # raises
    _check(path, "command", tables, commands)
    _check(path, "option", data.keys() - tables, shared)
    own: Any = data
    for name in command:
        own = own.get(name, {})
        if not isinstance(own, dict):
            raise IntegrityError(f"{path}: {name!r} is a command: its options go in a table")
    _check(path, f"option of {' '.join(command)}", own, options)
    flat = {key: data[key] for key in data.keys() - tables if _hyphenated(key) in options}
    return {
        _hyphenated(key): _fitted(path, key, value, options[_hyphenated(key)])
        for key, value in [*flat.items(), *own.items()]
    }


def _fitted(path: Path, key: str, value: Any, takes: Takes) -> Any:
    """Return a value as the command line would give it. Raises IntegrityError for other types."""
    items = value if isinstance(value, list) and takes == "list" else [value]
    found = next(filter(None, (_misfit(item, takes) for item in items)), None)
    if found is not None:
        shown = json.dumps(value, ensure_ascii=False, default=str)
        hint = f"write it as: {key} = {_EXAMPLES[takes]}"
        raise IntegrityError(f"{path}: {key} = {shown} is {found}, not {_WANTED[takes]}", hint)
    if isinstance(value, bool):
        return int(value) if takes == "count" else value
    given = [str(item) for item in items]
    return given if takes == "list" else given[0]


_WANTED: dict[Takes, str] = {
    "value": "a string or a number",
    "list": "a list of strings",
    "switch": "true or false",
    "count": "a whole number",
}
_EXAMPLES: dict[Takes, str] = {"value": '"..."', "list": '["..."]', "switch": "true", "count": "1"}


def _misfit(value: Any, takes: Takes) -> str | None:
    """Return what a value is if an option cannot take it."""
    if isinstance(value, bool):
        return "a boolean" if takes in ("value", "list") else None
    if isinstance(value, str | int | float):
        return None
    known: dict[type, str] = {list: "a list", dict: "a table"}
    return known.get(type(value), "a date or time")


def set_user_default(key: str, value: str) -> Path:
    """Set `key` to `value` in the user's config file and return its path; the rest is kept.

    Raises IntegrityError if the file is not TOML, or the line cannot be inserted safely.
    """
    path = user_config_file()
    old = read_utf8(path) if path.is_file() else ""
    expected = (_with_hyphens(read_settings(path)) if old else {}) | {_hyphenated(key): value}
    line = f"{key} = {_quoted(value)}"
    text = _with_line(old, key, line)
    if not _parses_to(text, expected):
        raise IntegrityError(f"cannot change {path} safely", f"add this line yourself: {line}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error
    with atomic_path(path, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _with_line(text: str, key: str, new: str) -> str:
    """Return `text` with the line `new` in place of the old one for `key`, else as its first."""
    lines = text.splitlines()
    names = [_hyphenated(line.partition("=")[0].strip()) for line in lines]
    table = next((i for i, name in enumerate(names) if name.startswith("[")), len(names))
    if _hyphenated(key) in names[:table]:
        lines[names.index(_hyphenated(key))] = new
    else:
        lines.insert(0, new)
    return "\n".join(lines) + "\n"


def _parses_to(text: str, expected: Mapping[str, Any]) -> bool:
    try:
        return _with_hyphens(tomllib.loads(text)) == expected
    except tomllib.TOMLDecodeError:
        return False


def _with_hyphens(data: Mapping[str, Any]) -> dict[str, Any]:
    return {_hyphenated(key): value for key, value in data.items()}


def _hyphenated(key: str) -> str:
    return key.replace("_", "-")


def _check(path: Path, what: str, found: Collection[str], known: Collection[str]) -> None:
    for key in sorted(found):
        if _hyphenated(key) in known:
            continue
        near = nearest(_hyphenated(key), known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise IntegrityError(f"{path}: {key!r} is not a known {what}", hint)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
