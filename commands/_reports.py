"""Rows of the tables of `lcm inspect`."""

from collections.abc import Iterator, Mapping
from typing import Any

from lcm_cli import console
from lcm_cli.headers import type_name
from lcm_cli.schema import counted

Lines = Iterator[tuple[str, str]]


def rows(report: dict[str, Any]) -> Lines:
    """Yield the rows of a report of lcm_cli.inspection."""
    kinds = {
        "space": _card,
        "model": _card,
        "speech": _card,
        "checkpoint": _weights,
        "shares": _divided,
    }
    if "architecture" in report:
        return _model(report)
    return kinds.get(report["kind"], _documents)(report)


def _documents(report: dict[str, Any]) -> Lines:
    shards = f"{counted(report['shards'], 'shard')} of " if "shards" in report else ""
    yield "kind", f"{report['kind']}, {shards}{', '.join(report['formats'])}"
    if "shares" in report:
        yield "shares", _shares(report["shares"])
    yield "size", console.size(report["bytes"]) if report["bytes"] else "unknown"
    yield "documents", f"{report['documents']:,}"
    if report["splits"]:
        yield "splits", _pairs(report["splits"])
    for part in ("targets", "plans"):
        if report[part]:
            yield f"documents with {part}", f"{report[part]:,}"
    yield "languages", _pairs(report["languages"])
    if report["sentences"]:
        yield "sentences", f"{report['sentences']:,}"
        yield "characters per sentence", _range(report["sentence_characters"])
        yield "sentences per document", _range(report["document_sentences"])
    if report["concepts"]:
        yield from _concepts(report)
    if report.get("unlisted"):
        yield "not in the manifest", ", ".join(report["unlisted"])
    if report["problem_count"]:
        yield "problems", f"{report['problem_count']:,}"


def _divided(report: dict[str, Any]) -> Lines:
    yield "kind", f"dataset, {counted(report['shards'], 'shard')} of parquet"
    yield "shares", _shares(report["shares"])
    yield "size", console.size(report["bytes"])
    yield "documents", f"{report['documents']:,}"
    yield "concepts", f"{report['concepts']:,} x {report['space']['dim']} {report['dtype']}"


def _shares(found: dict[str, Any]) -> str:
    states = ("finished", "unfinished", "missing")
    counts = ", ".join(f"{len(found[state]):,} {state}" for state in states if found[state])
    return f"{found['count']:,}: {counts}"


def _concepts(report: dict[str, Any]) -> Lines:
    space = report["space"]
    weights = f", weights {space['fingerprint']}" if space["fingerprint"] else ""
    yield "concepts", f"{report['concepts']:,} x {space['dim']} {', '.join(report['dtypes'])}"
    yield "space", (space["name"] or "unknown") + weights
    yield "licence of the space", report["licence"] or "unknown"
    if report["norms"]:
        yield "norm of a concept", _range(report["norms"])
    yield "NaN or infinite", f"{report['non_finite']:,} concepts"


def _card(report: dict[str, Any]) -> Lines:
    yield "kind", report["kind"]
    yield "name", report["name"]
    yield from _adapter(report)
    if "summary" in report:
        yield "summary", report["summary"]
    note = f" ({report['licence_note']})" if report.get("licence_note") else ""
    yield "licence", report["licence"] + note
    codes = report["languages"]
    yield "languages", str(codes) if isinstance(codes, int) else f"{len(codes)}: {' '.join(codes)}"
    if report.get("spaces"):
        yield "spaces", " ".join(report["spaces"])
    for part in ("encoder", "decoder"):
        if report.get(part):
            yield part, _pairs(report[part])
    if teacher := report.get("teacher"):
        yield "distilled from", f"{teacher['name']}, weights {teacher['fingerprint']}"
    if not report.get("present", True):
        yield "on this machine", f"no; to download it: lcm pull {report['path']}"
        return
    yield "parameters", _pairs(report["parameters"])
    yield "numbers", numbers_text(report["dtypes"])
    yield "size", console.size(report["bytes"])
    yield "fingerprint", report["fingerprint"] or "unknown"
    yield "NaN or infinite", _pairs(report["non_finite"]) or "none"


def _adapter(report: dict[str, Any]) -> Lines:
    if adapter := report.get("adapter"):
        yield "adapter of", adapter_text(adapter)
        numbers = f"{adapter['parameters']:,} parameters, {console.size(adapter['bytes'])}"
        yield "adapted", f"{', '.join(adapter['modules'])}: {numbers}"


def adapter_text(adapter: Mapping[str, Any]) -> str:
    """Return the base, the rank and the alpha of an adapter."""
    base = f"{adapter['base']}, weights {adapter['fingerprint']}"
    return f"{base}; rank {adapter['rank']}, alpha {adapter['alpha']:g}"


def _model(report: dict[str, Any]) -> Lines:
    yield "kind", f"model, {report['architecture']}"
    yield "name", report["name"]
    yield from _adapter(report)
    if report["licence"]:
        yield "licence", report["licence"]
    weights = f", weights {report['fingerprint']}" if report["fingerprint"] else ""
    yield "space", (report["space"] or "unknown") + weights
    yield "width of a concept", f"{report['dim']}"
    if report["layers"]:
        yield "layers", f"{_pairs(report['layers'])}; of width {report['model_dim']}"
    if report["max_length"]:
        yield "longest document", f"{report['max_length']:,} concepts"
        settings = (f"{key} {value}" for key, value in report["normalizer"].items() if value)
        yield "normalizer", ", ".join(settings)
    if report["sampling"]:
        yield "sampling", "steps {steps}, guidance {guidance:g}".format_map(report["sampling"])
    for task, prompt in report["prompts"].items():
        yield f"prompt to {task}", prompt
    if report["end_text"]:
        yield "end of text", report["end_text"]
    yield "parameters", f"{report['parameters']:,}"
    yield "numbers", numbers_text(report["dtypes"])
    yield "size", console.size(report["bytes"])
    yield "NaN or infinite", _pairs(report["non_finite"]) or "none"


def _weights(report: dict[str, Any]) -> Lines:
    yield "kind", "weights, safetensors"
    yield "size", console.size(report["bytes"])
    yield "tensors", f"{len(report['tensors']):,}"
    yield "parameters", f"{report['parameters']:,}"
    yield "numbers", _pairs(report["dtypes"])
    yield from report["metadata"].items()
    yield "NaN or infinite", _pairs(report["non_finite"]) or "none"


def _pairs(numbers: Mapping[str, int | bool]) -> str:
    return ", ".join(f"{name} {_number(number)}" for name, number in numbers.items())


def _number(value: int | bool) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:,}"


def numbers_text(counts: Mapping[str, int]) -> str:
    """Return how many numbers of a checkpoint have each type, the most common first."""
    named = sorted(counts.items(), key=lambda pair: -pair[1])
    scaled = {"I8": ", one scale per row:"}
    return "; ".join(f"{type_name(name)}{scaled.get(name, '')} {n:,}" for name, n in named)


def _range(numbers: dict[str, float]) -> str:
    return f"{numbers['min']:g} to {numbers['max']:g}, {numbers['mean']:g} on average"
