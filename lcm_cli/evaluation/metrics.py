"""Scores of one text, or of many, that need no model. Every function is pure.

ROUGE, chrF and BLEU run from 0 to 100, everything else is a share (or a ratio) from 0 up. A score
that does not exist (no reference, no n-gram to count) is NaN, and never counts in a mean.

Shapes: P sentences of the prediction, S sentences of the source, D concept dim.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from lcm_cli.errors import UsageError
from lcm_cli.space.similarity import cosines, unit_length
from lcm_cli.text.bleu import bleu_metric, bleu_tokenizer
from lcm_cli.text.length import count_words
from lcm_cli.text.words import WordTokenizer, words

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
NAN = math.nan


def rouge(prediction: Sequence[str], target: Sequence[str], lang: str) -> dict[str, float]:
    """Return the F-measures of ROUGE-1, -2, -L and -Lsum (Lin 2004), by rouge-score.

    Both texts are given by sentences: -Lsum compares these. English has rouge-score's own
    tokenization, without a stemmer, as in the paper; other languages have that of tokens.py.
    Raises UsageError where rouge-score is not installed.
    """
    english = lang == "eng_Latn"
    joined = "\n".join(target)
    if not (words(joined) if not english else _ascii_words(joined)):
        return dict.fromkeys(ROUGE, NAN)
    scores = _rouge_scorer(english).score(joined, "\n".join(prediction))
    return {name: 100 * float(scores[name].fmeasure) for name in ROUGE}


@cache
def _rouge_scorer(english: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        message = f"ROUGE needs the package rouge-score: {error}"
        raise UsageError(message, "pip install 'lcm-cli[eval]'") from error
    return RougeScorer(ROUGE, use_stemmer=False, tokenizer=None if english else WordTokenizer())


def _ascii_words(text: str) -> bool:
    return any(c.isascii() and c.isalnum() for c in text)


def chrf(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Return corpus chrF2 (Popović 2015), by sacrebleu; NaN for an empty corpus."""
    return _corpus(_chrf(), predictions, targets)[0]


def bleu(predictions: Sequence[str], targets: Sequence[str], lang: str) -> float:
    """Return corpus BLEU (Papineni et al. 2002), by sacrebleu; NaN for an empty corpus."""
    return _corpus(bleu_metric(bleu_tokenizer(lang)), predictions, targets)[0]


def sentence_chrf(prediction: str, target: str) -> float:
    """Return chrF2 of one text; NaN without a reference."""
    return float(_chrf().sentence_score(prediction, [target]).score) if target.strip() else NAN


def corpus_scores(
    predictions: Sequence[str], targets: Sequence[str], lang: str, samples: int = 1000
) -> dict[str, tuple[float, float, float]]:
    """Return chrF and BLEU with the ends of their confidence intervals (95 %).

    The intervals are sacrebleu's, by bootstrap resampling of the texts (Koehn 2004).
    """
    metrics = {"chrf": _chrf(), "bleu": bleu_metric(bleu_tokenizer(lang))}
    return {name: _corpus(m, predictions, targets, samples) for name, m in metrics.items()}


def signatures(lang: str) -> dict[str, str]:
    """Return sacrebleu's signatures of chrF and BLEU, which tell how the numbers were made."""
    metrics = {"chrf": _chrf(), "bleu": bleu_metric(bleu_tokenizer(lang))}
    for metric in metrics.values():  # the number of references is known after a score only
        metric.corpus_score(["a"], [["a"]])
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}


def _corpus(
    metric: Any, predictions: Sequence[str], targets: Sequence[str], samples: int = 0
) -> tuple[float, float, float]:
    if not predictions:
        return NAN, NAN, NAN
    several = samples if len(predictions) > 1 else 0
    score = metric.corpus_score(list(predictions), [list(targets)], n_bootstrap=several or 1)
    value = float(score.score)
    if not several:
        return value, NAN, NAN
    # sacrebleu centres its interval on the mean of the samples.
    mean, half = float(score._mean), float(score._ci)
    return value, mean - half, mean + half


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def overlap(prediction: str, source: str, n: int = 3) -> float:
    """Return the share of the source's different word n-grams that the prediction has: OVL-n."""
    wanted = set(_ngrams(words(source), n))
    return len(wanted & set(_ngrams(words(prediction), n))) / len(wanted) if wanted else NAN


def repetition(prediction: str, n: int = 4) -> float:
    """Return the share of the prediction's word n-grams that were there before: REP-n.

    This is seq-rep-n of Welleck et al. (2019), 1 - different / all.
    """
    found = _ngrams(words(prediction), n)
    return 1 - len(set(found)) / len(found) if found else NAN


def overlap_lcm(prediction: str, source: str) -> float:
    """Return what the official code computes for OVL-3: `overlap` of character 1- to 4-grams.

    The paper's numbers fit this, not its description.
    """
    wanted = set(_character_grams(source))
    return len(wanted & set(_character_grams(prediction))) / max(1, len(wanted))


def repetition_lcm(prediction: str) -> float:
    """Return what the official code computes for REP-4: all / different - 1 of character 1- to
    4-grams. It grows with the length of the text, and can exceed 1."""
    found = _character_grams(prediction)
    return len(found) / max(1, len(set(found))) - 1


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def _character_grams(text: str) -> list[str]:
    return [text[i : i + n] for n in range(1, 5) for i in range(len(text) - n + 1)]


def word_ratio(prediction: str, source: str) -> float:
    """Return how many words the prediction has for each one of the source."""
    count = count_words(source)
    return count_words(prediction) / count if count else NAN


def language_match(prediction: str, lang: str, within: Sequence[str]) -> float:
    """Return 1 if `lang` is the likeliest language of the prediction, else 0.

    `within` are the codes that may be told apart, those of a space. A text without letters is in no
    language.
    """
    from lcm_cli.text.detect import rank_languages, sample_text

    text = sample_text(prediction)
    if not any(map(str.isalpha, text)):
        return 0.0
    return float(rank_languages(text, within)[0][0] == lang)


def source_coverage(prediction_PD: np.ndarray, source_SD: np.ndarray) -> float:
    """Return how well the source is covered: for each of its sentences the greatest cosine to a
    sentence of the prediction, on average."""
    if not len(source_SD):
        return NAN
    if not len(prediction_PD):
        return 0.0
    return float(cosines(prediction_PD, source_SD).max(axis=0).mean())


def citation_precision(
    prediction_PD: np.ndarray, source_SD: np.ndarray, cited_P: Sequence[int]
) -> float:
    """Return the share of sentences that no sentence of the source is nearer to than the cited one.

    `cited_P` are places in the source, from 0. The concepts are those of the text as printed, so
    that a sentence which came out as something else does not count.
    """
    if not len(prediction_PD):
        return NAN
    near_PS = cosines(prediction_PD, source_SD)
    own_P = near_PS[np.arange(len(cited_P)), list(cited_P)]
    return float((own_P >= near_PS.max(axis=1) - 1e-6).mean())


def local_coherence(concepts_SD: np.ndarray) -> float:
    """Return the mean cosine of sentences n and n + 2 (paper 3.1.1; Parola et al. 2023)."""
    if len(concepts_SD) < 3:
        return NAN
    units_SD = unit_length(concepts_SD)
    return float((units_SD[:-2] * units_SD[2:]).sum(axis=1).mean())
