"""The tasks: what is asked of a system for each row, and how the answer is scored.

Every answer becomes a record, a dict that is a line of examples.jsonl; scores that do not exist
are left out of it.

Shapes: B documents, S sentences, D concept dim, N predictions.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lcm_cli.errors import LcmError
from lcm_cli.evaluation import metrics
from lcm_cli.evaluation.resume import Work
from lcm_cli.evaluation.rows import Row, swapped
from lcm_cli.evaluation.space_cache import SharedSpace
from lcm_cli.evaluation.systems import Prediction, System, parted
from lcm_cli.pipeline import prose
from lcm_cli.progress import Progress
from lcm_cli.writing.refusal import refuse

if TYPE_CHECKING:
    from torch import Tensor

    from lcm_cli.evaluation.judges import Judge, LanguageModel

Record = dict[str, Any]

TOGETHER = 32  # rows that are worked on at once; CA compares the documents among them
LONGEST = 128  # concepts of a document for next-concept, as in the paper
NEXT_CONCEPT = ("l2", "l2_r", "par", "ca", "ca_all")
PICTURED = 3  # rows of which there are a heat map or a map


@dataclass
class Context:
    """What all tasks of a run need."""

    space: SharedSpace
    work: Work
    to: tuple[str, ...] = ()
    seed: int = 0
    judges: "Mapping[str, Judge]" = field(default_factory=dict)
    lm: "LanguageModel | None" = None
    on_error: Callable[[LcmError], None] = lambda error: None
    progress: Progress = lambda rows: None
    longest: int = LONGEST


def run_task(task: str, system: System, rows: Sequence[Row], context: Context) -> list[Record]:
    """Return the records of a task. A row that a system fails on is reported and left out."""
    if task == "expand":
        rows = [turned for row in rows if (turned := swapped(row))]
    found: list[Record] = []
    for start in range(0, len(rows), TOGETHER):
        part = rows[start : start + TOGETHER]
        if task == "next-concept":
            found += _predicted(system, part, context)
        else:
            for to in _languages(task, part, context):
                found += _written(task, system, part, to, context)
        context.progress(len(part))
    return found


def _languages(task: str, rows: Sequence[Row], context: Context) -> Sequence[str]:
    """Return the languages to write in; "" is each row's own."""
    if task == "translate" and not context.to:
        return list(dict.fromkeys(code for row in rows for code in row.parallel)) or [""]
    return context.to or ("",)


def _written(
    task: str, system: System, rows: Sequence[Row], to: str, context: Context
) -> list[Record]:
    if task == "translate":  # into its own language is no translation
        rows = [row for row in rows if (to or row.target_lang) not in ("", row.lang)]
    key = [task, system.name, system.about(), to, context.space.fingerprint, list(context.judges)]
    try:
        return kept(key, rows, context, lambda: _write(task, system, rows, to, context))
    except LcmError as error:
        if len(rows) > 1:  # find out which it is; the others go on
            return [r for row in rows for r in _written(task, system, [row], to, context)]
        context.on_error(_failed(system, task, rows[0], error))
        return []


def kept(
    key: list[Any], rows: Sequence[Row], context: Context, compute: Callable[[], list[Record]]
) -> list[Record]:
    if not rows:
        return []
    content = [
        [r.number, r.lang, r.source, r.target, r.target_lang, dict(r.parallel)] for r in rows
    ]
    found: list[Record] = context.work.remember([*key, context.seed, content], compute)
    return found


def _failed(system: System, task: str, row: Row, error: LcmError) -> LcmError:
    return type(error)(f"row {row.number}: {system.name}, {task}: {error.message}", error.hint)


def _write(
    task: str, system: System, rows: Sequence[Row], to: str, context: Context
) -> list[Record]:
    codes = [to or (row.target_lang if task == "translate" else row.lang) for row in rows]
    if task == "translate" and not to:  # each into the language of its reference
        answers = [
            system.write([r], code, task, context.space)[0]
            for r, code in zip(rows, codes, strict=True)
        ]
    else:
        answers = system.write(rows, to, task, context.space)
    records = [
        _record(task, system, row, code, answer, context)
        for row, code, answer in zip(rows, codes, answers, strict=True)
    ]
    for name, judge in context.judges.items():
        scores = judge.score(records)
        for record, score in zip(records, scores, strict=True):
            if score == score:
                record["scores"][name] = score
    return records


