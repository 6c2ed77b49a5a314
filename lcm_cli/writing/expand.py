"""Expansions: a longer text about the same, by a concept model that learned to write one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcm_cli.documents import Document
from lcm_cli.errors import NotFoundError
from lcm_cli.pipeline import Prepared, embed, find_languages, prepare_documents
from lcm_cli.progress import Progress
from lcm_cli.text.length import Length
from lcm_cli.writing.answers import Answer, quote_all, with_fallbacks

if TYPE_CHECKING:
    from lcm_cli.space import Space
    from lcm_cli.writing.answer_model import AnswerModel

METHOD = "source"  # the document itself, where the model's answer was refused


def expand(
    document: Document,
    space: "Space",
    to: Sequence[str] = (),
    length: str | None = None,
    *,
    model: str = "auto",
    source: str = "auto",
    seed: int = 0,
) -> Answer:
    """Expand one document, given as text or as sentences; see `lcm_cli.summarize`.

    Raises NotFoundError if `model` is auto and the space has none that expands.
    """
    from lcm_cli.writing.answer_model import load_answer_model

    codes = find_languages(to, space.languages, space.name)
    wanted = None if length is None else Length.parse(length, shorter=False)
    lang = source if source == "auto" else space.find_language(source)
    prepared = prepare_documents(document, space.languages, space.name, lang)
    chosen = load_answer_model(model, "expand", space)
    if chosen is None:
        raise no_model(space.name)
    return expand_all(embed([prepared], space), space, codes, wanted, chosen, seed=seed)[0]


def expand_all(
    window: Sequence[Prepared],
    space: "Space",
    to: Sequence[str],
    length: Length | None,
    model: "AnswerModel",
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Answer]:
    """Expand embedded documents, all together.

    `to` holds language codes, none for each document's own. Where the model's answer is refused,
    the document itself takes its place, and `fallback` says why. `progress` is told the number of
    sentences decoded.
    """
    from lcm_cli.writing.answer_model import answer_all

    answers = answer_all(window, model, to, length, seed=seed, progress=progress)
    refused = [each for each, one in zip(window, answers, strict=True) if one.fallback]
    everything = [range(len(each.document.sentences)) for each in refused]
    quoted = quote_all(refused, everything, space, to, cite=True, progress=progress)
    whole = [
        Answer.of(each, METHOD, sentences, length)
        for each, sentences in zip(refused, quoted, strict=True)
    ]
    return with_fallbacks(answers, whole)


def no_model(space: str) -> NotFoundError:
    """Return the error for a space without a model that expands."""
    hint = "name one with --model, or train one: see docs/summarize.md"
    return NotFoundError(f"the space {space} has no model that expands texts", hint)
