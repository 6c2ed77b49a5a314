"""Sequence-to-sequence models from the Hugging Face Hub as baselines, named hf:ORG/NAME."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lcm_cli.errors import UsageError
from lcm_cli.evaluation.examples import Example
from lcm_cli.evaluation.pretrained import load_pretrained, revision, tokenized
from lcm_cli.evaluation.space_cache import SharedSpace
from lcm_cli.evaluation.systems import Prediction, System
from lcm_cli.pipeline import prose
from lcm_cli.text.segment import segment

INPUT_TOKENS = 512  # at most; the rest of a text is cut off
OUTPUT_TOKENS = {"summarize": 84, "expand": 512, "translate": 256}  # at most
TOGETHER = 8  # texts in a batch


class Seq2Seq(System):
    """A sequence-to-sequence model such as csebuetnlp/mT5_multilingual_XLSum.

    Decodes with a beam of 4 and without repeated bigrams, as that model's card recommends. The
    output is in the language of the text; the space translates it into other languages. For the
    task translate, the model's vocabulary must contain lcm's language codes, as that of NLLB does.
    """

    tasks = ("summarize", "expand", "translate")

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device
        self.model = name.removeprefix("hf:")

    def about(self) -> dict[str, Any]:
        return {"kind": "seq2seq", "model": self.model, "revision": revision(self.model)}

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_pretrained(self.model, "AutoTokenizer")

    @cached_property
    def network(self) -> Any:
        """The model, in evaluation mode."""
        return load_pretrained(self.model, "AutoModelForSeq2SeqLM").to(self.device).eval()

    def write(
        self, examples: Sequence[Example], to: str, task: str, space: SharedSpace
    ) -> list[Prediction]:
        if task == "translate":
            return [self._translated(example, to) for example in examples]
        texts = self._generated([prose(example.source, example.lang) for example in examples], task)
        answers = []
        for example, text in zip(examples, texts, strict=True):
            sentences = (
                [piece.text for piece in segment(text, example.lang)] if text.strip() else []
            )
            if to not in ("", example.lang) and sentences:
                concepts_SD = space.concepts(sentences, example.lang)
                sentences = space.texts(concepts_SD, to, sentences, example.lang)
            answers.append(Prediction(tuple(sentences)))
        return answers

    def _translated(self, example: Example, to: str) -> Prediction:
        known = self.tokenizer.get_vocab()
        for code in (example.lang, to):
            if code not in known:
                raise UsageError(
                    f"{self.model} does not know the language {code}",
                    "name a model with NLLB's language codes",
                )
        self.tokenizer.src_lang = example.lang
        # Sentence by sentence; NLLB reads the target language from the first output token.
        texts = self._generated(example.source, "translate", forced_bos_token_id=known[to])
        return Prediction(tuple(texts), tuple(range(len(texts))))

    def _generated(self, texts: Sequence[str], task: str, **options: Any) -> list[str]:
        import torch

        options |= {"num_beams": 4, "no_repeat_ngram_size": 2, "do_sample": False}
        options["max_new_tokens"] = OUTPUT_TOKENS[task]
        outputs: list[str] = []
        for start in range(0, len(texts), TOGETHER):
            part = texts[start : start + TOGETHER]
            inputs = tokenized(self.tokenizer, part, self.device, INPUT_TOKENS)
            with torch.inference_mode():
                ids = self.network.generate(**inputs, **options)
            outputs += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return outputs
