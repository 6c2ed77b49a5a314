"""lcm checkpoints show: the card and the files of one checkpoint."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_cli import console

from ._options import Json
from ._reports import adapter_text, numbers_text
from .checkpoints_list import adapter_facts, facts

if TYPE_CHECKING:
    from lcm_cli.transfer.inventory import Checkpoint

EPILOG = """\
lcm checkpoints show sonar

lcm checkpoints show org/model --json

lcm checkpoints show runs/mine/model
"""


def main(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The name of a checkpoint, or a folder.")
    ],
    json: Json = False,
) -> None:
    """Show one checkpoint: licence, source, dimensions, training recipe, results."""
    from lcm_cli.transfer.inventory import find_any

    found = find_any(name)
    if json:
        return console.emit(facts(found) | {"card": asdict(found.card) if found.card else None})
    rows = [(key, value) for key, value in _lines(found) if value]
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        console.out(f"{key:{width}}  {value}")


def _lines(found: "Checkpoint") -> list[tuple[str, str]]:
    from lcm_cli.transfer.inventory import count_by_type

    card, counts = found.card, count_by_type(found)
    adapter = adapter_facts(found)
    note = f" ({card.licence_note})" if card and card.licence_note else ""
    lines = [
        ("name", found.name),
        ("kind", found.kind),
        ("adapter of", adapter_text(adapter) if adapter else ""),
        ("summary", found.summary),
        ("licence", (found.licence or "unknown") + note),
        ("source", found.source),
        ("revision", found.revision),
        ("here", str(found.path) if found.path else f"no; to download it: lcm pull {found.name}"),
        ("size", f"{console.size(found.bytes)} ({found.bytes} bytes)" if found.path else ""),
        ("parameters", f"{sum(counts.values()):,}" if counts else ""),
        ("numbers", numbers_text(counts)),
        ("last used", found.used),
    ]
    return lines + (_of_card(vars(card)) if card else [])


def _of_card(card: dict[str, Any]) -> list[tuple[str, str]]:
    languages = card["languages"]
    known = languages if isinstance(languages, int) else " ".join(languages)
    lines = [("languages", str(known)), ("checksums", _CHECKSUMS[card["checksums"]])]
    lines += [(key, card[key]) for key in ("architecture", "space")]
    lines.append(("spaces", " ".join(card["spaces"])))
    nested = ("config", "encoder", "decoder", "recipe", "results")
    return lines + [(key, _pairs(card[key])) for key in nested]


_CHECKSUMS = {"card": "in the card", "first pull": "none published: recorded at the first pull"}


def _pairs(values: dict[str, Any]) -> str:
    flat = (
        f"{key} {_pairs(v)}" if isinstance(v, dict) else f"{key} = {v}" for key, v in values.items()
    )
    return "; ".join(flat)
