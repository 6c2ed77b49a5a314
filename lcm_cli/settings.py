"""The config file: defaults of the commands' options.

    device = "cpu"              # flat keys: options that commands share
    [summarize]                 # a table: options of that command
    length = "20%"
    [checkpoints.convert]       # of a command in a group
    force = true

Keys are the long option names, with `-` or `_`. Flags and environment variables override the file.
"""

import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcm_cli.errors import IntegrityError
from lcm_cli.files import atomic_path, disk_error, not_there
from lcm_cli.paths import user_config_file
from lcm_cli.schema import nearest, toml_table

LOCAL = Path("lcm.toml")


def find_settings(chosen: Path | None = None) -> Path | None:
    """Return the config file to use: `chosen`, else ./lcm.toml, else the user's, else None.

    Raises NotFoundError if `chosen` is given and is not a file.
    """
    if chosen is not None and not chosen.is_file():
        raise not_there(chosen, "config file")
    candidates = (chosen, LOCAL, user_config_file())
    return next((path for path in candidates if path is not None and path.is_file()), None)


def read_settings(path: Path) -> dict[str, Any]:
    """Read a config file. Raises IntegrityError if it is not TOML."""
    return toml_table(path.read_bytes(), str(path))


def defaults(
    path: Path,
    command: Sequence[str],
    options: Collection[str],
    shared: Collection[str],
    commands: Collection[str],
) -> dict[str, Any]:
    """Return the defaults in the file at `path` for the options of `command`.

    `command` is a command's name, after its group's if it has one. `options` are the options of the
    command, `shared` those allowed as flat keys, `commands` all commands; all with `_` for `-`.
    Raises IntegrityError for an unknown key.
    """
    data = _underscored(read_settings(path))
    tables = {key for key, value in data.items() if isinstance(value, dict)}
    _check(path, "command", tables, commands)
    _check(path, "option", data.keys() - tables, shared)
    own = data
    for name in command:
        own = _underscored(own.get(name, {}))
    _check(path, f"option of {' '.join(command)}", own, options)
    return {key: data[key] for key in options if key in data and key not in tables} | own


def set_user_default(key: str, value: str) -> Path:
    """Set `key` to `value` in the user's config file and return its path; the rest is kept.

    Raises IntegrityError if the file is not TOML, or the line cannot be inserted safely.
    """
    path = user_config_file()
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    expected = (_underscored(read_settings(path)) if old else {}) | {key: value}
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
    names = [line.partition("=")[0].strip().replace("-", "_") for line in lines]
    table = next((i for i, name in enumerate(names) if name.startswith("[")), len(names))
    if key in names[:table]:
        lines[names.index(key)] = new
    else:
        lines.insert(0, new)
    return "\n".join(lines) + "\n"


def _parses_to(text: str, expected: Mapping[str, Any]) -> bool:
    try:
        return _underscored(tomllib.loads(text)) == expected
    except tomllib.TOMLDecodeError:
        return False


def _underscored(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in data.items()}


def _check(path: Path, what: str, found: Collection[str], known: Collection[str]) -> None:
    for key in sorted(set(found) - set(known)):
        near = nearest(key, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise IntegrityError(f"{path}: {key!r} is not a known {what}", hint)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
