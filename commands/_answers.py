"""Shared by `lcm summarize` and `lcm expand`: options, the model, and the printed answers."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_cli import console
from lcm_cli.errors import LcmError

if TYPE_CHECKING:
    from lcm_cli.pipeline import Prepared
    from lcm_cli.space import Space
    from lcm_cli.writing.answer_model import AnswerModel
    from lcm_cli.writing.answers import Answer, AnswerSentence, Task

    from ._result import Result
    from ._road import Road

Strict = Annotated[
    bool, typer.Option("--strict", help="Treat a refused answer of the model as an error.")
]
Cite = Annotated[
    bool, typer.Option("--cite", help="Show the source of each sentence and its similarity.")
]


class RequestedModel:
    """The model of a call: located if it has a name, and loaded once the space is."""

    def __init__(self, ctx: typer.Context, wanted: str, task: "Task") -> None:
        from lcm_cli.hub.locate import locate_model
        from lcm_cli.writing.answers import AUTO, EXTRACTIVE

        given = ctx.get_parameter_source("model")
        # A default from the environment or the config file need not suit every task and space.
        self._must_suit = given is not None and given.name == "COMMANDLINE"
        self._wanted, self._task = wanted, task
        if wanted not in (AUTO, EXTRACTIVE):
            locate_model(wanted)

    def load(self, space: "Space") -> "AnswerModel | None":
        """Load the model; None without one for the task."""
        from lcm_cli.writing.answer_model import load_answer_model

        found = load_answer_model(self._wanted, self._task, space, must_suit=self._must_suit)
        if found is not None and self._wanted == "auto":
            console.info(f"model: {found.name}; to use none: --model extractive")
        return found


class AnswerPrinter:
    """Prints answers, and reports refused ones. `key` names the whole texts in JSON."""

    def __init__(
        self, out: "Result", road: "Road", key: str, *, json: bool, cite: bool, strict: bool
    ) -> None:
        self._out, self._road, self._key = out, road, key
        self._json, self._cite, self._strict = json, cite, strict

    def show(
        self, window: "Sequence[Prepared]", answers: "Sequence[Answer]", space: "Space", seed: int
    ) -> None:
        """Write the answers to a window of documents."""
        for each, answer in zip(window, answers, strict=True):
            if answer.fallback is not None and self._refused(each, answer):
                continue
            if self._json:
                self._out.emit(self._record(each, answer, space, seed))
                continue
            spoken = bool(each.document.times)
            blocks = {
                code: list(_cited(answer, code, spoken)) if self._cite else [text]
                for code, text in answer.texts.items()
            }
            self._out.document(each.document, blocks, self._road.several)

    def _refused(self, each: "Prepared", answer: "Answer") -> bool:
        """Report why the model's answer was refused; return whether this is an error."""
        from lcm_cli.writing.refusal import REASONS

        assert answer.fallback is not None
        message = f"{each.document.label}: {REASONS[answer.fallback]} ({answer.model})"
        if self._strict:
            hint = "without --strict the document's own sentences replace the answer"
            self._road.problems(LcmError(message, hint))
        else:
            console.warn(f"{message}; the document's own sentences replace the answer")
        return self._strict

    def _record(
        self, each: "Prepared", answer: "Answer", space: "Space", seed: int
    ) -> dict[str, Any]:
        from ._result import provenance, truncations

        return {
            "id": answer.id,
            "lang": answer.lang,
            "method": answer.method,
            "model": answer.model,
            "fallback": answer.fallback,
            "length": answer.length,
            "total": answer.total,
            "sentences": [_sentence(sentence) for sentence in answer.sentences],
            self._key: answer.texts,
            "truncated": truncations(each),
            **provenance(space, seed if answer.model is not None else None),
        }


def _sentence(sentence: "AnswerSentence") -> dict[str, Any]:
    nearest, *others = (
        {
            "index": source.index,
            "text": source.text,
            "place": source.place or None,
            "similarity": {code: round(value, 4) for code, value in source.similarity.items()},
        }
        for source in sentence.sources
    )
    return {**nearest, "texts": sentence.texts, "others": others}


def _cited(answer: "Answer", code: str, spoken: bool) -> Iterator[str]:
    """Yield the sentences of an answer in one language, each followed by its sources.

    Those of speech are decoded in its own language, too.
    """
    from lcm_cli.writing.refusal import Thresholds

    quoted = answer.model is None or answer.fallback is not None
    for sentence in answer.sentences:
        yield sentence.texts[code]
        for source in sentence.sources:
            where = f"{source.index}, {source.place}" if source.place else str(source.index)
            if quoted and code == answer.lang and not spoken:
                yield f"    [{where}] word for word"
                continue
            far = not quoted and source.similarity[code] < Thresholds().near
            mark = "nothing is near; nearest: " if far else ""
            yield f"    {mark}[{where}] {source.similarity[code]:.2f}  {source.text}"
