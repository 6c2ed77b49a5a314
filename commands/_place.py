"""What the commands on documents need first: a space, and a way to go on after an error."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from lcm_cli import console
from lcm_cli.errors import LcmError, UsageError
from lcm_cli.hub.locate import locate_space
from lcm_cli.pipeline import find_languages
from lcm_cli.text.languages import find_language

from ._options import space_or_default

if TYPE_CHECKING:
    from lcm_cli.space import Space


class Problems:
    """Shows what is wrong with one document, so that the others can follow."""

    def __init__(self) -> None:
        self.errors: list[LcmError] = []

    def __call__(self, error: LcmError) -> None:
        """Show `error`."""
        console.show_error(error)
        self.errors.append(error)

    def finish(self, any_done: bool = True) -> None:
        """End the command with exit code 1 if anything went wrong; its own if all there was did."""
        if self.errors:
            alone = len(self.errors) == 1 and not any_done
            raise typer.Exit(self.errors[0].exit_code if alone else 1)


class Place:
    """A space that is on this machine and not loaded yet."""

    def __init__(self, space: str | None) -> None:
        self._source = space_or_default(space)
        files = locate_space(self._source)
        self.name = files.name
        self.languages: tuple[str, ...] = tuple(files.config["languages"])

    def language(self, query: str) -> str:
        """Return the code that `query` means; `auto` stays."""
        return query if query == "auto" else find_language(query, self.languages, self.name).code

    def targets(self, to: Sequence[str] | None) -> list[str]:
        """Return the codes of the target languages. Raises UsageError if there are none."""
        if not to:
            hint = "name one or more: --to fra --to deu, or --to all"
            raise UsageError("no target language", hint)
        return find_languages(to, self.languages, self.name)

    def load(self, device: str, precision: str, batch_tokens: int | None) -> "Space":
        """Load the space; this is what imports torch."""
        from lcm_cli.space import load_space

        return load_space(
            self._source, device=device, precision=precision, batch_tokens=batch_tokens
        )
