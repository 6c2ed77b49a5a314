"""BLEU (Papineni et al. 2002) of texts in any language, computed by sacrebleu."""

from functools import cache
from typing import Any

from lcm_cli.text.languages import language

# For scripts that sacrebleu's default tokenizer, 13a, does not split: those of its other tokenizers
# that need no download.
_BLEU_TOKENIZERS = {"Hans": "zh", "Hant": "zh"} | dict.fromkeys(
    ("Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"), "char"
)


def sentence_bleu(prediction: str, target: str, lang: str) -> float:
    """Return the BLEU of a sentence, 0 to 100, without n-grams longer than the sentence."""
    metric = bleu_metric(bleu_tokenizer(lang), effective_order=True)
    return float(metric.sentence_score(prediction, [target]).score)


def bleu_tokenizer(lang: str) -> str:
    """Return the name of sacrebleu's tokenizer for a language code."""
    return _BLEU_TOKENIZERS.get(language(lang).script, "13a")


@cache
def bleu_metric(tokenizer: str, effective_order: bool = False) -> Any:
    """Return sacrebleu's BLEU metric; `effective_order` ignores n-grams longer than the text."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer, effective_order=effective_order)
