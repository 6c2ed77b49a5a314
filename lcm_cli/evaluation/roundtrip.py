"""How good a space is: what survives a way to concepts and back, with and without noise, into other
languages, and whether a sentence finds its translation.

Shapes: S sentences, D concept dim.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from lcm_cli.evaluation import metrics
from lcm_cli.evaluation.rows import Row
from lcm_cli.evaluation.space_quality import xsim
from lcm_cli.evaluation.systems import System, parted
from lcm_cli.evaluation.tables import measured
from lcm_cli.evaluation.tasks import TOGETHER, Context, Record, kept, present
from lcm_cli.pipeline import prose
from lcm_cli.space.fragility import Cloud

DRAWS = 2  # of noise for each sentence's fragility
NOISE = 0.3  # share of noise (variance) for the noisy score
_NUMBER = re.compile(r"\d+")
_NAME = re.compile(r"(?<=[\w,] )[A-ZÀ-Ý]\w+")
# Words that turn a sentence into its opposite where they go or come (English: xsim++'s own).
_OPPOSITES = ("is", "is not"), ("are", "are not"), ("was", "was not"), ("can", "cannot")


def run_roundtrip(system: System, rows: Sequence[Row], context: Context) -> list[Record]:
    """Return a record for each row in its own language, and in each that it is given in."""
    cloud = _cloud(rows, context)
    found: list[Record] = []
    for start in range(0, len(rows), TOGETHER):
        part = rows[start : start + TOGETHER]
        key = ["roundtrip", system.name, system.about(), list(context.to), float(cloud.std_D.sum())]
        found += kept(key, part, context, partial(_part, system, part, cloud, context))
        context.progress(len(part))
    return found


def retrieval(system: System, rows: Sequence[Row], context: Context) -> list[dict[str, Any]]:
    """Return xsim and xsim++ of each language against the first one of the parallel texts.

    xsim (Artetxe and Schwenk 2019) is the share of texts whose translation is the nearest of all.
    For xsim++ (Chen et al. 2023) the translations are joined by false ones, which differ from them
    in a number, a name or a negation.
    """
    found: list[dict[str, Any]] = []
    codes = list(dict.fromkeys(code for row in rows for code in row.parallel))
    for code in codes[1:]:
        both = [r.parallel for r in rows if codes[0] in r.parallel and code in r.parallel]
        if len(both) < 2:
            continue
        left = context.space.concepts([texts[code] for texts in both], code)
        right_texts = [texts[codes[0]] for texts in both]
        right = context.space.concepts(right_texts, codes[0])
        false = falsified(right_texts, codes[0])
        pair = f"{code}-{codes[0]}"
        scores = {"xsim": xsim(left, right)}
        if false:
            scores["xsim_plus"] = nearest_share(
                left, right, context.space.concepts(false, codes[0])
            )
        found += [
            measured("roundtrip", system.name, pair, name, score, None, None, len(both))
            for name, score in scores.items()
        ]
    return found


def nearest_share(left_SD: np.ndarray, right_SD: np.ndarray, false: np.ndarray) -> float:
    """Return the percentage of rows that are nearer to their counterpart than to all else."""
    a_SD, b_SD = _units(left_SD), _units(np.concatenate([right_SD, false]))
    return 100 * float(((a_SD @ b_SD.T).argmax(axis=1) == np.arange(len(a_SD))).mean())


def falsified(texts: Sequence[str], lang: str) -> list[str]:
    """Return each text with another number, with another text's name, and negated (in English)."""
    names = [name for text in texts for name in _NAME.findall(text)]
    other = {one: two for one, two in pairwise([*names, *names[:1]]) if one != two}
    false = []
    for text in texts:
        false.append(_NUMBER.sub(lambda m: str(int(m[0]) + 1), text))
        false.append(_NAME.sub(lambda m: other.get(m[0], m[0]), text))
        false.append(_negated(text) if lang == "eng_Latn" else text)
    true = set(texts)
    return [text for text in dict.fromkeys(false) if text not in true]


def _negated(text: str) -> str:
    for plain, denied in _OPPOSITES:
        if re.search(rf"\b{denied}\b", text):
            return re.sub(rf"\b{denied}\b", plain, text, count=1)
        if re.search(rf"\b{plain}\b", text):
            return re.sub(rf"\b{plain}\b", denied, text, count=1)
    return text


