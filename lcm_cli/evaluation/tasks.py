"""The tasks: run a system on each example and score its prediction.

Every prediction becomes a record, a dict that is one line of examples.jsonl. A score that is NaN is
left out of the record.

Shapes: B documents, S sentences of the source, P sentences of the prediction, D concept dim.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from lcm_cli.errors import LcmError
from lcm_cli.evaluation import metrics
from lcm_cli.evaluation.examples import Example, swapped
from lcm_cli.evaluation.resume import Work
from lcm_cli.evaluation.space_cache import SharedSpace
from lcm_cli.evaluation.systems import Prediction, System, split_by_counts
from lcm_cli.pipeline import prose
from lcm_cli.progress import Progress
from lcm_cli.space.similarity import cosines
from lcm_cli.writing.refusal import refuse

if TYPE_CHECKING:
    from torch import Tensor

    from lcm_cli.evaluation.judges import Judge, LanguageModel
    from lcm_cli.models.interface import Batch

Record = dict[str, Any]

TOGETHER = 32  # examples in a batch; CA draws its contrasts from the documents of one batch
LONGEST = 128  # concepts of a document for next-concept (paper 2.2)
NEXT_CONCEPT = ("l2", "l2_r", "par", "ca", "ca_all")
PICTURED = 3  # rows, from the first, whose records hold the data of a heat map or a map


@dataclass
class Context:
    """The settings and resources that all tasks of a run share."""

    space: SharedSpace
    work: Work
    to: tuple[str, ...] = ()  # languages to write in; empty: that of each example
    seed: int = 0
    judges: "Mapping[str, Judge]" = field(default_factory=dict)
    lm: "LanguageModel | None" = None  # for MI
    on_error: Callable[[LcmError], None] = lambda error: None
    progress: Progress = lambda done: None  # in examples
    longest: int = LONGEST


def run_task(
    task: str, system: System, examples: Sequence[Example], context: Context
) -> list[Record]:
    """Return the records of a system's predictions for a task.

    An example on which the system raises an LcmError is passed to `context.on_error` and skipped.
    """
    if task == "expand":
        examples = [turned for example in examples if (turned := swapped(example))]
    records: list[Record] = []
    for start in range(0, len(examples), TOGETHER):
        part = examples[start : start + TOGETHER]
        if task == "next-concept":
            records += _predict_cached(system, part, context)
        else:
            for to in _languages(task, part, context):
                records += _write_cached(task, system, part, to, context)
        context.progress(len(part))
    return records


def _languages(task: str, examples: Sequence[Example], context: Context) -> Sequence[str]:
    """Return the languages to write in; "" is each example's own."""
    if task == "translate" and not context.to:
        codes = dict.fromkeys(code for example in examples for code in example.parallel)
        return list(codes) or [""]
    return context.to or ("",)


def _write_cached(
    task: str, system: System, examples: Sequence[Example], to: str, context: Context
) -> list[Record]:
    if task == "translate":  # not into the example's own language
        examples = [e for e in examples if (to or e.target_lang) not in ("", e.lang)]
    key = [task, system.name, system.about(), to, context.space.fingerprint, list(context.judges)]
    try:
        return cached_records(
            key, examples, context, lambda: _write(task, system, examples, to, context)
        )
    except LcmError as error:
        if len(examples) > 1:  # one at a time, so that only those that fail are skipped
            each = (_write_cached(task, system, [example], to, context) for example in examples)
            return list(chain.from_iterable(each))
        context.on_error(_failed(system, task, examples[0], error))
        return []


def cached_records(
    key: list[Any],
    examples: Sequence[Example],
    context: Context,
    compute: Callable[[], list[Record]],
) -> list[Record]:
    """Return `compute()`, or its stored result for the same key, seed and content of examples."""
    if not examples:
        return []
    content = [
        [e.number, e.lang, e.source, e.target, e.target_lang, dict(e.parallel)] for e in examples
    ]
    records: list[Record] = context.work.remember([*key, context.seed, content], compute)
    return records


def _failed(system: System, task: str, example: Example, error: LcmError) -> LcmError:
    return type(error)(f"row {example.number}: {system.name}, {task}: {error.message}", error.hint)


