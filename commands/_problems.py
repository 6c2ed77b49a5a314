"""Errors in single documents, shown while the command continues with the others."""

import re
from collections import Counter

import typer

from lcm_cli import console
from lcm_cli.errors import LcmError
from lcm_cli.schema import counted

SHOWN = 5  # errors in the lines or rows of one file

_PLACE = re.compile(r"(?P<file>.+?) (?P<unit>line|row) \d+\b", re.DOTALL)


class Problems:
    """Shows each error at once, but only the first ones of a file, and counts all of them."""

    def __init__(self) -> None:
        self.count = 0
        self._first: LcmError | None = None
        self._of_file: Counter[tuple[str, str]] = Counter()  # by file, and its "line" or "row"

    def __call__(self, error: LcmError) -> None:
        """Show `error`, unless there were several in the same file."""
        self.count += 1
        self._first = self._first or error
        if place := _PLACE.match(error.message):
            key = place["file"], place["unit"]
            self._of_file[key] += 1
            if self._of_file[key] > SHOWN:
                console.detail(f"error: {error.message}")
                return
        console.show_error(error)

    def finish(self, any_done: bool = True) -> None:
        """Count the errors that were not shown; exit with 1 after any error.

        Exits with the code of the only error if nothing was done.
        """
        for (file, unit), found in self._of_file.items():
            if (more := found - SHOWN) > 0:
                message = f"and {counted(more, f'more {unit}')} of {file} like these"
                console.show_error(LcmError(message, "see all of them with -v"))
        if self._first is not None:
            alone = self.count == 1 and not any_done
            raise typer.Exit(self._first.exit_code if alone else 1)