def _cloud(rows: Sequence[Row], context: Context) -> Cloud:
    sentences = [sentence for row in rows for sentence in row.source]
    codes = [row.lang for row in rows for _ in row.source]
    concepts_SD = context.space.encode(sentences, codes).concepts
    return Cloud(concepts_SD.mean(axis=0), concepts_SD.std(axis=0))


def _part(system: System, rows: Sequence[Row], cloud: Cloud, context: Context) -> list[Record]:
    own = _records(system, rows, "", [row.source for row in rows], context)
    for record, scores in zip(own, _shaken(rows, cloud, context), strict=True):
        record["scores"] |= present(scores)
    others = context.to or dict.fromkeys(code for row in rows for code in row.parallel)
    for to in others:
        some = [row for row in rows if to in row.parallel and to != row.lang]
        own += _records(system, some, to, [[row.parallel[to]] for row in some], context)
    return own


def _records(
    system: System,
    rows: Sequence[Row],
    to: str,
    targets: Sequence[Sequence[str]],
    context: Context,
) -> list[Record]:
    answers = system.write(rows, to, "roundtrip", context.space)
    return [
        _record(system, row, to or row.lang, target, list(answer.sentences), context)
        for row, target, answer in zip(rows, targets, answers, strict=True)
    ]


def _record(
    system: System, row: Row, to: str, target: Sequence[str], said: list[str], context: Context
) -> Record:
    pairs = zip(said, target, strict=True) if len(said) == len(target) else ()
    whole = [(prose(said, to), prose(target, to))]
    chrf = [metrics.sentence_chrf(a, b) for a, b in pairs or whole]
    concepts_SD = context.space.concepts(row.source, row.lang)
    again_SD = context.space.concepts(said, to)
    scores = {
        "chrf": float(np.mean(chrf)),
        "similarity": float((_units(concepts_SD) * _units(again_SD)).sum(axis=1).mean()),
        "language_match": metrics.language_match(whole[0][0], to, context.space.languages),
    }
    return {
        "task": "roundtrip",
        "system": system.name,
        "row": row.number,
        "id": row.id,
        "lang": row.lang,
        "to": to,
        "source": list(row.source),
        "target": list(target),
        "prediction": said,
        "scores": present(scores),
    }


def _shaken(rows: Sequence[Row], cloud: Cloud, context: Context) -> Iterator[dict[str, float]]:
    """Decode with noise: at a fixed level, and at random ones for the fragility (paper 2.5.2).

    x_(a,e) = mean + sqrt(1 - a) (x - mean) + sqrt(a) e, e with the spread of the data; fragility is
    the negative mean of the score between what should and what does come out, for a of U(0, 1). The
    score here is chrF / 100, where the paper has BLEU: short sentences need it.
    """
    rngs = [np.random.default_rng([context.seed, row.number]) for row in rows]
    noisy = _noised(rows, cloud, rngs, lambda rng, count: np.full((count, 1), NOISE), context)
    draws = [
        _noised(rows, cloud, rngs, lambda rng, count: rng.uniform(size=(count, 1)), context)
        for _ in range(DRAWS)
    ]
    for score, *others in zip(noisy, *draws, strict=True):
        yield {"noisy_chrf": score, "fragility": -float(np.mean(others)) / 100}


def _noised(
    rows: Sequence[Row],
    cloud: Cloud,
    rngs: Sequence[np.random.Generator],
    share: Callable[[np.random.Generator, int], np.ndarray],
    context: Context,
) -> list[float]:
    """Return the mean chrF of each row's sentences after noise; all are decoded together."""
    mixed = []
    for row, rng in zip(rows, rngs, strict=True):
        x_SD = context.space.concepts(row.source, row.lang)
        share_S1 = share(rng, len(x_SD))
        mixed.append(cloud.noised(x_SD, share_S1, rng.standard_normal(x_SD.shape)))
    true = [sentence for row in rows for sentence in row.source]
    codes = [row.lang for row in rows for _ in row.source]
    said = context.space.texts(np.concatenate(mixed), codes, true, codes)
    scores = [metrics.sentence_chrf(a, b) for a, b in zip(said, true, strict=True)]
    return [float(np.mean(part)) for part in parted(scores, [len(row.source) for row in rows])]


def _units(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units: np.ndarray = rows / np.maximum(lengths, 1e-12)
    return units
