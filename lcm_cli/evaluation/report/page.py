"""report.html: one page with everything in it, which asks the network for nothing."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from itertools import groupby
from string import Template
from typing import Any

from lcm_cli.evaluation.report.plots import Picture
from lcm_cli.evaluation.run import Evaluation
from lcm_cli.evaluation.tables import ALL, MEASURES, OURS, Measure, all_zero, measures
from lcm_cli.text.languages import language

EXAMPLES = 60  # that can be browsed; examples.jsonl has all
SENTENCES = 40  # of a source that are shown
TITLES = {
    "next-concept": "Next concept",
    "roundtrip": "Round trip",
    "summarize": "Summaries",
    "expand": "Expansion",
    "translate": "Translation",
}
Result = dict[str, Any]


def render(found: Evaluation, pictures: Sequence[Picture]) -> str:
    """Return the page."""
    tasks = found.about["tasks"]
    parts = [_head(found), *(_task(task, found, pictures) for task in tasks), _examples(found)]
    page = resources.files("lcm_cli.evaluation.report") / "page.html"
    template = Template(page.read_text(encoding="utf-8"))
    title = f"Evaluation of {', '.join(found.about['systems'])}"
    return template.substitute(title=escape(title), body="\n".join([*parts, _made(found)]))


def _head(found: Evaluation) -> str:
    about = found.about
    data = about["data"]
    facts = [
        f"{data['rows']} rows of {data['path']}",
        f"space {about['space']['name']} ({about['space']['fingerprint']})",
        f"seed {about['seed']}",
        f"lcm {about['version']}",
    ]
    if data.get("broken"):
        facts.append(f"{data['broken']} broken rows left out")
    text = escape(" · ".join(facts))
    return f"<h1>{escape(', '.join(about['systems']))}</h1>\n<p class=about>{text}</p>"


def _task(task: str, found: Evaluation, pictures: Sequence[Picture]) -> str:
    results = [each for each in found.results if each["task"] == task]
    langs = list(dict.fromkeys(each["lang"] for each in results))
    overall = (
        [e for e in results if e["lang"] == (ALL if ALL in langs else langs[0])] if langs else []
    )
    cards = [card for card in found.published["rows"] if card["task"] == task]
    ours = [card for card in cards if card["system"].startswith(OURS)]
    parts = [f"<h2>{TITLES[task]}</h2>", _table(overall, ours, found.published)]
    if len(cards) > len(ours):
        table = _table(overall, cards, found.published)
        parts.append(f"<details><summary>With all published numbers</summary>{table}</details>")
    if len(langs) > 1:
        tables = "".join(
            f"<h3>{escape(_named(lang))}</h3>{_table([e for e in results if e['lang'] == lang])}"
            for lang in langs
            if lang != ALL
        )
        parts.append(f"<details class=print><summary>By language</summary>{tables}</details>")
    parts.append(_tests([each for each in found.tests if each["task"] == task]))
    shown = [picture for picture in pictures if picture.name.startswith(f"{task}-")]
    parts += [_figure(picture) for picture in shown]
    if not shown:
        parts.append("<p class=note>For plots install matplotlib: pip install 'lcm-cli[plot]'</p>")
    return "\n".join(parts)


def _table(
    results: Sequence[Result],
    cards: Sequence[dict[str, Any]] = (),
    source: dict[str, Any] | None = None,
) -> str:
    shown = [m for m in measures(results) if not all_zero(results, m.name)]
    head = "".join(f"<th>{escape(_arrowed(measure))}</th>" for measure in shown)
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
    body += _published(cards, shown)
    note = ""
    if cards and source:
        note = f" In italics: {escape(source['note'])}; {escape(source['source'])}."
    return (
        f"<div class=wide><table><thead><tr><th>system</th><th>texts</th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f"<p class=note>Small: half the 95 % confidence interval. Bold: the best.{note}</p>"
    )


def _published(cards: Sequence[dict[str, Any]], shown: Sequence[Measure]) -> list[str]:
    rows: list[str] = []
    for card in cards:
        if not {m.name for m in shown} & card["values"].keys():
            continue
        numbers = "".join(
            f"<td>{card['values'][m.name]:.{m.digits}f}</td>"
            if m.name in card["values"]
            else "<td></td>"
            for m in shown
        )
        label = escape(f"{card['system']}, {card['data']} ({card['table']})")
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
        "<p class=note>Mean of first less second over the texts that both answered; p by paired "
        "approximate randomization, two-sided; Holm: corrected for the number of "
        "comparisons.</p></details>"
    )


def _figure(picture: Picture) -> str:
    return f"<figure>{picture.svg}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def _examples(found: Evaluation) -> str:
    def key(record: dict[str, Any]) -> tuple[Any, ...]:
        return found.about["tasks"].index(record["task"]), record["row"], record["to"]

    groups = [list(group) for _, group in groupby(sorted(found.records, key=key), key=key)]
    chosen = _spread(groups, found.about["tasks"])
    options = "".join(f"<option value={t}>{TITLES[t]}</option>" for t in found.about["tasks"])
    controls = (
        f"<div class=controls><select id=task aria-label=Task><option value=''>all tasks</option>"
        f"{options}</select><input id=find type=search placeholder='find a word' "
        "aria-label='Find a word'><span id=count class=note></span></div>"
    )
    note = f"<p class=note>{len(chosen)} of {len(groups)}; examples.jsonl has all of them.</p>"
    return "\n".join(["<h2>Examples</h2>", note, controls, *(_example(g) for g in chosen)])


def _spread(groups: Sequence[list[Any]], tasks: Sequence[str]) -> list[list[Any]]:
    """Return the first examples of each task, as many for each."""
    each = max(1, EXAMPLES // max(1, len(tasks)))
    chosen = []
    for task in tasks:
        chosen += [group for group in groups if group[0]["task"] == task][:each]
    return chosen


def _example(group: Sequence[dict[str, Any]]) -> str:
    first = group[0]
    where = f"{first['task']} · row {first['row']} · {first['id']} · {_named(first['lang'])}"
    if first["to"] != first["lang"]:
        where += f" → {_named(first['to'])}"
    source = _sentences(first["source"], first["lang"])
    parts = [
        f"<details><summary>Source, {len(first['source'])} sentences</summary>{source}</details>"
    ]
    if first.get("target"):
        text = escape(" ".join(first["target"]))
        parts.append(f"<dt>Reference</dt><dd {_marks(first['to'])}>{text}</dd>")
    parts += [_answer(record) for record in group]
    return (
        f'<article class=example data-task="{first["task"]}"><header>{escape(where)}</header>'
        f"<div class=body><dl>{''.join(parts)}</dl></div></article>"
    )


def _answer(record: dict[str, Any]) -> str:
    cited = record.get("cited") or [None] * len(record["prediction"])
    said = " ".join(
        escape(text) + (f"<sup>[{place}]</sup>" if place else "")
        for text, place in zip(record["prediction"], cited, strict=True)
    )
    labels = {measure.name: measure for measure in MEASURES}
    scores = " · ".join(
        f"{labels[name].label} {value:.{labels[name].digits}f}"
        for name, value in record["scores"].items()
        if name in labels and (name != "empty" or value)
    )
    said = said or "<em>nothing</em>"
    return (
        f"<dt>{escape(record['system'])}</dt><dd {_marks(record['to'])}>{said}</dd>"
        f"<dd class=scores>{escape(scores)}</dd>"
    )


def _sentences(sentences: Sequence[str], lang: str) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences[:SENTENCES])
    left = len(sentences) - SENTENCES
    more = f"<p class=note>and {left} more</p>" if left > 0 else ""
    return f"<ol {_marks(lang)}>{items}</ol>{more}"


def _made(found: Evaluation) -> str:
    about = found.about
    rows: list[tuple[str, str]] = [("lcm", about["version"]), ("Python", about["python"])]
    rows += about["packages"].items()
    rows += [("device", f"{about['device']}, {about['precision']}")]
    rows += [("data", _facts(about["data"]))]
    rows += [(f"system {name}", _facts(facts)) for name, facts in about["systems"].items()]
    rows += [(f"judge {name}", _facts(facts)) for name, facts in about["judges"].items()]
    for code, signatures in found.signatures.items():
        rows += [(f"{name}, {code}", text) for name, text in signatures.items()]
    body = "".join(
        f"<tr><td>{escape(str(name))}</td><td class=text>{escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<h2>How it was made</h2><div class=wide><table><tbody>{body}</tbody></table></div>"


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _marks(lang: str) -> str:
    return f'lang="{escape(lang.replace("_", "-"))}" dir=auto'


def _named(lang: str) -> str:
    return "all" if lang == ALL else " → ".join(language(code).name for code in lang.split("-"))


def _arrowed(measure: Measure) -> str:
    # With a hyphen and a space that do not break.
    label = measure.label.replace("-", "\N{NON-BREAKING HYPHEN}")
    return label + {"up": "\N{NO-BREAK SPACE}↑", "down": "\N{NO-BREAK SPACE}↓"}.get(
        measure.better, ""
    )
