"""The plots of a report, drawn by matplotlib as SVG for the page and as PNG.

Without matplotlib there are no plots. The same results give the same bytes.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lcm_cli.evaluation.run import Evaluation
from lcm_cli.evaluation.tables import ALL, MEASURES, Measure, pair_name
from lcm_cli.text.length import count_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0b6e99", "#d1701f", "#5b8c3a", "#8a4f9e", "#b03a48", "#6b6b6b", "#c2a01b", "#3f9c8f")
BARS = {  # the metrics to compare across languages: the first one in the results is drawn
    "next-concept": ("ca", "l2"),
    "roundtrip": ("chrf",),
    "summarize": ("rougeL", "source_coverage"),
    "expand": ("rougeL", "source_coverage"),
    "translate": ("chrf", "similarity"),
    "speech": ("chrf",),
}
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font and searchable
    "svg.hashsalt": "lcm",  # makes ids the same in every run
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
MAX_LANGUAGES = 12  # in one plot


@dataclass(frozen=True)
class Picture:
    """A plot in both formats, with its caption."""

    name: str  # of the file, without suffix
    caption: str
    svg: str
    png: bytes


def draw(evaluation: Evaluation) -> list[Picture]:
    """Return the plots of an evaluation, none if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return []
    with matplotlib.rc_context(STYLE):
        return [_picture(name, caption, figure) for name, caption, figure in _figures(evaluation)]


def _figures(evaluation: Evaluation) -> Iterator[tuple[str, str, "Figure"]]:
    for task in evaluation.about["tasks"]:
        results = [each for each in evaluation.results if each["task"] == task]
        records = [each for each in evaluation.records if each["task"] == task]
        names = {each["metric"] for each in results}
        for metric in [name for name in BARS[task] if name in names][:1]:
            measure = next(m for m in MEASURES if m.name == metric)
            yield f"{task}-languages", f"{measure.label} by language", _bars(results, measure)
            yield (
                f"{task}-length",
                f"{measure.label} of each text against its length",
                _lengths(records, measure),
            )
        pictured = [each for each in records if "similarity" in each]
        if pictured:
            caption = (
                "Cosine of each predicted concept (row) to each sentence of the document (column). "
                "The sentence to predict is outlined."
            )
            yield f"{task}-heat", caption, _heat_maps(pictured)
        mapped = [each for each in records if "map" in each]
        if mapped:
            caption = (
                "The concepts of a document (grey, joined in order) and of the predictions "
                "(coloured), projected onto the document's first two principal components."
            )
            yield f"{task}-map", caption, _maps(mapped)


def _picture(name: str, caption: str, figure: "Figure") -> Picture:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    text = svg.getvalue()
    # An id must be unique on the page, and matplotlib repeats ids in every SVG.
    text = text[text.index("<svg") :].replace('id="', f'id="{name}-')
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    return Picture(name, caption, text, png.getvalue())


