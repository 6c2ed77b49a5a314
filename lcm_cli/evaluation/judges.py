"""Scores that need a model, by default the model that the paper and its official code use.

A judge's model is downloaded from the Hugging Face Hub on first use; `cola=my/model` selects
another one, or a folder.

Shapes: N texts, S sentences, T tokens, V vocabulary, M model dim, D concept dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lcm_cli.errors import LcmError, UsageError
from lcm_cli.evaluation.next_concept import CONTEXT, mutual_information
from lcm_cli.evaluation.pretrained import (
    load_pretrained,
    revision,
    tokenized,
    transformers,
    weights,
)
from lcm_cli.evaluation.space_cache import SharedSpace
from lcm_cli.pipeline import prose
from lcm_cli.schema import nearest

if TYPE_CHECKING:
    from torch import Tensor

Record = dict[str, Any]

TOGETHER = 16  # texts in a batch
ENGLISH = "eng_Latn"


class Judge(ABC):
    """A model that scores predictions; one that is `english` scores no other language."""

    english = False

    def __init__(self, model: str, space: SharedSpace) -> None:
        self.model, self.space = model, space
        self.device = str(space.device)

    def about(self) -> dict[str, str]:
        """Return the model and its revision, for metrics.json."""
        return {"model": self.model, "revision": revision(self.model)}

    def score(self, records: Sequence[Record]) -> list[float]:
        """Return the score of each record, NaN for one that the judge cannot score."""
        suitable = [i for i, r in enumerate(records) if self.suits(r)]
        scores = [float("nan")] * len(records)
        for start in range(0, len(suitable), TOGETHER):
            part = suitable[start : start + TOGETHER]
            for i, score in zip(part, self.judge([records[i] for i in part]), strict=True):
                scores[i] = score
        return scores

    def suits(self, record: Record) -> bool:
        """Return whether the judge can score the record."""
        return bool(record["prediction"]) and (not self.english or record["to"] == ENGLISH)

    @abstractmethod
    def judge(self, records: Sequence[Record]) -> list[float]:
        """Return the scores of records that `suits` accepts."""

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_pretrained(self.model, "AutoTokenizer")


class Cola(Judge):
    """Fluency (paper 3.1.1), 0 to 1: the mean probability that a sentence is acceptable English.

    By the classifier of Krishna et al. (2020), trained on CoLA; its class 0 is `acceptable`.
    """

    english = True

    @cached_property
    def network(self) -> Any:
        """The classifier."""
        kind = "AutoModelForSequenceClassification"
        return load_pretrained(self.model, kind).to(self.device).eval()

    def judge(self, records: Sequence[Record]) -> list[float]:
        import torch

        means = []
        for record in records:
            inputs = tokenized(self.tokenizer, record["prediction"], self.device)
            with torch.inference_mode():
                probabilities_S = self.network(**inputs).logits.softmax(dim=-1)[:, 0]
            means.append(float(probabilities_S.mean()))
        return means


class Seahorse(Judge):
    """The probability, 0 to 1, of yes to a SEAHORSE question on a summary (Clark et al. 2023).

    Q4 (SH-4 in the paper, 3.1.1) asks whether everything in the summary is attributable to the
    source, Q5 (SH-5) whether it captures the source's main ideas. The model, an mT5, reads both
    texts as premise and hypothesis and writes 0 or 1. As in the official code, the score is the
    probability of the token 1 in the whole vocabulary.
    """

    @cached_property
    def network(self) -> Any:
        """The model."""
        return load_pretrained(self.model, "AutoModelForSeq2SeqLM").to(self.device).eval()

    def judge(self, records: Sequence[Record]) -> list[float]:
        import torch

        texts = [
            f"premise: {prose(r['source'], r['lang'])} "
            f"hypothesis: {prose(r['prediction'], r['to'])}"
            for r in records
        ]
        inputs = tokenized(self.tokenizer, texts, self.device, 2048)
        start = self.network.config.decoder_start_token_id
        first = torch.full((len(texts), 1), start, device=self.device)
        with torch.inference_mode():
            logits_NV = self.network(**inputs, decoder_input_ids=first).logits[:, 0]
        return [float(p) for p in logits_NV.softmax(dim=-1)[:, self._yes]]

    @cached_property
    def _yes(self) -> int:
        # Looked up rather than fixed, since the id depends on the tokenizer of the model.
        ids = self.tokenizer("1", add_special_tokens=False)["input_ids"]
        return int(ids[-1])


class Momentum(Judge):
    """Coherence of a text, 0 to 1 (Jwalapuram et al. 2022): a linear layer on XLNet's last state.

    Texts of more than LONGEST sentences are scored in windows of WINDOW sentences that overlap by
    STRIDE. As in the official code, the score is the sigmoid of the mean / TEMPERATURE.
    """

    english = True
    LONGEST, WINDOW, STRIDE, TEMPERATURE = 15, 10, 5, 3.0
    TOKENIZER = "xlnet-base-cased"

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the model, or of XLNet if the model comes without one."""
        try:
            return load_pretrained(self.model, "AutoTokenizer")
        except LcmError:
            return load_pretrained(self.TOKENIZER, "AutoTokenizer")

    @cached_property
    def network(self) -> tuple[Any, Any]:
        """The encoder, and the linear layer on its last state."""
        import torch

        config = load_pretrained(self.model, "AutoConfig", fallback=self.TOKENIZER)
        encoder = transformers().XLNetModel(config)
        linear = torch.nn.Linear(encoder.config.d_model, 1)
        state = weights(self.model)
        _load_part(encoder, state, "main_encoder.", self.model)
        _load_part(linear, state, "conlinear.", self.model)
        return encoder.to(self.device).eval(), linear.to(self.device).eval()

    def judge(self, records: Sequence[Record]) -> list[float]:
        return [self._score(record["prediction"]) for record in records]

    def _score(self, sentences: Sequence[str]) -> float:
        import torch

        encoder, linear = self.network
        scores = []
        with torch.inference_mode():
            for part in self._windows(sentences):
                ids_1T = self.tokenizer(" ".join(part), return_tensors="pt")["input_ids"]
                # XLNet's classification token is the last one.
                last_1M = encoder(input_ids=ids_1T.to(self.device)).last_hidden_state[:, -1]
                scores.append(float(linear(last_1M)))
        return float(1 / (1 + np.exp(-np.mean(scores) / self.TEMPERATURE)))

    def _windows(self, sentences: Sequence[str]) -> Iterator[Sequence[str]]:
        if len(sentences) <= self.LONGEST:
            yield sentences
            return
        # Windows begin as long as they add sentences to the overlap with the one before.
        for start in range(0, len(sentences) - self.STRIDE, self.WINDOW - self.STRIDE):
            yield sentences[start : start + self.WINDOW]


