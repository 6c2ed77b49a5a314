"""Summaries: of a document's own central sentences, or by a concept model that learned it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lcm_cli.documents import Document
from lcm_cli.pipeline import Prepared, embed, find_languages, prepare_documents
from lcm_cli.progress import Progress
from lcm_cli.text.length import Length, count_words, taken
from lcm_cli.writing.answers import Answer, quote_all, with_fallbacks
from lcm_cli.writing.extractive import METHOD, opening_weights, rank_sentences

if TYPE_CHECKING:
    from lcm_cli.space import Space
    from lcm_cli.writing.answer_model import AnswerModel

SENTENCES = "3"  # the length of an extractive summary, if none was asked for


def summarize(
    document: Document,
    space: "Space",
    to: Sequence[str] = (),
    length: str | None = None,
    *,
    model: str = "auto",
    cite: bool = False,
    source: str = "auto",
    seed: int = 0,
) -> Answer:
    """Summarize one document, given as text or as sentences.

    `to` names languages (default the document's own), `source` that of a document which does not
    say. `model` is a concept model by name or path, `auto` for the space's own, or `extractive`.
    `cite` measures the similarity of each quoted sentence to its source.
    """
    from lcm_cli.writing.answer_model import load_answer_model

    codes = find_languages(to, space.languages, space.name)
    wanted = None if length is None else Length.parse(length)
    lang = source if source == "auto" else space.find_language(source)
    prepared = prepare_documents(document, space.languages, space.name, lang)
    chosen = load_answer_model(model, "summarize", space)
    window = embed([prepared], space)
    return summarize_all(window, space, codes, wanted, chosen, cite=cite, seed=seed)[0]


def summarize_all(
    window: Sequence[Prepared],
    space: "Space",
    to: Sequence[str],
    length: Length | None = None,
    model: "AnswerModel | None" = None,
    *,
    cite: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Answer]:
    """Summarize embedded documents, by `model` or else of their own sentences, all together.

    `to` holds language codes, none for each document's own. Where the model's answer is refused,
    the document's own sentences take its place, and `fallback` says why. `progress` is told the
    number of sentences decoded.
    """
    if model is None:
        return _extract_all(window, space, to, length, cite, progress)
    from lcm_cli.writing.answer_model import answer_all

    answers = answer_all(window, model, to, length, seed=seed, progress=progress)
    refused = [each for each, one in zip(window, answers, strict=True) if one.fallback]
    return with_fallbacks(answers, _extract_all(refused, space, to, length, cite, progress))


def _extract_all(
    window: Sequence[Prepared],
    space: "Space",
    to: Sequence[str],
    length: Length | None,
    cite: bool,
    progress: Progress | None,
) -> list[Answer]:
    """Summarize documents by their own most representative sentences."""
    wanted = length or Length.parse(SENTENCES)
    chosen = [choose_sentences(each, wanted) for each in window]
    quoted = quote_all(window, chosen, space, to, cite=cite, progress=progress)
    return [
        Answer.of(each, METHOD, sentences, wanted)
        for each, sentences in zip(window, quoted, strict=True)
    ]


def choose_sentences(embedded: Prepared, length: Length) -> list[int]:
    """Return which sentences make an extractive summary, in their order; at least one."""
    words = [count_words(sentence) for sentence in embedded.document.sentences]
    # What has no words (a line of stars, say) is nothing to quote.
    weights = opening_weights(len(words)) * (np.array(words) > 0)
    ranking = rank_sentences(embedded.concepts, weights)
    return taken(ranking, words, length)