def _new_figure(
    width: float, height: float, columns: int = 1, rows: int = 1
) -> tuple["Figure", Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot, which keeps global state and may look for a display.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _colours(systems: Sequence[str]) -> dict[str, str]:
    return {system: COLOURS[i % len(COLOURS)] for i, system in enumerate(systems)}


def _systems(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(each["system"] for each in results))


def _bars(results: Sequence[dict[str, Any]], measure: Measure) -> "Figure":
    own = [each for each in results if each["metric"] == measure.name]
    langs = list(dict.fromkeys(each["lang"] for each in own))
    overall = [lang for lang in langs if lang == ALL]
    langs = [lang for lang in langs if lang != ALL][:MAX_LANGUAGES] + overall
    systems = _systems(own)
    figure, axes = _new_figure(7.2, 0.5 + 0.22 * (len(systems) + 1) * len(langs) + 0.5)
    axis, thick = axes[0, 0], 0.8 / len(systems)
    for number, (system, colour) in enumerate(_colours(systems).items()):
        cells = {each["lang"]: each for each in own if each["system"] == system}
        places = [i for i, lang in enumerate(langs) if lang in cells]
        values = [cells[langs[i]]["value"] for i in places]
        ends = [[_end(cells[langs[i]], side) for i in places] for side in ("low", "high")]
        # Bootstrap intervals need not contain the value, and matplotlib refuses negative widths.
        widths = [
            np.maximum(np.subtract(values, ends[0]), 0),
            np.maximum(np.subtract(ends[1], values), 0),
        ]
        heights = [i + (number - (len(systems) - 1) / 2) * thick for i in places]
        axis.barh(
            heights,
            values,
            0.9 * thick,
            color=colour,
            label=system,
            xerr=widths,
            ecolor="#333333",
            error_kw={"elinewidth": 0.8},
        )
    axis.set_yticks(range(len(langs)), [pair_name(lang) for lang in langs])
    axis.invert_yaxis()
    axis.set_xlabel(measure.label + _direction(measure))
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _lengths(records: Sequence[dict[str, Any]], measure: Measure) -> "Figure":
    figure, axes = _new_figure(7.2, 3.6)
    axis = axes[0, 0]
    for system, colour in _colours(_systems(records)).items():
        own = [r for r in records if r["system"] == system and measure.name in r["scores"]]
        words = [count_words(" ".join(r["source"])) for r in own]
        axis.scatter(
            words,
            [r["scores"][measure.name] for r in own],
            s=16,
            color=colour,
            alpha=0.7,
            linewidths=0,
            label=system,
        )
    axis.set_xlabel("words in the source")
    axis.set_ylabel(measure.label + _direction(measure))
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _heat_maps(records: Sequence[dict[str, Any]]) -> "Figure":
    from matplotlib.patches import Rectangle

    first = records[0]["row"]
    shown = [r for r in records if r["row"] == first]  # one for each system
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = _new_figure(3.2 * columns + 0.6, 3.3 * rows, columns, rows)
    for axis, record in zip(axes.flat, shown, strict=False):
        cosines = np.array(record["similarity"])
        image = axis.imshow(cosines, vmin=-0.2, vmax=1, cmap="viridis", aspect="auto")
        for i in range(len(cosines)):  # prediction i is of sentence i + 1
            axis.add_patch(Rectangle((i + 0.5, i - 0.5), 1, 1, fill=False, ec="white", lw=1))
        axis.set_title(record["system"], fontsize=10)
        axis.set_xlabel("sentence")
        axis.set_ylabel("predicted sentence")
        step = max(1, cosines.shape[1] // 8)
        axis.set_xticks(range(0, cosines.shape[1], step), range(1, cosines.shape[1] + 1, step))
        axis.set_yticks(range(0, len(cosines), step), range(2, len(cosines) + 2, step))
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    return figure


def _maps(records: Sequence[dict[str, Any]]) -> "Figure":
    first = records[0]
    shown = [r for r in records if (r["row"], r["to"]) == (first["row"], first["to"])]
    figure, axes = _new_figure(7.2, 4)
    axis = axes[0, 0]
    x, y = np.array(first["map"]["source"]).T
    axis.plot(x, y, "-", color="#cccccc", lw=0.8, zorder=1)
    axis.scatter(x, y, s=22, color="#888888", zorder=2, linewidths=0, label="the document")
    for i in range(len(x)):
        axis.annotate(
            str(i + 1),
            (x[i], y[i]),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=7,
            color="#555555",
        )
    marks = "osD^vP*X"
    for number, (system, colour) in enumerate(_colours(_systems(shown)).items()):
        record = next(r for r in shown if r["system"] == system)
        if not record["map"]["prediction"]:
            continue
        x, y = np.array(record["map"]["prediction"]).T
        size = 60 + 30 * number  # outlines of growing size stay visible where systems agree
        axis.scatter(
            x,
            y,
            s=size,
            facecolors="none",
            edgecolors=colour,
            marker=marks[number % len(marks)],
            linewidths=1.6,
            zorder=3,
            label=system,
        )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _end(result: dict[str, Any], side: str) -> float:
    value = result[side]
    return float(result["value"] if value is None else value)


def _direction(measure: Measure) -> str:
    return {"up": " (higher is better)", "down": " (lower is better)"}.get(measure.better, "")