class Perplexity(Judge):
    """Perplexity of the prediction under a language model, from 1; lower is better.

    exp(-mean log p) over the tokens; a newline before the text gives its first token a context.
    """

    english = True

    @cached_property
    def lm(self) -> "LanguageModel":
        """The language model."""
        return LanguageModel(self.model, self.device)

    def judge(self, records: Sequence[Record]) -> list[float]:
        perplexities = []
        for record in records:
            total, count = self.lm.log_probability(
                "", "\n" + prose(record["prediction"], record["to"])
            )
            perplexities.append(float(np.exp(-total / max(count, 1))))
        return perplexities


class BertScore(Judge):
    """BERTScore F1 (Zhang et al. 2020) against the reference, by greedy matching of token states.

    At most 1. Without idf weights and without rescaling by a baseline.
    """

    LAYER = 9  # of multilingual BERT's 12, as in the package bert-score

    @cached_property
    def network(self) -> Any:
        """The encoder."""
        return load_pretrained(self.model, "AutoModel").to(self.device).eval()

    def suits(self, record: Record) -> bool:
        return bool(record["prediction"]) and bool(record["target"])

    def judge(self, records: Sequence[Record]) -> list[float]:
        predictions = self._states([prose(r["prediction"], r["to"]) for r in records])
        targets = self._states([prose(r["target"], r["to"]) for r in records])
        return [greedy_f1(a_TM, b_TM) for a_TM, b_TM in zip(predictions, targets, strict=True)]

    def _states(self, texts: Sequence[str]) -> "list[Tensor]":
        import torch

        inputs = tokenized(self.tokenizer, texts, self.device)
        with torch.inference_mode():
            states = self.network(**inputs, output_hidden_states=True).hidden_states
        # The first entry is the embedding, so the entry n is the output of layer n.
        states_NTM = states[min(self.LAYER, len(states) - 1)]
        masks_NT = inputs["attention_mask"].bool()
        return [x_TM[mask_T] for x_TM, mask_T in zip(states_NTM, masks_NT, strict=True)]


