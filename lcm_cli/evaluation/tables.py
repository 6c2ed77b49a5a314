"""Tables from records: means with intervals, tests between systems, and published numbers."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations
from typing import Any

from lcm_cli.evaluation import metrics
from lcm_cli.evaluation.statistics import holm, interval, paired
from lcm_cli.pipeline import prose
from lcm_cli.text.languages import language

Record = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """How a metric is shown; `better` is "up", "down", or "" if neither direction is better."""

    name: str
    label: str
    digits: int = 3
    better: str = ""
    shown: bool = True  # in the terminal, which has less room than the report


MEASURES = (
    Measure("l2", "l2", 3, "down"),
    Measure("l2_r", "l2-r", 3, "down"),
    Measure("par", "PAR"),
    Measure("ca", "CA", 3, "up"),
    Measure("ca_all", "CA all", 3, "up", shown=False),
    Measure("mi", "MI", 3, "up"),
    Measure("rouge1", "R-1", 2, "up", shown=False),
    Measure("rouge2", "R-2", 2, "up", shown=False),
    Measure("rougeL", "R-L", 2, "up"),
    Measure("rougeLsum", "R-Lsum", 2, "up", shown=False),
    Measure("chrf", "chrF", 2, "up"),
    Measure("bleu", "BLEU", 2, "up"),
    Measure("noisy_chrf", "chrF noisy", 2, "up"),
    Measure("fragility", "fragility", 3, "down"),
    Measure("similarity", "similarity", 3, "up"),
    Measure("xsim", "xsim", 2, "up"),
    Measure("xsim_plus", "xsim++", 2, "up"),
    Measure("speech_to_text", "speech to text", 2, "up"),
    Measure("ovl3", "OVL-3", shown=False),
    Measure("ovl_lcm", "OVL-3 lcm"),
    Measure("rep4", "REP-4", 3, "down", shown=False),
    Measure("rep_lcm", "REP-4 lcm", 3, "down"),
    Measure("word_ratio", "words"),
    Measure("language_match", "language", 3, "up"),
    Measure("source_coverage", "coverage", 3, "up"),
    Measure("citation_precision", "citations", 3, "up"),
    Measure("coherence", "coherence", shown=False),
    Measure("empty", "empty", 3, "down"),
    Measure("refused", "refused", 3, "down"),
    Measure("cola", "CoLA", 3, "up"),
    Measure("seahorse_q4", "SH-4", 3, "up"),
    Measure("seahorse_q5", "SH-5", 3, "up"),
    Measure("momentum", "momentum", 3, "up"),
    Measure("perplexity", "perplexity", 1, "down"),
    Measure("bertscore", "BERTScore", 3, "up"),
    Measure("blaser_ref", "BLASER", 2, "up"),
    Measure("blaser_qe", "BLASER QE", 2, "up"),
)
TESTED = ("l2", "ca", "rougeL", "chrf", "source_coverage", "similarity")  # compared by `tests`
CORPUS = ("chrf", "bleu")  # computed by sacrebleu over all texts of a language together
ALL = "all"
# The published systems that work in concept space; their names begin like this.
CONCEPT_SYSTEMS = ("Two-Tower", "Base-LCM", "One-Tower", "Quant-LCM", "SONAR")


def results(records: Sequence[Record], seed: int = 0) -> list[Result]:
    """Return every metric for each task, system and language (or pair), and for all languages.

    For all languages together, a metric is the mean over the texts; corpus chrF and BLEU are the
    mean over the languages, without an interval.
    """
    collected: list[Result] = []
    for task, system in dict.fromkeys((r["task"], r["system"]) for r in records):
        own = [r for r in records if (r["task"], r["system"]) == (task, system)]
        pairs = list(dict.fromkeys(map(pair, own)))
        by_pair = []
        for code in pairs:
            by_pair += _pair_results(task, system, code, [r for r in own if pair(r) == code], seed)
        collected += by_pair
        if len(pairs) > 1:
            collected += _overall_results(task, system, own, by_pair, seed)
    return collected


def pair(record: Record) -> str:
    """Return the language of a record, or "eng_Latn-fra_Latn" if it was written in another one."""
    lang, to = record["lang"], record["to"]
    return lang if lang == to else f"{lang}-{to}"


def pair_name(code: str) -> str:
    """Return the name of a `pair`, such as "English → French"; "all" for ALL."""
    return "all" if code == ALL else " → ".join(language(each).name for each in code.split("-"))


def tests(records: Sequence[Record], seed: int = 0) -> list[Result]:
    """Compare every two systems of a task by `paired`, on the texts that both have scores for.

    `p_holm` is corrected for the number of comparisons of the same metric and task.
    """
    comparisons: list[Result] = []
    for task in dict.fromkeys(r["task"] for r in records):
        by_system: dict[str, dict[Any, dict[str, float]]] = {}
        for r in (r for r in records if r["task"] == task):
            by_system.setdefault(r["system"], {})[r["row"], r["to"]] = r["scores"]
        for metric in TESTED:
            comparisons += _compared(task, metric, by_system, seed)
    return comparisons


def _compared(
    task: str, metric: str, by_system: dict[str, dict[Any, dict[str, float]]], seed: int
) -> list[Result]:
    compared: list[Result] = []
    for left, right in combinations(by_system, 2):
        a, b = by_system[left], by_system[right]
        both = [key for key in a if metric in a[key] and metric in b.get(key, {})]
        if len(both) < 2:
            continue
        scores_a, scores_b = [a[key][metric] for key in both], [b[key][metric] for key in both]
        compared.append(
            {
                "task": task,
                "metric": metric,
                "left": left,
                "right": right,
                "difference": sum(scores_a) / len(both) - sum(scores_b) / len(both),
                "count": len(both),
                "p": paired(scores_a, scores_b, seed=seed),
            }
        )
    for each, p in zip(compared, holm([r["p"] for r in compared]), strict=True):
        each["p_holm"] = p
    return compared


def published(tasks: Iterable[str]) -> dict[str, Any]:
    """Return the published numbers for these tasks, with their source."""
    text = (resources.files("lcm_cli.evaluation") / "published.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    wanted = set(tasks)
    return data | {"rows": [row for row in data["rows"] if row["task"] in wanted]}


def measures(entries: Iterable[Result]) -> list[Measure]:
    """Return the measures of the metrics in results, in the order of MEASURES."""
    names = {each["metric"] for each in entries}
    return [measure for measure in MEASURES if measure.name in names]


def _pair_results(
    task: str, system: str, code: str, records: Sequence[Record], seed: int
) -> list[Result]:
    collected = []
    for name in _metric_names(records):
        if name not in CORPUS:
            collected.append(_mean(task, system, code, name, records, seed))
    with_target = [r for r in records if r.get("target") and "chrf" in r["scores"]]
    if with_target:
        to = with_target[0]["to"]
        texts = [[prose(r[key], to) for r in with_target] for key in ("prediction", "target")]
        for name, values in metrics.corpus_scores(texts[0], texts[1], to).items():
            collected.append(measured(task, system, code, name, *values, len(with_target)))
    return collected


def _overall_results(
    task: str, system: str, records: Sequence[Record], by_pair: Sequence[Result], seed: int
) -> list[Result]:
    collected = []
    for name in _metric_names(records) | dict.fromkeys(CORPUS):
        if name not in CORPUS:
            collected.append(_mean(task, system, ALL, name, records, seed))
        # A corpus score is tokenized for one language, so languages are averaged, not pooled.
        elif same := [r for r in by_pair if r["metric"] == name]:
            value = sum(r["value"] for r in same) / len(same)
            count = sum(r["count"] for r in same)
            collected.append(measured(task, system, ALL, name, value, None, None, count))
    return collected


def _mean(
    task: str, system: str, code: str, name: str, records: Sequence[Record], seed: int
) -> Result:
    values = [r["scores"][name] for r in records if name in r["scores"]]
    estimate = interval(values, seed=seed)
    ends = estimate.low, estimate.high
    return measured(task, system, code, name, estimate.mean, *ends, estimate.count)


def measured(
    task: str,
    system: str,
    lang: str,
    metric: str,
    value: float,
    low: float | None,
    high: float | None,
    count: int,
) -> Result:
    """Return a result, a dict in metrics.json; an interval end that is NaN becomes None."""
    # JSON has no NaN, which alone differs from itself.
    ends = [None if end is None or end != end else end for end in (low, high)]
    return {
        "task": task,
        "system": system,
        "lang": lang,
        "metric": metric,
        "value": value,
        "low": ends[0],
        "high": ends[1],
        "count": count,
    }


def _metric_names(records: Sequence[Record]) -> dict[str, None]:
    return dict.fromkeys(name for r in records for name in r["scores"])


def printed(
    entries: Sequence[Result], references: dict[str, Any]
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return for each task the title, the columns and the rows of a table for the terminal.

    A row holds a system's results in one language or in all of them. Published numbers of concept
    models, from `references` (see `published`), follow.
    """
    tables = []
    for task in dict.fromkeys(each["task"] for each in entries):
        own = [each for each in entries if each["task"] == task]
        shown = [m for m in measures(own) if m.shown and not all_zero(own, m.name)]
        several = len({each["lang"] for each in own}) > 1
        columns = ["system", *(["language"] if several else []), "texts"]
        rows = []
        for system, lang in dict.fromkeys((each["system"], each["lang"]) for each in own):
            cells = {e["metric"]: e for e in own if (e["system"], e["lang"]) == (system, lang)}
            count = max(each["count"] for each in cells.values())
            numbers = [number(cells[m.name], m) if m.name in cells else "" for m in shown]
            rows.append([system, *([lang] if several else []), str(count), *numbers])
        names = {m.name for m in shown}
        for reference in references["rows"]:
            if reference["task"] != task or not names & reference["values"].keys():
                continue
            if not reference["system"].startswith(CONCEPT_SYSTEMS):
                continue
            numbers = [_digits(reference["values"].get(m.name), m) for m in shown]
            label = f"{reference['system']}, {reference['data']} *"
            rows.append([label, *([""] if several else []), "", *numbers])
        title = task
        if any(row[0].endswith(" *") for row in rows):
            title += f"   (* {references['note']}: {references['source']})"
        tables.append((title, columns + [m.label for m in shown], rows))
    return tables


def number(entry: Result, measure: Measure) -> str:
    """Return a value as text, with half the width of its interval if it has one."""
    value = _digits(entry["value"], measure)
    if entry["low"] is None:
        return value
    half = (entry["high"] - entry["low"]) / 2
    return f"{value} ±{half:.{measure.digits}f}"


def _digits(value: float | None, measure: Measure) -> str:
    return "" if value is None else f"{value:.{measure.digits}f}"


def all_zero(entries: Iterable[Result], name: str) -> bool:
    """Return whether the metric `name` counts failures and all its values are 0."""
    failures = name in ("empty", "refused")
    return failures and all(e["value"] == 0 for e in entries if e["metric"] == name)