def _record(
    task: str, system: System, row: Row, to: str, answer: Prediction, context: Context
) -> Record:
    from lcm_cli.writing.answer_model import THRESHOLDS

    target = _reference(row, to)
    source, said = prose(row.source, row.lang), prose(answer.sentences, to)
    record = {
        "task": task,
        "system": system.name,
        "row": row.number,
        "id": row.id,
        "lang": row.lang,
        "to": to,
        "source": list(row.source),
        "target": list(target),
        "prediction": list(answer.sentences),
        "cited": None if answer.cited is None else [place + 1 for place in answer.cited],
    }
    scores = dict(_reference_scores(task, answer.sentences, target, to))
    if to == row.lang:
        scores["ovl3"] = metrics.overlap(said, source)
        scores["ovl_lcm"] = metrics.overlap_lcm(said, source)
    scores["rep4"] = metrics.repetition(said)
    scores["rep_lcm"] = metrics.repetition_lcm(said)
    scores["word_ratio"] = metrics.word_ratio(said, source)
    scores["language_match"] = metrics.language_match(said, to, context.space.languages)
    scores["empty"] = float(not said.strip())
    source_SD = context.space.concepts(row.source, row.lang)
    said_PD = context.space.concepts(answer.sentences, to)
    scores["source_coverage"] = metrics.source_coverage(said_PD, source_SD)
    scores["coherence"] = metrics.local_coherence(said_PD)
    if task in ("summarize", "expand"):
        reason = refuse({to: answer.sentences}, said_PD, source_SD, THRESHOLDS[task])
        scores["refused"] = float(reason is not None)
    if answer.cited is not None:
        precision = metrics.citation_precision(said_PD, source_SD, answer.cited)
        scores["citation_precision"] = precision
    if row.number <= PICTURED and task in ("summarize", "expand"):
        record["map"] = _map(source_SD, said_PD)
    return record | {"scores": present(scores)}


def _reference(row: Row, to: str) -> Sequence[str]:
    if row.target and to == row.target_lang:
        return row.target
    return [row.parallel[to]] if to in row.parallel else ()


def _reference_scores(
    task: str, said: Sequence[str], target: Sequence[str], to: str
) -> Iterator[tuple[str, float]]:
    if not target:
        return
    yield "chrf", metrics.sentence_chrf(prose(said, to), prose(target, to))
    if task in ("summarize", "expand"):
        yield from metrics.rouge(said, target, to).items()


def present(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(score), 6) for name, score in scores.items() if score == score}


def _map(source_SD: np.ndarray, said_PD: np.ndarray) -> dict[str, list[list[float]]]:
    """Return the concepts' places on the plane in which the source spreads most (PCA)."""
    centre_D = source_SD.mean(axis=0)
    _, _, axes_DD = np.linalg.svd(source_SD - centre_D, full_matrices=False)
    axes_2D = axes_DD[:2]
    # A principal axis has no direction of its own: the largest part is made positive.
    axes_2D = (
        axes_2D * np.sign(axes_2D[np.arange(len(axes_2D)), np.abs(axes_2D).argmax(axis=1)])[:, None]
    )
    flat = [((x_SD - centre_D) @ axes_2D.T).astype(float) for x_SD in (source_SD, said_PD)]
    flat = [np.pad(x, ((0, 0), (0, 2 - x.shape[1]))) for x in flat]
    return {"source": flat[0].round(4).tolist(), "prediction": flat[1].round(4).tolist()}


def _predicted(system: System, rows: Sequence[Row], context: Context) -> list[Record]:
    rows = [row for row in rows if len(row.source) > 1]
    lm = context.lm.name if context.lm else ""
    key = ["next-concept", system.name, system.about(), context.space.fingerprint, lm]
    key += [context.longest, [list(row.paragraphs) for row in rows]]
    return kept(key, rows, context, lambda: _predict(system, rows, context))


def _predict(system: System, rows: Sequence[Row], context: Context) -> list[Record]:
    """Predict every sentence of each row from the true ones before it, and score that."""
    import torch

    from lcm_cli.evaluation.next_concept import of_sentences, score_predictions

    texts = [row.source[: context.longest] for row in rows]
    concepts = [context.space.concepts(t, row.lang) for t, row in zip(texts, rows, strict=True)]
    batch = system.batch(concepts, rows, context.space)
    with torch.inference_mode():
        predicted_BSD = system.predict(batch, [context.seed + row.number for row in rows]).cpu()
    predicted_BSD, batch = of_sentences(predicted_BSD, batch)
    counts = [len(text) - 1 for text in texts]
    guesses = [predicted_BSD[i, :count].float().numpy() for i, count in enumerate(counts)]
    codes = [row.lang for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    true = [sentence for text in texts for sentence in text[1:]]
    flat = context.space.texts(np.concatenate(guesses), codes, true, codes)

    def reconstruct(_: "Tensor") -> "Tensor":
        return torch.from_numpy(context.space.encode(flat, codes).concepts)

    scores = score_predictions(predicted_BSD, batch, reconstruct)
    by_name = {name: parted(getattr(scores, name).tolist(), counts) for name in NEXT_CONCEPT}
    said = parted(flat, counts)
    records = []
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        found = {name: _mean(values[i]) for name, values in by_name.items()}
        record = {
            "task": "next-concept",
            "system": system.name,
            "row": row.number,
            "id": row.id,
            "lang": row.lang,
            "to": row.lang,
            "source": list(text),
            "prediction": list(said[i]),
        }
        if context.lm:
            found["mi"] = context.lm.mutual_information(text, said[i])
        if row.number <= PICTURED:
            record["similarity"] = _similarity(guesses[i], concepts[i])
        records.append(record | {"scores": present(found)})
    return records


def _similarity(guess_SD: np.ndarray, true_SD: np.ndarray) -> list[list[float]]:
    """Return the cosine of each prediction to each true concept of the document."""
    units = [
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (guess_SD, true_SD)
    ]
    cosines: list[list[float]] = (units[0] @ units[1].T).astype(float).round(3).tolist()
    return cosines


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if value == value]
    return sum(present) / len(present) if present else math.nan