def _write(
    task: str, system: System, examples: Sequence[Example], to: str, context: Context
) -> list[Record]:
    codes = [to or (e.target_lang if task == "translate" else e.lang) for e in examples]
    if task == "translate" and not to:  # each example into the language of its reference
        answers = [
            system.write([example], code, task, context.space)[0]
            for example, code in zip(examples, codes, strict=True)
        ]
    else:
        answers = system.write(examples, to, task, context.space)
    records = [
        _record(task, system, example, code, answer, context)
        for example, code, answer in zip(examples, codes, answers, strict=True)
    ]
    for name, judge in context.judges.items():
        scores = judge.score(records)
        for record, score in zip(records, scores, strict=True):
            if score == score:  # not NaN
                record["scores"][name] = score
    return records


def _record(
    task: str, system: System, example: Example, to: str, answer: Prediction, context: Context
) -> Record:
    target = _reference(example, to)
    source_SD = context.space.concepts(example.source, example.lang)
    # The concepts of the text as printed, not those that the system decoded it from.
    prediction_PD = context.space.concepts(answer.sentences, to)
    record = record_head(task, system, example, to) | {
        "source": list(example.source),
        "target": list(target),
        "prediction": list(answer.sentences),
        "cited": None if answer.cited is None else [place + 1 for place in answer.cited],
    }
    if example.number <= PICTURED and task in ("summarize", "expand"):
        record["map"] = _map(source_SD, prediction_PD)
    scores = dict(_reference_scores(task, answer.sentences, target, to))
    scores |= _text_scores(example, to, answer, context)
    scores |= _concept_scores(task, to, answer, source_SD, prediction_PD)
    return record | {"scores": present(scores)}


def record_head(task: str, system: System, example: Example, to: str) -> Record:
    """Return the fields that identify a record: task, system, row and languages."""
    return {
        "task": task,
        "system": system.name,
        "row": example.number,
        "id": example.id,
        "lang": example.lang,
        "to": to,
    }


def _text_scores(
    example: Example, to: str, answer: Prediction, context: Context
) -> dict[str, float]:
    """Return the scores that need the texts of source and prediction."""
    source, prediction = prose(example.source, example.lang), prose(answer.sentences, to)
    scores = {}
    if to == example.lang:  # n-grams of two languages do not overlap
        scores["ovl3"] = metrics.overlap(prediction, source)
        scores["ovl_lcm"] = metrics.overlap_lcm(prediction, source)
    scores["rep4"] = metrics.repetition(prediction)
    scores["rep_lcm"] = metrics.repetition_lcm(prediction)
    scores["word_ratio"] = metrics.word_ratio(prediction, source)
    scores["language_match"] = metrics.language_match(prediction, to, context.space.languages)
    scores["empty"] = float(not prediction.strip())
    return scores


def _concept_scores(
    task: str, to: str, answer: Prediction, source_SD: np.ndarray, prediction_PD: np.ndarray
) -> dict[str, float]:
    """Return the scores that need the concepts of source and prediction."""
    from lcm_cli.writing.answer_model import THRESHOLDS

    scores = {
        "source_coverage": metrics.source_coverage(prediction_PD, source_SD),
        "coherence": metrics.local_coherence(prediction_PD),
    }
    if task in ("summarize", "expand"):
        reason = refuse({to: answer.sentences}, prediction_PD, source_SD, THRESHOLDS[task])
        scores["refused"] = float(reason is not None)
    if answer.cited is not None:
        precision = metrics.citation_precision(prediction_PD, source_SD, answer.cited)
        scores["citation_precision"] = precision
    return scores


def _reference(example: Example, to: str) -> Sequence[str]:
    if example.target and to == example.target_lang:
        return example.target
    return [example.parallel[to]] if to in example.parallel else ()


def _reference_scores(
    task: str, prediction: Sequence[str], target: Sequence[str], to: str
) -> Iterator[tuple[str, float]]:
    if not target:
        return
    yield "chrf", metrics.sentence_chrf(prose(prediction, to), prose(target, to))
    if task in ("summarize", "expand"):
        yield from metrics.rouge(prediction, target, to).items()


