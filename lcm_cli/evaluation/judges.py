"""Scores that need a model, each by the model that the paper and the official code use.

Models are fetched from the Hugging Face Hub the first time that they are asked for, unless another
one, or a folder, is named: `cola=my/model`. Nothing is fetched that was not asked for.

Shapes: N texts, S sentences, T tokens, V vocabulary, D concept dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lcm_cli.errors import LcmError, NotFoundError, UsageError
from lcm_cli.evaluation.next_concept import CONTEXT, mutual_information
from lcm_cli.evaluation.space_cache import SharedSpace
from lcm_cli.pipeline import prose
from lcm_cli.schema import nearest

if TYPE_CHECKING:
    from torch import Tensor

Record = dict[str, Any]

TOGETHER = 16  # texts in a batch
ENGLISH = "eng_Latn"


class Judge(ABC):
    """A model that scores predictions. `english` ones give no score to other languages."""

    english = False

    def __init__(self, model: str, space: SharedSpace) -> None:
        self.model, self.space = model, space
        self.device = str(space.device)

    def about(self) -> dict[str, str]:
        """Return which model it is, for metrics.json."""
        return {"model": self.model, "revision": revision(self.model)}

    def score(self, records: Sequence[Record]) -> list[float]:
        """Return a score for each record, NaN where there is none."""
        fits = [i for i, r in enumerate(records) if self.suits(r)]
        scores = [float("nan")] * len(records)
        for start in range(0, len(fits), TOGETHER):
            part = fits[start : start + TOGETHER]
            for i, score in zip(part, self.judge([records[i] for i in part]), strict=True):
                scores[i] = score
        return scores

    def suits(self, record: Record) -> bool:
        """Return whether there is something to score."""
        return bool(record["prediction"]) and (not self.english or record["to"] == ENGLISH)

    @abstractmethod
    def judge(self, records: Sequence[Record]) -> list[float]:
        """Score records that suit."""

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_judge(self.model, "AutoTokenizer")


class Cola(Judge):
    """Fluency: how likely a sentence is acceptable English, on average over the sentences.

    Krishna et al. (2020), trained on CoLA; class 0 is `acceptable`.
    """

    english = True

    @cached_property
    def network(self) -> Any:
        """The classifier."""
        return load_judge(self.model, "AutoModelForSequenceClassification").to(self.device).eval()

    def judge(self, records: Sequence[Record]) -> list[float]:
        import torch

        means = []
        for record in records:
            inputs = tokenized(self.tokenizer, record["prediction"], self.device)
            with torch.inference_mode():
                chances_S = self.network(**inputs).logits.softmax(dim=-1)[:, 0]
            means.append(float(chances_S.mean()))
        return means


class Seahorse(Judge):
    """How likely the answer to one of SEAHORSE's questions on a summary is yes (Clark et al. 2023).

    Q4: is everything in the summary attributable to the source; Q5: does it have its main ideas.
    The model, an mT5, reads premise and hypothesis and writes 0 or 1; as in the official code the
    score is the chance of the token for 1 among all.
    """

    @cached_property
    def network(self) -> Any:
        """The model."""
        return load_judge(self.model, "AutoModelForSeq2SeqLM").to(self.device).eval()

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
        # Not a number from elsewhere: it depends on the tokenizer.
        ids = self.tokenizer("1", add_special_tokens=False)["input_ids"]
        return int(ids[-1])


class Momentum(Judge):
    """Coherence of a text (Jwalapuram et al. 2022): XLNet's last state, and a line over it.

    Longer texts are scored in windows of 10 sentences, 5 apart; the official code's sigmoid of
    temperature 3 brings the mean between 0 and 1.
    """

    english = True
    LONGEST, WINDOW, STRIDE, TEMPERATURE = 15, 10, 5, 3.0
    TOKENIZER = "xlnet-base-cased"

    @cached_property
    def tokenizer(self) -> Any:
        """XLNet's tokenizer: from the model's folder, else the one it was trained with."""
        try:
            return load_judge(self.model, "AutoTokenizer")
        except LcmError:
            return load_judge(self.TOKENIZER, "AutoTokenizer")

    @cached_property
    def network(self) -> tuple[Any, Any]:
        """The encoder and the line."""
        import torch

        config = load_judge(self.model, "AutoConfig", fallback=self.TOKENIZER)
        encoder = transformers().XLNetModel(config)
        line = torch.nn.Linear(encoder.config.d_model, 1)
        state = weights(self.model)
        _take(encoder, state, "main_encoder.", self.model)
        _take(line, state, "conlinear.", self.model)
        return encoder.to(self.device).eval(), line.to(self.device).eval()

    def judge(self, records: Sequence[Record]) -> list[float]:
        return [self._one(record["prediction"]) for record in records]

    def _one(self, sentences: Sequence[str]) -> float:
        import torch

        encoder, line = self.network
        scores = []
        with torch.inference_mode():
            for part in self._windows(sentences):
                ids_1T = self.tokenizer(" ".join(part), return_tensors="pt")["input_ids"]
                last_1M = encoder(input_ids=ids_1T.to(self.device)).last_hidden_state[:, -1]
                scores.append(float(line(last_1M)))
        return float(1 / (1 + np.exp(-np.mean(scores) / self.TEMPERATURE)))

    def _windows(self, sentences: Sequence[str]) -> Iterator[Sequence[str]]:
        if len(sentences) <= self.LONGEST:
            yield sentences
            return
        for start in range(0, len(sentences) - self.STRIDE, self.WINDOW - self.STRIDE):
            yield sentences[start : start + self.WINDOW]


class Perplexity(Judge):
    """Perplexity of a text to a language model."""

    english = True

    @cached_property
    def lm(self) -> "LanguageModel":
        """The language model."""
        return LanguageModel(self.model, self.device)

    def judge(self, records: Sequence[Record]) -> list[float]:
        found = []
        for record in records:
            total, count = self.lm.log_probability(
                "", "\n" + prose(record["prediction"], record["to"])
            )
            found.append(float(np.exp(-total / max(count, 1))))
        return found


class BertScore(Judge):
    """BERTScore F1 (Zhang et al. 2020) against the reference: greedy cosines of token states.

    Without weights by rarity and without rescaling.
    """

    LAYER = 9  # of multilingual BERT's 12, bert-score's choice for it

    @cached_property
    def network(self) -> Any:
        """The encoder."""
        return load_judge(self.model, "AutoModel").to(self.device).eval()

    def suits(self, record: Record) -> bool:
        return bool(record["prediction"]) and bool(record["target"])

    def judge(self, records: Sequence[Record]) -> list[float]:
        said = self._states([prose(r["prediction"], r["to"]) for r in records])
        wanted = self._states([prose(r["target"], r["to"]) for r in records])
        return [greedy_f1(a, b) for a, b in zip(said, wanted, strict=True)]

    def _states(self, texts: Sequence[str]) -> "list[Tensor]":
        import torch

        inputs = tokenized(self.tokenizer, texts, self.device)
        with torch.inference_mode():
            states = self.network(**inputs, output_hidden_states=True).hidden_states
        states_NTM = states[min(self.LAYER, len(states) - 1)]
        masks_NT = inputs["attention_mask"].bool()
        return [x_TM[mask_T] for x_TM, mask_T in zip(states_NTM, masks_NT, strict=True)]


class Blaser(Judge):
    """BLASER 2.0 (Dale and Costa-jussà 2024), 1 to 5: does the prediction mean the same?

    It reads concepts of SONAR, so the space has to be that. `with_reference` compares with the
    reference as well. Texts are compared sentence by sentence where they are as many, else whole.
    """

    def __init__(self, model: str, space: SharedSpace, with_reference: bool) -> None:
        super().__init__(model, space)
        self.with_reference = with_reference

    @cached_property
    def network(self) -> Any:
        """The model, from sonar-space."""
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
                f"BLASER reads concepts of width {network.embedding_dim}, and those of "
                f"{self.space.name} have {self.space.dim}",
                "use SONAR: --space sonar",
            )
        return network

    def suits(self, record: Record) -> bool:
        return bool(record["prediction"]) and (not self.with_reference or bool(record["target"]))

    def judge(self, records: Sequence[Record]) -> list[float]:
        return [self._one(record) for record in records]

    def _one(self, record: Record) -> float:
        import torch

        texts = {"source": record["lang"], "prediction": record["to"]}
        if self.with_reference:
            texts["target"] = record["to"]
        parts = {key: record[key] for key in texts}
        if len({len(part) for part in parts.values()}) > 1:
            parts = {key: [prose(part, texts[key])] for key, part in parts.items()}
        rows = [
            torch.from_numpy(self.space.concepts(parts[key], code)) for key, code in texts.items()
        ]
        with torch.inference_mode():
            return float(self.network(*rows).mean())


class LanguageModel:
    """A causal language model, for perplexity and MI."""

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return load_judge(self.name, "AutoTokenizer")

    @cached_property
    def network(self) -> Any:
        """Its network."""
        return load_judge(self.name, "AutoModelForCausalLM").to(self.device).eval()

    def load(self) -> None:
        """Load both now; raises UsageError without transformers, NotFoundError for no model."""
        self.tokenizer, self.network  # noqa: B018

    def log_probability(self, before: str, text: str) -> tuple[float, int]:
        """Return log p(text | before) in nats, and of how many tokens.

        The first token of all has nothing before it and does not count; what exceeds the model's
        length is cut from the left of `before`.
        """
        import torch

        context = self.tokenizer(before, add_special_tokens=False)["input_ids"] if before else []
        own = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        most = getattr(self.network.config, "max_position_embeddings", 1024)
        context = context[max(0, len(context) + len(own) - most) :]
        ids_T = torch.tensor([*context, *own][:most], device=self.device)
        first = max(len(context), 1)
        if len(ids_T) <= first:
            return 0.0, 0
        with torch.inference_mode():
            logits_TV = self.network(input_ids=ids_T[None]).logits[0].float()
        chances_TV = logits_TV.log_softmax(dim=-1)
        picked_T = chances_TV[first - 1 : -1].gather(1, ids_T[first:, None])
        return float(picked_T.sum()), len(picked_T)

    def mutual_information(self, text: Sequence[str], said: Sequence[str]) -> float:
        """Return the MI of predictions `said` for sentences 2, 3, ... of `text`, nats a token."""
        conditional, alone_N, counts = (
            list(part) for part in zip(*self.scores(text, said), strict=True)
        )
        return mutual_information(conditional, alone_N, counts)

    def scores(
        self, text: Sequence[str], said: Sequence[str], first: int = 1
    ) -> list[tuple[float, float, int]]:
        """Score predictions `said` for the sentences of `text` from number `first` on.

        Returns of each the log probability after its context and alone, and the number of tokens. A
        newline goes before each sentence, with its context and without: so the same tokens are
        scored, and the first of them has something before it.
        """
        found = []
        for n, sentence in enumerate(said, start=first):
            before = " ".join(text[max(0, n - CONTEXT) : n])
            with_context, count = self._after(before, sentence)
            found.append((with_context, self._after("", sentence)[0], count))
        return found

    def _after(self, before: str, sentence: str) -> tuple[float, int]:
        return self.log_probability(before + "\n", sentence)


def greedy_f1(said_TM: "Tensor", wanted_TM: "Tensor") -> float:
    """Return the F1 of precision and recall, each the mean of the best cosines."""
    import torch

    units = [torch.nn.functional.normalize(x.float(), dim=-1) for x in (said_TM, wanted_TM)]
    cosines = units[0] @ units[1].T
    precision, recall = (float(cosines.max(dim=d).values.mean()) for d in (1, 0))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


Make = Callable[[str, SharedSpace], Judge]
JUDGES: Mapping[str, tuple[str, Make]] = {
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
    """Return judges by name; each is NAME or NAME=MODEL. Raises UsageError for an unknown one."""
    judges = {}
    for text in wanted:
        name, _, model = text.partition("=")
        name = name.replace("-", "_")
        if name not in JUDGES:
            near = nearest(name, JUDGES)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(JUDGES)}"
            raise UsageError(f"there is no judge {name!r}", hint)
        usual, make = JUDGES[name]
        judges[name] = make(model or usual, space)
    return judges


def transformers() -> Any:
    """Return the package. Raises UsageError where it is not installed."""
    try:
        import transformers as package
    except ImportError as error:
        message = f"this needs the package transformers: {error}"
        raise UsageError(message, "pip install 'lcm-cli[judges]'") from error
    return package


def load_judge(name: str, kind: str, fallback: str = "") -> Any:
    """Load one of transformers' auto classes from a folder or the Hub.

    `fallback` is tried where the first has no such thing. Code that comes with a model is not run.
    Raises NotFoundError where neither is here nor to be had.
    """
    package = transformers()
    try:
        return getattr(package, kind).from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        if fallback:
            return load_judge(fallback, kind)
        reason = str(error).strip().splitlines()[0]
        hint = "the first time it has to be fetched: go online, or name a folder"
        raise NotFoundError(f"cannot load {name}: {reason}", hint) from error


def weights(name: str) -> "dict[str, Tensor]":
    """Read the weights of a folder or Hub repository, weights only."""
    import torch
    from safetensors.torch import load_file
    from transformers.utils.hub import cached_file

    with _not_found(name):
        path = cached_file(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
        if path is not None:
            return load_file(path)
        path = str(cached_file(name, "pytorch_model.bin"))
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return state


def revision(name: str) -> str:
    """Return the commit of a Hub model in the local cache, "" for a folder or one not there."""
    from lcm_cli.hub.snapshot import hub_cache

    ref = hub_cache() / f"models--{name.replace('/', '--')}" / "refs" / "main"
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""


@contextmanager
def _not_found(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise NotFoundError(
            f"cannot load {name}: {reason}", "go online, or name a folder"
        ) from error


def _take(network: Any, state: "Mapping[str, Tensor]", prefix: str, name: str) -> None:
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    missing = set(network.state_dict()) - set(own)
    if missing:
        raise LcmError(f"{name} has no {prefix}{min(missing)}", "is it a coherence-momentum model?")
    network.load_state_dict(own, strict=False)


def tokenized(tokenizer: Any, texts: Sequence[str], device: str, most: int = 512) -> Any:
    """Return texts as padded tensors on a device, each cut after `most` tokens."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=most,
        return_tensors="pt",
        return_token_type_ids=False,  # all alike here, and not every model takes them
    )
    return inputs.to(device)
