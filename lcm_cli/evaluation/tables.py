"""From records to tables: means with their intervals, tests between systems, published numbers."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations
from typing import Any

from lcm_cli.evaluation import metrics
from lcm_cli.evaluation.statistics import holm, interval, paired
from lcm_cli.pipeline import prose

Record = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """How a metric is shown. `better` is "up", "down" or "" where neither is."""

    name: str
    label: str
    digits: int = 3
    better: str = ""
    shown: bool = True  # in the terminal, where there is less room


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
TESTED = ("l2", "ca", "rougeL", "chrf", "source_coverage", "similarity")
CORPUS = ("chrf", "bleu")  # computed over all texts of a language together, by sacrebleu
ALL = "all"
OURS = ("Two-Tower", "Base-LCM", "One-Tower", "Quant-LCM", "SONAR")  # published concept models


def results(records: Sequence[Record], seed: int = 0) -> list[Result]:
    """Return every metric of every task, system and language (or pair), and over all languages.

    Over all languages a metric is the mean over the texts; chrF and BLEU, which are computed over a
    language's texts together, are the mean over the languages.
    """
    found: list[Result] = []
    for task, system in dict.fromkeys((r["task"], r["system"]) for r in records):
        mine = [r for r in records if (r["task"], r["system"]) == (task, system)]
        pairs = list(dict.fromkeys(map(pair, mine)))
        ours = []
        for code in pairs:
            ours += _of(task, system, code, [r for r in mine if pair(r) == code], seed)
        if len(pairs) > 1:
            ours += _over_all(task, system, mine, ours, seed)
        found += ours
    return found


def pair(record: Record) -> str:
    """Return the language of a record, or both as "eng_Latn-fra_Latn" if it has two."""
    lang, to = record["lang"], record["to"]
    return lang if lang == to else f"{lang}-{to}"


def tests(records: Sequence[Record], seed: int = 0) -> list[Result]:
    """Compare every two systems of a task on the texts that both answered, by `paired`.

    `p_holm` is corrected for the number of comparisons of the same metric.
    """
    found: list[Result] = []
    for task in dict.fromkeys(r["task"] for r in records):
        by_system: dict[str, dict[Any, dict[str, float]]] = {}
        for r in (r for r in records if r["task"] == task):
            by_system.setdefault(r["system"], {})[r["row"], r["to"]] = r["scores"]
        for metric in TESTED:
            found += _compared(task, metric, by_system, seed)
    return found


def _compared(
    task: str, metric: str, by_system: dict[str, dict[Any, dict[str, float]]], seed: int
) -> list[Result]:
    compared: list[Result] = []
    for left, right in combinations(by_system, 2):
        a, b = by_system[left], by_system[right]
        both = [key for key in a if metric in a[key] and metric in b.get(key, {})]
        if len(both) < 2:
            continue
        ours, theirs = [a[key][metric] for key in both], [b[key][metric] for key in both]
        compared.append(
            {
                "task": task,
                "metric": metric,
                "left": left,
                "right": right,
                "difference": sum(ours) / len(both) - sum(theirs) / len(both),
                "count": len(both),
                "p": paired(ours, theirs, seed=seed),
            }
        )
    for each, p in zip(compared, holm([r["p"] for r in compared]), strict=True):
        each["p_holm"] = p
    return compared


def published(tasks: Iterable[str]) -> dict[str, Any]:
    """Return the published numbers of these tasks, with their source."""
    text = (resources.files("lcm_cli.evaluation") / "published.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    wanted = set(tasks)
    return data | {"rows": [row for row in data["rows"] if row["task"] in wanted]}


def measures(found: Iterable[Result]) -> list[Measure]:
    """Return how the metrics among results are shown, in order."""
    names = {each["metric"] for each in found}
    return [measure for measure in MEASURES if measure.name in names]


def _of(task: str, system: str, code: str, records: Sequence[Record], seed: int) -> list[Result]:
    found = []
    for name in _names(records):
        if name not in CORPUS:
            found.append(_mean(task, system, code, name, records, seed))
    referred = [r for r in records if r.get("target") and "chrf" in r["scores"]]
    if referred:
        to = referred[0]["to"]
        texts = [[prose(r[key], to) for r in referred] for key in ("prediction", "target")]
        for name, values in metrics.corpus_scores(texts[0], texts[1], to).items():
            found.append(measured(task, system, code, name, *values, len(referred)))
    return found


def _over_all(
    task: str, system: str, records: Sequence[Record], by_pair: Sequence[Result], seed: int
) -> list[Result]:
    found = []
    for name in _names(records) | dict.fromkeys(CORPUS):
        if name not in CORPUS:
            found.append(_mean(task, system, ALL, name, records, seed))
        elif same := [r for r in by_pair if r["metric"] == name]:
            value = sum(r["value"] for r in same) / len(same)
            count = sum(r["count"] for r in same)
            found.append(measured(task, system, ALL, name, value, None, None, count))
    return found


def _mean(
    task: str, system: str, code: str, name: str, records: Sequence[Record], seed: int
) -> Result:
    values = [r["scores"][name] for r in records if name in r["scores"]]
    found = interval(values, seed=seed)
    return measured(task, system, code, name, found.mean, found.low, found.high, found.count)


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


def _names(records: Sequence[Record]) -> dict[str, None]:
    return dict.fromkeys(name for r in records for name in r["scores"])


def printed(
    found: Sequence[Result], cards: dict[str, Any]
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a table for each task: its title, its columns, and its rows.

    A row is a system in one language, or over all of them; published numbers follow.
    """
    done = []
    for task in dict.fromkeys(each["task"] for each in found):
        mine = [each for each in found if each["task"] == task]
        shown = [m for m in measures(mine) if m.shown and not all_zero(mine, m.name)]
        several = len({each["lang"] for each in mine}) > 1
        columns = ["system", *(["language"] if several else []), "texts"]
        rows = []
        for system, lang in dict.fromkeys((each["system"], each["lang"]) for each in mine):
            cells = {e["metric"]: e for e in mine if (e["system"], e["lang"]) == (system, lang)}
            count = max(each["count"] for each in cells.values())
            numbers = [number(cells[m.name], m) if m.name in cells else "" for m in shown]
            rows.append([system, *([lang] if several else []), str(count), *numbers])
        names = {m.name for m in shown}
        for card in (c for c in cards["rows"] if c["task"] == task and names & c["values"].keys()):
            if not card["system"].startswith(OURS):
                continue
            numbers = [_digits(card["values"].get(m.name), m) for m in shown]
            label = f"{card['system']}, {card['data']} *"
            rows.append([label, *([""] if several else []), "", *numbers])
        title = task
        if any(row[0].endswith(" *") for row in rows):
            title += f"   (* {cards['note']}: {cards['source']})"
        done.append((title, columns + [m.label for m in shown], rows))
    return done


def number(found: Result, measure: Measure) -> str:
    """Return a value with half the width of its interval, if it has one."""
    value = _digits(found["value"], measure)
    if found["low"] is None:
        return value
    half = (found["high"] - found["low"]) / 2
    return f"{value} ±{half:.{measure.digits}f}"


def _digits(value: float | None, measure: Measure) -> str:
    return "" if value is None else f"{value:.{measure.digits}f}"


def all_zero(found: Iterable[Result], name: str) -> bool:
    """Return whether this counts failures, and there are none."""
    failures = name in ("empty", "refused")
    return failures and all(e["value"] == 0 for e in found if e["metric"] == name)
