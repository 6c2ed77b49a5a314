"""The endpoints /summarize, /decode and /generate."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lcm_cli.models.generate import GenerateOptions
from lcm_cli.pipeline import embed, find_languages, without_target
from lcm_cli.serving.languages import AUTO
from lcm_cli.serving.requests import Fields, RefusedError, refusing
from lcm_cli.serving.service import LoadedModel, Service
from lcm_cli.serving.streams import Emit, Stream
from lcm_cli.space import DecodeOptions
from lcm_cli.text.length import Length
from lcm_cli.writing.answers import EXTRACTIVE, Answer, AnswerSentence
from lcm_cli.writing.summarize import summarize_all
from lcm_cli.writing.writer import WrittenContinuation, WrittenSentence, sampler

MOST_TEXTS = 20  # beams, and texts for a concept
MOST_TOKENS = 512  # of a decoded sentence
MOST_CONCEPTS = 256  # of a continuation
SEEDS = (1 << 32) - 1


def summarize(service: Service, fields: Fields) -> dict[str, Any]:
    """Summarize a text, in its own language or in the languages `to`."""
    fields.only("text", "lang", "to", "length", "model", "cite", "document", "seed")
    space, codes = service.space, _targets(service, fields)
    length = None
    if given := fields.text("length", ""):
        with refusing():
            length = Length.parse(given)
    model = service.model.answers if service.model else None
    if fields.choice("model", (AUTO, EXTRACTIVE)) == EXTRACTIVE:
        model = None
    seed = fields.integer("seed", 0, 0, SEEDS)
    prepared = service.prepare(fields.text("text"), fields.text("lang", AUTO))
    service.check_size(prepared.size)
    window = embed([prepared], space)
    options: dict[str, Any] = {"cite": fields.flag("cite"), "seed": seed}
    if model is None:
        answer = summarize_all(window, space, codes, length, None, **options)[0]
    else:
        with service.model_turn():
            answer = summarize_all(window, space, codes, length, model, **options)[0]
    found = _answer(service, answer)
    if fields.flag("document"):
        document = prepared.document
        found["document"] = {"sentences": document.sentences, "paragraphs": document.paragraphs}
    return found


def _answer(service: Service, answer: Answer) -> dict[str, Any]:
    return {
        "lang": answer.lang,
        "method": answer.method,
        "model": service.model.name if answer.model and service.model else None,
        "fallback": answer.fallback,
        "length": answer.length,
        "total": answer.total,
        "sentences": [_sentence(sentence) for sentence in answer.sentences],
        "summaries": answer.texts,
    }


def _sentence(sentence: AnswerSentence) -> dict[str, Any]:
    sources = [
        {"index": source.index, "text": source.text, "similarity": _rounded(source.similarity)}
        for source in sentence.sources
    ]
    return {"texts": sentence.texts, "sources": sources}


def _rounded(similarity: Mapping[str, float]) -> dict[str, float]:
    return {code: round(value, 4) for code, value in similarity.items()}


def decode(service: Service, fields: Fields) -> dict[str, Any]:
    """Decode concepts into the languages `to`."""
    names = ("beam", "n_best", "max_tokens", "no_repeat_ngram", "sample", "temperature")
    fields.only("concepts", "to", *names, "top_k", "top_p", "seed")
    codes = _targets(service, fields)
    if not codes:
        raise RefusedError(400, "the field 'to' is missing")
    concepts_SD = _concepts(service, fields)
    service.check_size(len(concepts_SD) * len(codes))
    options = _decode_options(fields)
    found = service.space.decode(concepts_SD, codes, options)
    texts = {code: [best[0].text for best in rows] for code, rows in found.items()}
    if options.n_best == 1:
        return {"texts": texts}
    candidates = {
        code: [[{"text": t.text, "score": round(t.score, 4)} for t in row] for row in rows]
        for code, rows in found.items()
    }
    return {"texts": texts, "candidates": candidates}


def _concepts(service: Service, fields: Fields) -> np.ndarray:
    dim = service.space.dim
    try:
        with np.errstate(over="ignore"):  # numbers that are too large become infinite
            concepts_SD = np.array(fields.get("concepts"), dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise RefusedError(400, "'concepts' must be a list of lists of numbers") from error
    if concepts_SD.ndim != 2 or not len(concepts_SD):
        raise RefusedError(400, "'concepts' must be a list of lists of numbers")
    if concepts_SD.shape[1] != dim:
        message = f"the concepts have {concepts_SD.shape[1]} numbers each; {service.name} has {dim}"
        raise RefusedError(422, message)
    if not np.isfinite(concepts_SD).all():
        raise RefusedError(400, "'concepts' has a number that is too large")
    return concepts_SD


def _decode_options(fields: Fields) -> DecodeOptions:
    n_best = fields.integer("n_best", 1, 1, MOST_TEXTS)
    temperature = fields.number("temperature", 0.01, 10)
    top_p = fields.number("top_p", 0.001, 1)
    with refusing():
        return DecodeOptions(
            beam=fields.integer("beam", max(5, n_best), 1, MOST_TEXTS),
            n_best=n_best,
            max_tokens=fields.integer("max_tokens", 256, 1, MOST_TOKENS),
            no_repeat_ngram=fields.integer("no_repeat_ngram", 0, 0, MOST_TOKENS),
            sample=fields.flag("sample"),
            temperature=1.0 if temperature is None else temperature,
            top_k=fields.integer("top_k", 0, 0, 1 << 20),
            top_p=1.0 if top_p is None else top_p,
            seed=fields.integer("seed", 0, 0, SEEDS),
        )


def generate(service: Service, fields: Fields) -> dict[str, Any] | Stream:
    """Continue a text; with `stream`, each sentence is an event."""
    names = ("max_concepts", "min_concepts", "seed", "temperature", "steps", "guidance")
    fields.only("text", "lang", "to", "stream", *names)
    model = service.model
    if model is None:
        raise RefusedError(404, "this server has no concept model")
    codes = _targets(service, fields)
    options = _generate_options(model, fields)
    writer = model.writer
    prepared = service.prepare(fields.text("text"), fields.text("lang", AUTO))
    service.check_size((prepared.size + options.max_concepts) * max(1, len(codes)))
    plain = without_target(prepared.document, keep_plans=False)
    document = embed([type(prepared)(plain)], service.space)[0].document
    with refusing():
        writer.check(document, codes, options)

    def run(emit: Emit) -> WrittenContinuation:
        def show(number: int, sentence: WrittenSentence) -> None:
            emit("sentence", {"index": sentence.index, "texts": sentence.texts})

        with service.model_turn():
            return writer.continue_all([document], codes, options, on_sentence=show)[0]

    def stream(emit: Emit) -> None:
        done = run(emit)
        emit("done", {"texts": done.texts, "stop": done.stop})

    if fields.flag("stream"):
        return Stream(stream)
    done = run(lambda name, data: None)
    sentences = [{"index": each.index, "texts": each.texts} for each in done.sentences]
    return {
        "lang": done.lang, "model": model.name, "sentences": sentences, "texts": done.texts,
        "stop": done.stop,
    }  # fmt: skip


def _generate_options(model: LoadedModel, fields: Fields) -> GenerateOptions:
    steps = fields.integer("steps", 0, 1, 1000) or None
    given = {
        "temperature": fields.number("temperature", 0, 10),
        "steps": steps,
        "guidance": fields.number("guidance", 0, 100),
    }
    most = fields.integer("max_concepts", 32, 1, MOST_CONCEPTS)
    least = fields.integer("min_concepts", 0, 0, most)
    seed = fields.integer("seed", 0, 0, SEEDS)
    own = model.writer.model
    known = {each.name for each in dataclasses.fields(own.Options)}
    for name, value in given.items():
        if value is not None and name not in known:
            raise RefusedError(400, f"a {own.config.architecture} model has no {name!r}")
    with refusing():
        return GenerateOptions(most, least, seed=seed, sampler=sampler(own, **given))


def _targets(service: Service, fields: Fields) -> list[str]:
    with refusing():
        return find_languages(fields.texts("to"), service.space.languages, service.space.name)
