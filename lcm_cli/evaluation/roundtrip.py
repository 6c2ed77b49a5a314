"""The task roundtrip: encode and decode text, with and without noise, also into other languages.

It also measures retrieval: whether the concept of a text is nearest to that of its translation.

Shapes: S sentences, D concept dim.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from lcm_cli.evaluation import metrics
from lcm_cli.evaluation.examples import Example
from lcm_cli.evaluation.space_quality import xsim
from lcm_cli.evaluation.systems import System, split_by_counts
from lcm_cli.evaluation.tables import measured
from lcm_cli.evaluation.tasks import (
    TOGETHER,
    Context,
    Record,
    cached_records,
    present,
    record_head,
)
from lcm_cli.pipeline import prose
from lcm_cli.space.fragility import ChannelStatistics
from lcm_cli.space.similarity import cosines, row_cosines

DRAWS = 2  # levels of noise drawn for the fragility of each sentence
NOISE = 0.3  # share of the variance that is noise, for noisy_chrf
_NUMBER = re.compile(r"\d+")
_NAME = re.compile(r"(?<=[\w,] )[A-ZÀ-Ý]\w+")  # a capitalized word that opens no sentence
# Verbs and their negations in English; exchanging them reverses the meaning, as in xsim++.
_OPPOSITES = ("is", "is not"), ("are", "are not"), ("was", "was not"), ("can", "cannot")


def run_roundtrip(system: System, examples: Sequence[Example], context: Context) -> list[Record]:
    """Return records of the examples, decoded into their own and their parallel languages.

    `context.to`, if given, selects the parallel languages.
    """
    cloud = _cloud(examples, context)
    records: list[Record] = []
    for start in range(0, len(examples), TOGETHER):
        part = examples[start : start + TOGETHER]
        # The noise depends on the spread of all examples, so stored results do, too.
        key = ["roundtrip", system.name, system.about(), list(context.to), float(cloud.std_D.sum())]
        records += cached_records(key, part, context, partial(_part, system, part, cloud, context))
        context.progress(len(part))
    return records


def retrieval(
    system: System, examples: Sequence[Example], context: Context
) -> list[dict[str, Any]]:
    """Return xsim and xsim++ of each language of the parallel texts, paired with the first one.

    xsim (Artetxe and Schwenk 2019) is the percentage of texts nearest to their translation. For
    xsim++ (Chen et al. 2023) the candidates include false translations, which differ from the true
    ones in a number, a name or a negation.
    """
    results: list[dict[str, Any]] = []
    codes = list(dict.fromkeys(code for example in examples for code in example.parallel))
    for code in codes[1:]:
        both = [r.parallel for r in examples if codes[0] in r.parallel and code in r.parallel]
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
        results += [
            measured("roundtrip", system.name, pair, name, score, None, None, len(both))
            for name, score in scores.items()
        ]
    return results


def nearest_share(left_SD: np.ndarray, right_SD: np.ndarray, false_FD: np.ndarray) -> float:
    """Return the percentage of left concepts nearest, by cosine, to the right one of the same row.

    The candidates are all right concepts and F false ones.
    """
    nearest_S = cosines(left_SD, np.concatenate([right_SD, false_FD])).argmax(axis=1)
    return 100 * float((nearest_S == np.arange(len(left_SD))).mean())


def falsified(texts: Sequence[str], lang: str) -> list[str]:
    """Return false variants of texts: another number, another text's name, or (English) negated.

    Variants that equal one of the texts, or each other, are left out.
    """
    names = [name for text in texts for name in _NAME.findall(text)]
    # Each name becomes the next one in the texts, and the last one the first.
    other = {one: two for one, two in pairwise([*names, *names[:1]]) if one != two}
    false = []
    for text in texts:
        false.append(_NUMBER.sub(lambda m: str(int(m[0]) + 1), text))
        false.append(_NAME.sub(lambda m: other.get(m[0], m[0]), text))
        false.append(_negated(text) if lang == "eng_Latn" else text)
    true = set(texts)
    return [text for text in dict.fromkeys(false) if text not in true]


def _negated(text: str) -> str:
    for plain, negation in _OPPOSITES:
        # The negation first, since it contains the plain form.
        if re.search(rf"\b{negation}\b", text):
            return re.sub(rf"\b{negation}\b", plain, text, count=1)
        if re.search(rf"\b{plain}\b", text):
            return re.sub(rf"\b{plain}\b", negation, text, count=1)
    return text


def _cloud(examples: Sequence[Example], context: Context) -> ChannelStatistics:
    sentences = [sentence for example in examples for sentence in example.source]
    codes = [example.lang for example in examples for _ in example.source]
    concepts_SD = context.space.encode(sentences, codes).concepts
    return ChannelStatistics(concepts_SD.mean(axis=0), concepts_SD.std(axis=0))


def _part(
    system: System, examples: Sequence[Example], cloud: ChannelStatistics, context: Context
) -> list[Record]:
    own = _records(system, examples, "", [example.source for example in examples], context)
    for record, scores in zip(own, _noise_scores(examples, cloud, context), strict=True):
        record["scores"] |= present(scores)
    others = context.to or dict.fromkeys(code for example in examples for code in example.parallel)
    for to in others:
        parallel = [e for e in examples if to in e.parallel and to != e.lang]
        own += _records(system, parallel, to, [[e.parallel[to]] for e in parallel], context)
    return own


def _records(
    system: System,
    examples: Sequence[Example],
    to: str,
    targets: Sequence[Sequence[str]],
    context: Context,
) -> list[Record]:
    answers = system.write(examples, to, "roundtrip", context.space)
    return [
        _record(system, example, to or example.lang, target, list(answer.sentences), context)
        for example, target, answer in zip(examples, targets, answers, strict=True)
    ]


def _record(
    system: System,
    example: Example,
    to: str,
    target: Sequence[str],
    prediction: list[str],
    context: Context,
) -> Record:
    # Sentence by sentence where they correspond; a parallel text is one string, compared whole.
    pairs = zip(prediction, target, strict=True) if len(prediction) == len(target) else ()
    whole = [(prose(prediction, to), prose(target, to))]
    chrf = [metrics.sentence_chrf(a, b) for a, b in pairs or whole]
    source_SD = context.space.concepts(example.source, example.lang)
    prediction_SD = context.space.concepts(prediction, to)
    scores = {
        "chrf": float(np.mean(chrf)),
        "similarity": float(row_cosines(source_SD, prediction_SD).mean()),
        "language_match": metrics.language_match(whole[0][0], to, context.space.languages),
    }
    return record_head("roundtrip", system, example, to) | {
        "source": list(example.source),
        "target": list(target),
        "prediction": prediction,
        "scores": present(scores),
    }


def _noise_scores(
    examples: Sequence[Example], cloud: ChannelStatistics, context: Context
) -> Iterator[dict[str, float]]:
    """Yield the scores of each example with noise in its concepts.

    For noisy_chrf the share of noise is NOISE; for fragility (paper 2.5.2, eq. 26-28) it is drawn:

        x_(a,e)   = mean + sqrt(1 - a) (x - mean) + sqrt(a) std e        a of U(0, 1), e of N(0, 1)
        fragility = -E over a, e [score(s, decode(x_(a,e)))]             from -1, robust, to 0

    The score is chrF / 100 instead of the paper's BLEU, because sentences may be short.
    """
    rngs = [np.random.default_rng([context.seed, example.number]) for example in examples]
    noisy = _noisy_chrf(
        examples, cloud, rngs, lambda rng, count: np.full((count, 1), NOISE), context
    )
    # The generators continue from the fixed level above, so that all draws are independent.
    draws = [
        _noisy_chrf(examples, cloud, rngs, lambda rng, count: rng.uniform(size=(count, 1)), context)
        for _ in range(DRAWS)
    ]
    for score, *others in zip(noisy, *draws, strict=True):
        yield {"noisy_chrf": score, "fragility": -float(np.mean(others)) / 100}


def _noisy_chrf(
    examples: Sequence[Example],
    cloud: ChannelStatistics,
    rngs: Sequence[np.random.Generator],
    share: Callable[[np.random.Generator, int], np.ndarray],
    context: Context,
) -> list[float]:
    """Return the mean chrF, 0 to 100, of each example's sentences decoded after adding noise.

    `share` draws the share of noise of each of so many sentences, (S, 1).
    """
    mixed = []
    for example, rng in zip(examples, rngs, strict=True):
        x_SD = context.space.concepts(example.source, example.lang)
        share_S1 = share(rng, len(x_SD))
        mixed.append(cloud.noised(x_SD, share_S1, rng.standard_normal(x_SD.shape)))
    true = [sentence for example in examples for sentence in example.source]
    codes = [example.lang for example in examples for _ in example.source]
    decoded = context.space.texts(np.concatenate(mixed), codes, true, codes)
    scores = [metrics.sentence_chrf(a, b) for a, b in zip(decoded, true, strict=True)]
    return [
        float(np.mean(part))
        for part in split_by_counts(scores, [len(example.source) for example in examples])
    ]