def present(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores that are not NaN, rounded to 6 digits."""
    return {name: round(float(score), 6) for name, score in scores.items() if score == score}


def _map(source_SD: np.ndarray, prediction_PD: np.ndarray) -> dict[str, list[list[float]]]:
    """Project the concepts onto the first two principal components of the source."""
    centre_D = source_SD.mean(axis=0)
    # The rows of V^T are the principal axes, the longest first.
    _, _, axes_DD = np.linalg.svd(source_SD - centre_D, full_matrices=False)
    axes_2D = axes_DD[:2]
    # The sign of a principal axis is arbitrary and varies between platforms: make its largest
    # component positive.
    axes_2D = (
        axes_2D * np.sign(axes_2D[np.arange(len(axes_2D)), np.abs(axes_2D).argmax(axis=1)])[:, None]
    )
    flat = [((x_SD - centre_D) @ axes_2D.T).astype(float) for x_SD in (source_SD, prediction_PD)]
    flat = [np.pad(x, ((0, 0), (0, 2 - x.shape[1]))) for x in flat]  # one sentence has one axis
    return {"source": flat[0].round(4).tolist(), "prediction": flat[1].round(4).tolist()}


def _predict_cached(system: System, examples: Sequence[Example], context: Context) -> list[Record]:
    examples = [example for example in examples if len(example.source) > 1]
    lm = context.lm.name if context.lm else ""
    key = ["next-concept", system.name, system.about(), context.space.fingerprint, lm]
    key += [context.longest, [list(example.paragraphs) for example in examples]]
    return cached_records(key, examples, context, lambda: _predict(system, examples, context))


def _predict(system: System, examples: Sequence[Example], context: Context) -> list[Record]:
    """Predict every sentence of each example from the true ones before it, and score them."""
    import torch

    from lcm_cli.evaluation.next_concept import score_predictions

    texts = [example.source[: context.longest] for example in examples]
    concepts = [
        context.space.concepts(t, example.lang) for t, example in zip(texts, examples, strict=True)
    ]
    predicted_BSD, batch = _predicted(system, examples, concepts, context)
    counts = [len(text) - 1 for text in texts]  # the first sentence has nothing before it
    guesses = [predicted_BSD[i, :count].float().numpy() for i, count in enumerate(counts)]
    codes = [
        example.lang for example, count in zip(examples, counts, strict=True) for _ in range(count)
    ]
    true = [sentence for text in texts for sentence in text[1:]]
    decoded = context.space.texts(np.concatenate(guesses), codes, true, codes)

    def reconstruct(_: "Tensor") -> "Tensor":
        # Its argument, the predictions in the order of `guesses`, is decoded already.
        return torch.from_numpy(context.space.encode(decoded, codes).concepts)

    scores = score_predictions(predicted_BSD, batch, reconstruct)
    by_name = {
        name: split_by_counts(getattr(scores, name).tolist(), counts) for name in NEXT_CONCEPT
    }
    predictions = split_by_counts(decoded, counts)
    records = []
    for i, (example, text) in enumerate(zip(examples, texts, strict=True)):
        means = {name: _mean(values[i]) for name, values in by_name.items()}
        record = record_head("next-concept", system, example, example.lang)
        record |= {"source": list(text), "prediction": list(predictions[i])}
        if context.lm:
            means["mi"] = context.lm.mutual_information(text, predictions[i])
        if example.number <= PICTURED:
            record["similarity"] = _similarity(guesses[i], concepts[i])
        records.append(record | {"scores": present(means)})
    return records


def _predicted(
    system: System, examples: Sequence[Example], concepts: Sequence[np.ndarray], context: Context
) -> "tuple[Tensor, Batch]":
    """Return predictions of concepts 1 .. S - 1 on the CPU, and the batch, of sentences alone.

    `concepts` are the examples', (S, D) each. Each example draws its own noise, by its number.
    """
    import torch

    from lcm_cli.evaluation.next_concept import of_sentences

    batch = system.batch(concepts, examples, context.space)
    seeds = [context.seed + example.number for example in examples]
    with torch.inference_mode():
        predicted_BSD = system.predict(batch, seeds).cpu()
    return of_sentences(predicted_BSD, batch)


def _similarity(guess_SD: np.ndarray, true_SD: np.ndarray) -> list[list[float]]:
    """Return the cosine of each prediction to each true concept of the document, (S - 1, S)."""
    similarity: list[list[float]] = cosines(guess_SD, true_SD).astype(float).round(3).tolist()
    return similarity


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    numbers = [value for value in values if value == value]
    return sum(numbers) / len(numbers) if numbers else math.nan
