"""report.html: a self-contained page that loads nothing from the network."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from itertools import groupby
from string import Template
from typing import Any

from lcm_cli.evaluation.report.plots import Picture
from lcm_cli.evaluation.run import Evaluation
from lcm_cli.evaluation.tables import (
    ALL,
    CONCEPT_SYSTEMS,
    MEASURES,
    Measure,
    all_zero,
    measures,
    pair_name,
)

EXAMPLES = 60  # on the page, at most; examples.jsonl has all
SENTENCES = 40  # of a source that are shown, at most
TITLES = {
    "next-concept": "Next concept",
    "roundtrip": "Round trip",
    "summarize": "Summaries",
    "expand": "Expansion",
    "translate": "Translation",
    "speech": "Speech",
}
Result = dict[str, Any]


def render(evaluation: Evaluation, pictures: Sequence[Picture]) -> str:
    """Return the HTML page of an evaluation with its plots."""
    tasks = evaluation.about["tasks"]
    parts = [
        _head(evaluation),
        *(_task(task, evaluation, pictures) for task in tasks),
        _examples(evaluation),
    ]
    page = resources.files("lcm_cli.evaluation.report") / "page.html"
    template = Template(page.read_text(encoding="utf-8"))
    title = f"Evaluation of {', '.join(evaluation.about['systems'])}"
    return template.substitute(title=escape(title), body="\n".join([*parts, _settings(evaluation)]))


def _head(evaluation: Evaluation) -> str:
    about = evaluation.about
    data = about["data"]
    facts = [
        f"{data['rows']} rows of {data['path']}",
        f"space {about['space']['name']} ({about['space']['fingerprint']})",
        f"seed {about['seed']}",
        f"lcm {about['version']}",
    ]
    if data.get("broken"):
        facts.append(f"{data['broken']} broken rows skipped")
    text = escape(" · ".join(facts))
    return f"<h1>{escape(', '.join(about['systems']))}</h1>\n<p class=about>{text}</p>"


def _task(task: str, evaluation: Evaluation, pictures: Sequence[Picture]) -> str:
    results = [each for each in evaluation.results if each["task"] == task]
    langs = list(dict.fromkeys(each["lang"] for each in results))
    overall = (
        [e for e in results if e["lang"] == (ALL if ALL in langs else langs[0])] if langs else []
    )
    references = [each for each in evaluation.published["rows"] if each["task"] == task]
    concept = [each for each in references if each["system"].startswith(CONCEPT_SYSTEMS)]
    parts = [f"<h2>{TITLES[task]}</h2>", _table(overall, concept, evaluation.published)]
    if len(references) > len(concept):
        table = _table(overall, references, evaluation.published)
        parts.append(f"<details><summary>With all published numbers</summary>{table}</details>")
    if len(langs) > 1:
        tables = "".join(
            f"<h3>{escape(pair_name(lang))}</h3>{_table([e for e in results if e['lang'] == lang])}"
            for lang in langs
            if lang != ALL
        )
        parts.append(f"<details class=print><summary>By language</summary>{tables}</details>")
    parts.append(_tests([each for each in evaluation.tests if each["task"] == task]))
    shown = [picture for picture in pictures if picture.name.startswith(f"{task}-")]
    parts += [_figure(picture) for picture in shown]
    if not shown:
        parts.append("<p class=note>For plots, install matplotlib: pip install 'lcm-cli[plot]'</p>")
    return "\n".join(parts)


def _table(
    results: Sequence[Result],
    references: Sequence[dict[str, Any]] = (),
    published: dict[str, Any] | None = None,
) -> str:
    shown = [m for m in measures(results) if not all_zero(results, m.name)]
    head = "".join(f"<th>{escape(_column_title(measure))}</th>" for measure in shown)
    body = []
    best = {measure.name: _best(results, measure) for measure in shown}
    for system in dict.fromkeys(each["system"] for each in results):
        cells = {each["metric"]: each for each in results if each["system"] == system}
        count = max(each["count"] for each in cells.values())
        numbers = "".join(
            _cell(cells.get(m.name), m, best[m.name] == cells.get(m.name, {}).get("value"))
            for m in shown
        )
        body.append(f"<tr><td>{escape(system)}</td><td>{count}</td>{numbers}</tr>")
    body += _published_rows(references, shown)
    note = ""
    if references and published:
        note = f" In italics: {escape(published['note'])}; {escape(published['source'])}."
    return (
        f"<div class=wide><table><thead><tr><th>system</th><th>texts</th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
        "<p class=note>In small type: half the width of the 95 % confidence interval. In bold: the "
        f"best value.{note}</p>"
    )


def _published_rows(references: Sequence[dict[str, Any]], shown: Sequence[Measure]) -> list[str]:
    rows: list[str] = []
    for each in references:
        if not {m.name for m in shown} & each["values"].keys():
            continue
        numbers = "".join(
            f"<td>{each['values'][m.name]:.{m.digits}f}</td>"
            if m.name in each["values"]
            else "<td></td>"
            for m in shown
        )
        label = escape(f"{each['system']}, {each['data']} ({each['table']})")
        kind = "published first" if not rows else "published"
        rows.append(f'<tr class="{kind}"><td>{label}</td><td></td>{numbers}</tr>')
    return rows


def _cell(result: Result | None, measure: Measure, best: bool) -> str:
    if result is None:
        return "<td></td>"
    value = f"{result['value']:.{measure.digits}f}"
    value = f"<b>{value}</b>" if best else value
    if result["low"] is None:
        return f"<td>{value}</td>"
    half = (result["high"] - result["low"]) / 2
    return f"<td>{value} <small>±{half:.{measure.digits}f}</small></td>"


def _best(results: Sequence[Result], measure: Measure) -> float | None:
    values = [each["value"] for each in results if each["metric"] == measure.name]
    if not measure.better or len(values) < 2:
        return None
    return max(values) if measure.better == "up" else min(values)


def _tests(tests: Sequence[Result]) -> str:
    if not tests:
        return ""
    labels = {measure.name: measure.label for measure in MEASURES}
    rows = "".join(
        f"<tr><td>{escape(labels[t['metric']])}</td><td class=text>{escape(t['left'])}</td>"
        f"<td class=text>{escape(t['right'])}</td><td>{t['difference']:+.3f}</td>"
        f"<td>{t['count']}</td><td>{t['p']:.4f}</td><td>{t['p_holm']:.4f}</td></tr>"
        for t in tests
    )
    return (
        "<details class=print><summary>Differences between systems</summary>"
        "<div class=wide><table><thead><tr><th>metric</th>"
        "<th class=text>first</th><th class=text>second</th><th>difference</th>"
        f"<th>texts</th><th>p</th><th>p (Holm)</th></tr></thead><tbody>{rows}</tbody></table></div>"
        "<p class=note>The mean difference (first − second) over the texts that both systems have "
        "scores for; p by two-sided paired approximate randomization; Holm: corrected for the "
        "number of comparisons.</p></details>"
    )


def _figure(picture: Picture) -> str:
    return f"<figure>{picture.svg}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def _examples(evaluation: Evaluation) -> str:
    def key(record: dict[str, Any]) -> tuple[Any, ...]:
        return evaluation.about["tasks"].index(record["task"]), record["row"], record["to"]

    groups = [list(group) for _, group in groupby(sorted(evaluation.records, key=key), key=key)]
    shown = _first_of_each_task(groups, evaluation.about["tasks"])
    options = "".join(f"<option value={t}>{TITLES[t]}</option>" for t in evaluation.about["tasks"])
    controls = (
        f"<div class=controls><select id=task aria-label=Task><option value=''>all tasks</option>"
        f"{options}</select><input id=find type=search placeholder='search the examples' "
        "aria-label='Search the examples'><span id=count class=note></span></div>"
    )
    note = f"<p class=note>{len(shown)} of {len(groups)}; all of them are in examples.jsonl.</p>"
    return "\n".join(["<h2>Examples</h2>", note, controls, *(_example(group) for group in shown)])


def _first_of_each_task(groups: Sequence[list[Any]], tasks: Sequence[str]) -> list[list[Any]]:
    """Return the first examples of each task, equally many of each and at most EXAMPLES in all."""
    per_task = max(1, EXAMPLES // max(1, len(tasks)))
    shown = []
    for task in tasks:
        shown += [group for group in groups if group[0]["task"] == task][:per_task]
    return shown


def _example(group: Sequence[dict[str, Any]]) -> str:
    """Return an example with the predictions of all systems, the records in `group`."""
    first = group[0]
    title = f"{first['task']} · row {first['row']} · {first['id']} · {pair_name(first['lang'])}"
    if first["to"] != first["lang"]:
        title += f" → {pair_name(first['to'])}"
    source = _sentences(first["source"], first["lang"])
    parts = [
        f"<details><summary>Source, {len(first['source'])} sentences</summary>{source}</details>"
    ]
    if first.get("target"):
        text = escape(" ".join(first["target"]))
        parts.append(f"<dt>Reference</dt><dd {_lang_attributes(first['to'])}>{text}</dd>")
    parts += [_prediction(record) for record in group]
    return (
        f'<article class=example data-task="{first["task"]}"><header>{escape(title)}</header>'
        f"<div class=body><dl>{''.join(parts)}</dl></div></article>"
    )


def _prediction(record: dict[str, Any]) -> str:
    cited = record.get("cited") or [None] * len(record["prediction"])
    text = " ".join(
        escape(sentence) + (f"<sup>[{place}]</sup>" if place else "")
        for sentence, place in zip(record["prediction"], cited, strict=True)
    )
    by_name = {measure.name: measure for measure in MEASURES}
    scores = " · ".join(
        f"{by_name[name].label} {value:.{by_name[name].digits}f}"
        for name, value in record["scores"].items()
        if name in by_name and (name != "empty" or value)
    )
    text = text or "<em>nothing</em>"
    return (
        f"<dt>{escape(record['system'])}</dt><dd {_lang_attributes(record['to'])}>{text}</dd>"
        f"<dd class=scores>{escape(scores)}</dd>"
    )


def _sentences(sentences: Sequence[str], lang: str) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences[:SENTENCES])
    hidden = len(sentences) - SENTENCES
    more = f"<p class=note>and {hidden} more</p>" if hidden > 0 else ""
    return f"<ol {_lang_attributes(lang)}>{items}</ol>{more}"


def _settings(evaluation: Evaluation) -> str:
    about = evaluation.about
    rows: list[tuple[str, str]] = [("lcm", about["version"]), ("Python", about["python"])]
    rows += about["packages"].items()
    rows += [("device", f"{about['device']}, {about['precision']}")]
    rows += [("data", _facts(about["data"]))]
    rows += [(f"system {name}", _facts(facts)) for name, facts in about["systems"].items()]
    rows += [(f"judge {name}", _facts(facts)) for name, facts in about["judges"].items()]
    for code, signatures in evaluation.signatures.items():
        rows += [(f"{name}, {code}", text) for name, text in signatures.items()]
    body = "".join(
        f"<tr><td>{escape(str(name))}</td><td class=text>{escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<h2>Settings</h2><div class=wide><table><tbody>{body}</tbody></table></div>"


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _lang_attributes(lang: str) -> str:
    return f'lang="{escape(lang.replace("_", "-"))}" dir=auto'


def _column_title(measure: Measure) -> str:
    # With a non-breaking hyphen and space, so that a narrow column does not split the label.
    label = measure.label.replace("-", "\N{NON-BREAKING HYPHEN}")
    return label + {"up": "\N{NO-BREAK SPACE}↑", "down": "\N{NO-BREAK SPACE}↓"}.get(
        measure.better, ""
    )