class Blaser(Judge):
    """BLASER 2.0 (Dale and Costa-jussà 2024), about 1 to 5: does the prediction mean the same?

    It compares SONAR concepts of the source, the prediction and, if `with_reference`, the
    reference, so the space must be SONAR. Texts with equal numbers of sentences are compared
    sentence by sentence and averaged, other texts as a whole.
    """

    def __init__(self, model: str, space: SharedSpace, with_reference: bool) -> None:
        super().__init__(model, space)
        self.with_reference = with_reference

    @cached_property
    def network(self) -> Any:
        """The model, loaded by sonar-space.

        Raises UsageError if sonar-space is not installed, or the space has another width.
        """
        from lcm_cli.space.sonar_package import import_sonar

        try:
            import_sonar()
            from sonar.models.blaser.loader import load_blaser_model
        except ImportError as error:
            message = f"BLASER needs the package sonar-space: {error}"
            raise UsageError(message, "see: lcm doctor") from error
        network = load_blaser_model(self.model).eval()
        if network.embedding_dim != self.space.dim:
            raise UsageError(
                f"BLASER reads concepts of width {network.embedding_dim}, but those of "
                f"{self.space.name} have width {self.space.dim}",
                "use SONAR: --space sonar",
            )
        return network

    def suits(self, record: Record) -> bool:
        return bool(record["prediction"]) and (not self.with_reference or bool(record["target"]))

    def judge(self, records: Sequence[Record]) -> list[float]:
        return [self._score(record) for record in records]

    def _score(self, record: Record) -> float:
        import torch

        codes = {"source": record["lang"], "prediction": record["to"]}
        if self.with_reference:
            codes["target"] = record["to"]
        texts = {key: record[key] for key in codes}
        if len({len(text) for text in texts.values()}) > 1:
            texts = {key: [prose(text, codes[key])] for key, text in texts.items()}
        # In this order: the network takes source, prediction and reference.
        concepts = [
            torch.from_numpy(self.space.concepts(texts[key], code)) for key, code in codes.items()
        ]
        with torch.inference_mode():
            return float(self.network(*concepts).mean())


