"""lcm inspect: what is in a file, a data set, a space or a checkpoint."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from lcm_cli import console

from ._options import Json

EPILOG = """\
lcm inspect story.parquet

lcm inspect corpus/ --json

lcm inspect tiny
"""
Rows = Iterator[tuple[str, str]]


def main(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A file or folder of text or concepts, a space, a card, or weights.",
            show_default=False,
        ),
    ],
    json: Json = False,
) -> None:
    """Show what is in a file, a data set, a space or a checkpoint."""
    from lcm_cli.inspection import inspect

    report = inspect(name)
    if json:
        console.emit(report)
        return
    rows = {"space": _card, "model": _card, "checkpoint": _weights}.get(report["kind"], _documents)
    console.table("", ("what", "found"), rows(report))
    for problem in report.get("problems", ()):
        console.warn(problem)


def _documents(report: dict[str, Any]) -> Rows:
    shards = f"{report['shards']:,} shards of " if "shards" in report else ""
    yield "kind", f"{report['kind']}, {shards}{', '.join(report['formats'])}"
    yield "size", console.size(report["bytes"]) if report["bytes"] else "not known"
    yield "documents", f"{report['documents']:,}"
    yield "languages", _pairs(report["languages"])
    if report["sentences"]:
        yield "sentences", f"{report['sentences']:,}"
        yield "characters a sentence", _range(report["sentence_characters"])
        yield "sentences a document", _range(report["document_sentences"])
    if report["concepts"]:
        yield from _concepts(report)
    if report.get("unlisted"):
        yield "not in the manifest", ", ".join(report["unlisted"])
    if report["problem_count"]:
        yield "problems", f"{report['problem_count']:,}"


def _concepts(report: dict[str, Any]) -> Rows:
    space = report["space"]
    weights = f", weights {space['fingerprint']}" if space["fingerprint"] else ""
    yield "concepts", f"{report['concepts']:,} x {space['dim']} {', '.join(report['dtypes'])}"
    yield "space", (space["name"] or "not said") + weights
    yield "licence of the space", report["licence"] or "not known here"
    if report["norms"]:
        yield "norm of a concept", _range(report["norms"])
    yield "NaN or infinite", f"{report['non_finite']:,} concepts"


def _card(report: dict[str, Any]) -> Rows:
    yield "kind", report["kind"]
    yield "name", report["name"]
    if "summary" in report:
        yield "summary", report["summary"]
    note = f" ({report['licence_note']})" if report.get("licence_note") else ""
    yield "licence", report["licence"] + note
    codes = report["languages"]
    yield "languages", str(codes) if isinstance(codes, int) else f"{len(codes)}: {' '.join(codes)}"
    for part in ("encoder", "decoder"):
        if report[part]:
            yield part, _pairs(report[part])
    if not report.get("present", True):
        yield "on this machine", f"no; to get it: lcm pull {report['path']}"
        return
    yield "parameters", _pairs(report["parameters"])
    yield "numbers", ", ".join(report["dtypes"])
    yield "size", console.size(report["bytes"])
    yield "fingerprint", report["fingerprint"]
    yield "NaN or infinite", _pairs(report["non_finite"]) or "none"


def _weights(report: dict[str, Any]) -> Rows:
    yield "kind", "weights, safetensors"
    yield "size", console.size(report["bytes"])
    yield "tensors", f"{len(report['tensors']):,}"
    yield "parameters", f"{report['parameters']:,}"
    yield "numbers", _pairs(report["dtypes"])
    yield from report["metadata"].items()
    yield "NaN or infinite", _pairs(report["non_finite"]) or "none"


def _pairs(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


def _range(numbers: dict[str, float]) -> str:
    return f"{numbers['min']:g} to {numbers['max']:g}, {numbers['mean']:g} on average"
