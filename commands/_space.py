"""The space of a command: located and checked before anything heavy is loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcm_cli.errors import UsageError
from lcm_cli.hub.locate import locate_space
from lcm_cli.pipeline import find_languages
from lcm_cli.text.languages import find_language

from ._options import space_or_default

if TYPE_CHECKING:
    from lcm_cli.space import Space


class LocatedSpace:
    """An installed space that is not loaded yet; the default one for None."""

    def __init__(self, space: str | None) -> None:
        """Raise NotFoundError if the space is not installed."""
        self._source = space_or_default(space)
        files = locate_space(self._source)
        self.name = files.name
        self.languages: tuple[str, ...] = tuple(files.config["languages"])

    def language(self, query: str) -> str:
        """Return the code for a language name or code; `auto` is returned as it is."""
        return query if query == "auto" else find_language(query, self.languages, self.name).code

    def targets(self, to: Sequence[str] | None) -> list[str]:
        """Return the codes of the target languages; empty if none is named."""
        return find_languages(to or (), self.languages, self.name)

    def required_targets(self, to: Sequence[str] | None) -> list[str]:
        """Return the codes of the target languages. Raises UsageError if none is named."""
        if not to:
            hint = "name one or more: --to fra --to deu, or --to all"
            raise UsageError("no target language", hint)
        return self.targets(to)

    def load(self, device: str, precision: str, batch_tokens: int | None) -> "Space":
        """Load the space; this imports torch."""
        from lcm_cli.space import load_space

        return load_space(
            self._source, device=device, precision=precision, batch_tokens=batch_tokens
        )
