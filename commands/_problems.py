"""Errors in single documents, shown while the command continues with the others."""

import typer

from lcm_cli import console
from lcm_cli.errors import LcmError


class Problems:
    """Shows each error at once and remembers it for the exit code."""

    def __init__(self) -> None:
        self.errors: list[LcmError] = []

    def __call__(self, error: LcmError) -> None:
        """Show `error`."""
        console.show_error(error)
        self.errors.append(error)

    def finish(self, any_done: bool = True) -> None:
        """Exit with 1 after any error, or with the code of the only one if nothing was done."""
        if self.errors:
            alone = len(self.errors) == 1 and not any_done
            raise typer.Exit(self.errors[0].exit_code if alone else 1)