class LanguageModel:
    """A causal language model, for perplexity and MI."""

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_pretrained(self.name, "AutoTokenizer")

    @cached_property
    def network(self) -> Any:
        """The model, in evaluation mode."""
        return load_pretrained(self.name, "AutoModelForCausalLM").to(self.device).eval()

    def load(self) -> None:
        """Load tokenizer and network now.

        Raises UsageError if transformers is not installed, NotFoundError if the model is not found.
        """
        self.tokenizer, self.network  # noqa: B018

    def log_probability(self, before: str, text: str) -> tuple[float, int]:
        """Return log p(text | before) in nats, and the number of tokens that it covers.

        A token with nothing before it (the first one, if `before` is empty) is not counted. If the
        two exceed the model's length, `before` loses its beginning, then `text` its end.
        """
        import torch

        context = self.tokenizer(before, add_special_tokens=False)["input_ids"] if before else []
        own = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        limit = getattr(self.network.config, "max_position_embeddings", 1024)
        context = context[max(0, len(context) + len(own) - limit) :]
        ids_T = torch.tensor([*context, *own][:limit], device=self.device)
        # The first token of all has no logits: nothing precedes it.
        first = max(len(context), 1)
        if len(ids_T) <= first:
            return 0.0, 0
        with torch.inference_mode():
            logits_TV = self.network(input_ids=ids_T[None]).logits[0].float()
        log_probabilities_TV = logits_TV.log_softmax(dim=-1)
        # The logits at position t predict token t + 1.
        own_T = log_probabilities_TV[first - 1 : -1].gather(1, ids_T[first:, None])
        return float(own_T.sum()), len(own_T)

    def mutual_information(self, text: Sequence[str], predictions: Sequence[str]) -> float:
        """Return MI (paper 2.4.1) in nats per token; the predictions are of sentences 2, 3, ..."""
        conditional_N, alone_N, counts_N = (
            list(part) for part in zip(*self.scores(text, predictions), strict=True)
        )
        return mutual_information(conditional_N, alone_N, counts_N)

    def scores(
        self, text: Sequence[str], predictions: Sequence[str], first: int = 1
    ) -> list[tuple[float, float, int]]:
        """Score predictions for the sentences of `text` from position `first`, counted from 0, on.

        Returns for each the log probability in nats after its context, that without context, and
        the number of tokens. A newline precedes the sentence in both cases, so that the same tokens
        are scored and the first of them has one before it.
        """
        scores = []
        for n, sentence in enumerate(predictions, start=first):
            before = " ".join(text[max(0, n - CONTEXT) : n])
            with_context, count = self._after(before, sentence)
            scores.append((with_context, self._after("", sentence)[0], count))
        return scores

    def _after(self, before: str, sentence: str) -> tuple[float, int]:
        return self.log_probability(before + "\n", sentence)


def greedy_f1(prediction_TM: "Tensor", target_TM: "Tensor") -> float:
    """Return BERTScore's F1 of two texts' token states (Zhang et al. 2020, section 3).

    Precision is the mean, over tokens of the prediction, of the largest cosine to a token of the
    target; recall is the reverse.
    """
    import torch

    units = [torch.nn.functional.normalize(x.float(), dim=-1) for x in (prediction_TM, target_TM)]
    cosines = units[0] @ units[1].T
    precision, recall = (float(cosines.max(dim=d).values.mean()) for d in (1, 0))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# By name: the default model, and the judge's constructor.
MakeJudge = Callable[[str, SharedSpace], Judge]
JUDGES: Mapping[str, tuple[str, MakeJudge]] = {
    "cola": ("cointegrated/roberta-large-cola-krishna2020", Cola),
    "seahorse_q4": ("google/seahorse-large-q4", Seahorse),
    "seahorse_q5": ("google/seahorse-large-q5", Seahorse),
    "momentum": ("aisingapore/coherence-momentum", Momentum),
    "perplexity": ("gpt2-medium", Perplexity),
    "bertscore": ("bert-base-multilingual-cased", BertScore),
    "blaser_ref": ("blaser_2_0_ref", lambda name, space: Blaser(name, space, True)),
    "blaser_qe": ("blaser_2_0_qe", lambda name, space: Blaser(name, space, False)),
}


def load_judges(wanted: Sequence[str], space: SharedSpace) -> dict[str, Judge]:
    """Return judges by name, given as NAME or NAME=MODEL. Raises UsageError for an unknown name."""
    judges = {}
    for text in wanted:
        name, _, model = text.partition("=")
        name = name.replace("-", "_")
        if name not in JUDGES:
            near = nearest(name, JUDGES)
            hint = f"did you mean {near[0]}?" if near else f"the judges are {', '.join(JUDGES)}"
            raise UsageError(f"there is no judge {name!r}", hint)
        default, make = JUDGES[name]
        judges[name] = make(model or default, space)
    return judges


def _load_part(network: Any, state: "Mapping[str, Tensor]", prefix: str, name: str) -> None:
    """Load the weights whose names begin with `prefix`; extra ones are ignored."""
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    missing = set(network.state_dict()) - set(own)
    if missing:
        raise LcmError(f"{name} has no {prefix}{min(missing)}", "is it a coherence-momentum model?")
    network.load_state_dict(own, strict=False)
