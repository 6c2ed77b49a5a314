"""Sequence-to-sequence models of the Hugging Face Hub, as baselines: hf:ORG/NAME."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lcm_cli.errors import UsageError
from lcm_cli.evaluation.judges import load_judge, revision, tokenized
from lcm_cli.evaluation.rows import Row
from lcm_cli.evaluation.space_cache import SharedSpace
from lcm_cli.evaluation.systems import Prediction, System
from lcm_cli.pipeline import prose
from lcm_cli.text.segment import segment

READ = 512  # tokens of the input
WRITTEN = {"summarize": 84, "expand": 512, "translate": 256}  # tokens of the output, at most
TOGETHER = 8  # texts in a batch


class Seq2Seq(System):
    """A model that reads a text and writes one, such as csebuetnlp/mT5_multilingual_XLSum.

    Beam 4 and no repeated bigrams, as that model's card says. It writes in the language of the
    text; into others what it wrote goes through the space. To translate, the model has to know the
    language codes that lcm uses, as NLLB's do.
    """

    tasks = ("summarize", "expand", "translate")

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device
        self.model = name.removeprefix("hf:")

    def about(self) -> dict[str, Any]:
        return {"kind": "seq2seq", "model": self.model, "revision": revision(self.model)}

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return load_judge(self.model, "AutoTokenizer")

    @cached_property
    def network(self) -> Any:
        """Its network."""
        return load_judge(self.model, "AutoModelForSeq2SeqLM").to(self.device).eval()

    def write(
        self, rows: Sequence[Row], to: str, task: str, space: SharedSpace
    ) -> list[Prediction]:
        if task == "translate":
            return [self._translated(row, to) for row in rows]
        texts = self._generated([prose(row.source, row.lang) for row in rows], task)
        answers = []
        for row, text in zip(rows, texts, strict=True):
            sentences = [piece.text for piece in segment(text, row.lang)] if text.strip() else []
            if to not in ("", row.lang) and sentences:
                concepts_SD = space.concepts(sentences, row.lang)
                sentences = space.texts(concepts_SD, to, sentences, row.lang)
            answers.append(Prediction(tuple(sentences)))
        return answers

    def _translated(self, row: Row, to: str) -> Prediction:
        known = self.tokenizer.get_vocab()
        for code in (row.lang, to):
            if code not in known:
                raise UsageError(f"it does not know the language {code}", "NLLB's models do")
        self.tokenizer.src_lang = row.lang
        said = self._generated(row.source, "translate", forced_bos_token_id=known[to])
        return Prediction(tuple(said), tuple(range(len(said))))

    def _generated(self, texts: Sequence[str], task: str, **options: Any) -> list[str]:
        import torch

        options |= {"num_beams": 4, "no_repeat_ngram_size": 2, "do_sample": False}
        options["max_new_tokens"] = WRITTEN[task]
        found: list[str] = []
        for start in range(0, len(texts), TOGETHER):
            part = texts[start : start + TOGETHER]
            inputs = tokenized(self.tokenizer, part, self.device, READ)
            with torch.inference_mode():
                ids = self.network.generate(**inputs, **options)
            found += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return found
