"""Scores of texts and corpora that need no model; every function is pure.

ROUGE, chrF and BLEU range from 0 to 100. Other scores are shares from 0 to 1, cosines from -1 to 1,
or ratios, as noted. An undefined score (no reference, no n-gram to count) is NaN, and means leave
it out.

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
    """Return the F-measures of ROUGE-1, -2, -L and -Lsum (Lin 2004), 0 to 100, by rouge-score.

    Both texts are lists of sentences, which -Lsum compares. English is tokenized by rouge-score
    without a stemmer, as in the paper; other languages by `lcm_cli.text.words`. NaN if the target
    has no words. Raises UsageError if rouge-score is not installed.
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
    """Return whether rouge-score finds a word in `text`: it keeps only ASCII letters and digits."""
    return any(c.isascii() and c.isalnum() for c in text)


def chrf(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Return corpus chrF2 (Popović 2015), 0 to 100, by sacrebleu; NaN for an empty corpus."""
    return _corpus(_chrf(), predictions, targets)[0]


def bleu(predictions: Sequence[str], targets: Sequence[str], lang: str) -> float:
    """Return corpus BLEU (Papineni et al. 2002), 0 to 100, by sacrebleu; NaN for no texts."""
    return _corpus(bleu_metric(bleu_tokenizer(lang)), predictions, targets)[0]


def sentence_chrf(prediction: str, target: str) -> float:
    """Return the chrF2 of one text, 0 to 100; NaN without a reference."""
    return float(_chrf().sentence_score(prediction, [target]).score) if target.strip() else NAN


def corpus_scores(
    predictions: Sequence[str], targets: Sequence[str], lang: str, samples: int = 1000
) -> dict[str, tuple[float, float, float]]:
    """Return corpus chrF and BLEU with the lower and upper ends of their 95 % intervals.

    The intervals are sacrebleu's, by bootstrap resampling of the texts (Koehn 2004); NaN for fewer
    than two texts.
    """
    metrics = {"chrf": _chrf(), "bleu": bleu_metric(bleu_tokenizer(lang))}
    return {name: _corpus(m, predictions, targets, samples) for name, m in metrics.items()}


def signatures(lang: str) -> dict[str, str]:
    """Return sacrebleu's signatures of chrF and BLEU, which record version and settings."""
    metrics = {"chrf": _chrf(), "bleu": bleu_metric(bleu_tokenizer(lang))}
    for metric in metrics.values():  # a metric learns its number of references from a first score
        metric.corpus_score(["a"], [["a"]])
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}


def _corpus(
    metric: Any, predictions: Sequence[str], targets: Sequence[str], samples: int = 0
) -> tuple[float, float, float]:
    if not predictions:
        return NAN, NAN, NAN
    resamples = samples if len(predictions) > 1 else 0
    score = metric.corpus_score(list(predictions), [list(targets)], n_bootstrap=resamples or 1)
    value = float(score.score)
    if not resamples:
        return value, NAN, NAN
    # sacrebleu centres its interval on the mean of the resamples, not on the score itself.
    mean, half = float(score._mean), float(score._ci)
    return value, mean - half, mean + half


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def overlap(prediction: str, source: str, n: int = 3) -> float:
    """Return OVL-n (paper 3.1.1).

    This is the share of the source's distinct word n-grams that occur in the prediction, from 0 to
    1; NaN if the source has fewer than n words.
    """
    expected = set(_ngrams(words(source), n))
    return len(expected & set(_ngrams(words(prediction), n))) / len(expected) if expected else NAN


def repetition(prediction: str, n: int = 4) -> float:
    """Return REP-n (paper 3.1.1), the share of the prediction's word n-grams that repeat others.

    This is seq-rep-n of Welleck et al. (2019), 1 - distinct / all, from 0 to 1; NaN if the
    prediction has fewer than n words.
    """
    ngrams = _ngrams(words(prediction), n)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else NAN


def overlap_lcm(prediction: str, source: str) -> float:
    """Return OVL-3 as the official code computes it: `overlap` of character 1- to 4-grams, 0 to 1.

    The paper's numbers match this computation, not its description.
    """
    expected = set(_character_grams(source))
    return len(expected & set(_character_grams(prediction))) / max(1, len(expected))


def repetition_lcm(prediction: str) -> float:
    """Return REP-4 as the official code computes it: all / distinct - 1 of character 1- to 4-grams.

    It grows with the length of the text and may exceed 1; -1 for an empty text.
    """
    ngrams = _character_grams(prediction)
    return len(ngrams) / max(1, len(set(ngrams))) - 1


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def _character_grams(text: str) -> list[str]:
    return [text[i : i + n] for n in range(1, 5) for i in range(len(text) - n + 1)]


def word_ratio(prediction: str, source: str) -> float:
    """Return words of the prediction / words of the source; NaN if the source has none."""
    count = count_words(source)
    return count_words(prediction) / count if count else NAN


def language_match(prediction: str, lang: str, within: Sequence[str]) -> float:
    """Return 1 if `lang` is the most likely language of the prediction, else 0.

    `within` are the codes of the candidate languages, those of the space. A text without letters
    scores 0.
    """
    from lcm_cli.text.detect import rank_languages, sample_text

    text = sample_text(prediction)
    if not any(map(str.isalpha, text)):
        return 0.0
    return float(rank_languages(text, within)[0][0] == lang)


def source_coverage(prediction_PD: np.ndarray, source_SD: np.ndarray) -> float:
    """Return the mean, over source sentences, of the largest cosine to a predicted sentence.

    From -1 to 1; 0 for an empty prediction, NaN for an empty source.
    """
    if not len(source_SD):
        return NAN
    if not len(prediction_PD):
        return 0.0
    return float(cosines(prediction_PD, source_SD).max(axis=0).mean())


def citation_precision(
    prediction_PD: np.ndarray, source_SD: np.ndarray, cited_P: Sequence[int]
) -> float:
    """Return the share of predicted sentences whose nearest source sentence is the cited one.

    `cited_P` are positions in the source, from 0; ties with the nearest count. `prediction_PD` must
    be encoded from the printed text, so that a sentence decoded as something else scores 0. From 0
    to 1; NaN for an empty prediction.
    """
    if not len(prediction_PD):
        return NAN
    cosines_PS = cosines(prediction_PD, source_SD)
    cited_cosines_P = cosines_PS[np.arange(len(cited_P)), list(cited_P)]
    # The tolerance lets equal source sentences tie in spite of rounding.
    return float((cited_cosines_P >= cosines_PS.max(axis=1) - 1e-6).mean())


def local_coherence(concepts_SD: np.ndarray) -> float:
    """Return the mean cosine of sentences n and n + 2 (paper 3.1.1; Parola et al. 2023).

    From -1 to 1; NaN for fewer than three sentences.
    """
    if len(concepts_SD) < 3:
        return NAN
    units_SD = unit_length(concepts_SD)
    return float((units_SD[:-2] * units_SD[2:]).sum(axis=1).mean())
