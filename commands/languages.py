"""lcm languages: list languages, their names and codes, and the spaces that have them."""

from typing import TYPE_CHECKING, Annotated

import typer

from lcm_cli import console

from ._options import Json

if TYPE_CHECKING:
    from lcm_cli.text.languages import Language

EPILOG = """\
lcm languages
lcm languages kurdish
lcm languages Devanagari
lcm languages --json > languages.jsonl
"""


def main(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="Part of a name or code.", show_default=False)
    ] = "",
    json: Json = False,
) -> None:
    """List the languages: codes, names, script, and the spaces that have them.

    Every option that takes a language accepts any of its names: fr, fra, fra_Latn, French,
    français, fr-CA.
    """
    from lcm_cli.hub.cards import spaces_with
    from lcm_cli.text.languages import find_language, search_languages

    # A query that no name contains: `find_language` raises an error with the nearest names.
    for_each = [
        (one, spaces_with(one.code)) for one in search_languages(query) or [find_language(query)]
    ]
    if json:
        for one, spaces in for_each:
            console.emit(_facts(one) | {"spaces": spaces})
        return
    columns = ("code", "name", "own name", "script", "ISO 639", "spaces")
    console.table("", columns, [_row(one, spaces) for one, spaces in for_each])


def _facts(one: "Language") -> dict[str, str]:
    return {
        "code": one.code,
        "name": one.name,
        "autonym": one.autonym,
        "script": one.script,
        "script_name": one.script_name,
        "iso639_3": one.iso639_3,
        "iso639_1": one.iso639_1,
    }


def _row(one: "Language", spaces: list[str]) -> tuple[str, ...]:
    codes = " ".join(filter(None, (one.iso639_3, one.iso639_1)))
    # The table has no room for variants of a space (sonar-robust), which have the same languages.
    main = [name for name in spaces if not any(name.startswith(f"{other}-") for other in spaces)]
    return one.code, one.name, one.autonym, one.script_name, codes, " ".join(main)
