"""BLEU (Papineni et al. 2002) of texts in any language, by sacrebleu."""

from functools import cache
from typing import Any

from lcm_cli.text.languages import language

# sacrebleu's tokenizers that need no further download, for scripts that 13a leaves in one piece.
_BLEU_TOKENIZERS = {"Hans": "zh", "Hant": "zh"} | dict.fromkeys(
    ("Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"), "char"
)


def sentence_bleu(prediction: str, target: str, lang: str) -> float:
    """Return BLEU of one sentence, of no longer n-grams than it has words."""
    metric = bleu_metric(bleu_tokenizer(lang), effective_order=True)
    return float(metric.sentence_score(prediction, [target]).score)


def bleu_tokenizer(lang: str) -> str:
    """Return the name of sacrebleu's tokenizer for a language code."""
    return _BLEU_TOKENIZERS.get(language(lang).script, "13a")


@cache
def bleu_metric(tokenizer: str, effective_order: bool = False) -> Any:
    """Return sacrebleu's BLEU; `effective_order` leaves out n-grams longer than the text."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer, effective_order=effective_order)
