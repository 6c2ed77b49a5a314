"""Summaries and expansions by a small concept model that was trained on a few."""

from typing import Any

import numpy as np
import pytest
import torch

from lcm_cli.documents import Document
from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.models.checkpoint import build, save
from lcm_cli.models.config import preset
from lcm_cli.pipeline import Prepared, embed
from lcm_cli.space import Space, load_space
from lcm_cli.text.length import Length
from lcm_cli.writing.answer_model import AnswerModel, load_answer_model
from lcm_cli.writing.answers import Answer
from lcm_cli.writing.expand import expand, expand_all
from lcm_cli.writing.summarize import summarize, summarize_all


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("tiny", device="cpu")


@pytest.fixture(scope="module")
def summarizer(taught: Any, space: Space) -> AnswerModel:
    model = load_answer_model(str(taught.folder), "summarize", space)
    assert model is not None
    return model


def embedded(space: Space, sentences: list[str], id: str = "a") -> Prepared:
    return embed([Prepared(Document(id, lang="eng_Latn", sentences=sentences))], space)[0]


def nearest(answer: Answer) -> list[str]:
    return [sentence.sources[0].text for sentence in answer.sentences]


def test_the_model_says_what_it_learned(taught: Any, space: Space) -> None:
    for name, story in taught.stories.items():
        document = Document(name, lang="en", sentences=story)
        summary = summarize(document, space, model=str(taught.folder))
        assert (summary.method, summary.model) == ("generated", str(taught.folder))
        assert (summary.fallback, summary.length, summary.total) == (None, None, 6)
        assert nearest(summary) == taught.summaries[name]
        assert summary.sentences[0].texts == {"eng_Latn": story[0]}
        assert all(s.sources[0].similarity["eng_Latn"] > 0.9 for s in summary.sentences)


def test_similarities_are_those_of_the_texts(taught: Any, space: Space) -> None:
    story = taught.stories["cat"]
    document = Document("cat", lang="en", sentences=story)
    summary = summarize(document, space, ["fra", "deu"], model=str(taught.folder))
    assert list(summary.texts) == ["fra_Latn", "deu_Latn"]
    concepts = space.encode(story, "eng_Latn").concepts
    for sentence in summary.sentences:
        best = []
        for code, text in sentence.texts.items():
            again = space.encode([text], code).concepts[0]
            cosines = concepts @ again / np.linalg.norm(concepts, axis=1) / np.linalg.norm(again)
            best.append(cosines)
            for source in sentence.sources:
                expected = pytest.approx(float(cosines[source.index - 1]), abs=1e-4)
                assert source.similarity[code] == expected
                assert source.text == story[source.index - 1]
        assert sentence.sources[0].index == int(np.mean(best, axis=0).argmax()) + 1


def test_a_bad_answer_is_replaced_and_the_others_are_not(
    taught: Any, space: Space, summarizer: AnswerModel
) -> None:
    window = [embedded(space, taught.stories["cat"])]
    window += [embedded(space, sentences, reason) for reason, sentences in taught.bad.items()]
    window += [embedded(space, taught.stories["boat"])]
    first, *bad, last = summarize_all(window, space, [], None, summarizer)
    assert (first.fallback, last.fallback) == (None, None)
    assert nearest(last) == taught.summaries["boat"]
    for (reason, sentences), answer in zip(taught.bad.items(), bad, strict=True):
        extractive = summarize(Document(reason, lang="en", sentences=sentences), space)
        assert (answer.fallback, answer.method) == (reason, "centroid")
        assert answer.texts == extractive.texts
        assert (answer.model, extractive.model) == (summarizer.name, None)


def test_a_summary_that_is_too_short_is_replaced(
    taught: Any, space: Space, summarizer: AnswerModel
) -> None:
    story = embedded(space, taught.stories["cat"])  # its summary has two sentences
    for length, reason in (("4", None), ("5", "short"), ("100%", "short")):
        (answer,) = summarize_all([story], space, [], Length.parse(length), summarizer)
        assert (answer.length, answer.fallback) == (length, reason)
    assert len(answer.sentences) == 6


def test_a_length_is_not_exceeded(taught: Any, space: Space, summarizer: AnswerModel) -> None:
    story = embedded(space, taught.stories["cat"])
    (answer,) = summarize_all([story], space, [], Length.parse("1"), summarizer)
    assert nearest(answer) == taught.summaries["cat"][:1]
    (answer,) = summarize_all([story], space, [], Length.parse("13w"), summarizer)
    assert nearest(answer) == taught.summaries["cat"]  # 7 and 5 words
    (answer,) = summarize_all([story], space, [], Length.parse("11w"), summarizer)
    assert nearest(answer) == taught.summaries["cat"][:1]


def test_a_document_beyond_the_context_is_summarized_in_parts(taught: Any, space: Space) -> None:
    # The context is 14: the model reads the three stories one by one, then their summaries.
    everything = [sentence for story in taught.stories.values() for sentence in story]
    document = Document("all", lang="en", sentences=everything)
    summary = summarize(document, space, model=str(taught.folder))
    assert summary.fallback is None
    assert nearest(summary) == [story[0] for story in taught.stories.values()]
    assert [s.sources[0].index for s in summary.sentences] == [1, 7, 13]


def test_a_very_long_document_comes_to_an_end(space: Space, summarizer: AnswerModel) -> None:
    concepts = np.random.default_rng(0).normal(size=(1000, space.dim)).astype(np.float32)
    for most in (1, summarizer.most):
        (answer,) = summarizer.answer([concepts], [most])
        assert answer.shape[1] == space.dim and len(answer) <= most


@pytest.mark.slow
def test_documents_do_not_change_each_other(
    taught: Any, space: Space, summarizer: AnswerModel
) -> None:
    window = [embedded(space, story, name) for name, story in taught.stories.items()]
    window.append(embedded(space, [s for story in taught.stories.values() for s in story]))
    for length in (None, Length.parse("30%")):
        together = summarize_all(window, space, [], length, summarizer)
        alone = [summarize_all([each], space, [], length, summarizer)[0] for each in window]
        assert [a.texts for a in together] == [a.texts for a in alone]


def test_expansion(taught: Any, space: Space) -> None:
    for name, story in taught.stories.items():
        document = Document(name, lang="en", sentences=story[:1])
        answer = expand(document, space, model=str(taught.folder))
        assert (answer.method, answer.fallback, answer.total) == ("generated", None, 1)
        assert len(answer.sentences) == 6
        written = space.encode([s.texts["eng_Latn"] for s in answer.sentences], "eng_Latn").concepts
        truth = space.encode(story, "eng_Latn").concepts
        assert (torch.cosine_similarity(*map(torch.from_numpy, (written, truth))) > 0.85).all()


def test_an_expansion_must_be_longer(taught: Any, space: Space) -> None:
    model = load_answer_model(str(taught.folder), "expand", space)
    assert model is not None
    window = [embedded(space, taught.bad["unrelated"])]
    (answer,) = expand_all(window, space, ["fra_Latn"], Length.parse("3000%", shorter=False), model)
    assert answer.fallback in ("short", "unrelated", "repetition")
    assert (answer.method, len(answer.sentences)) == ("source", 3)
    assert [s.sources[0].index for s in answer.sentences] == [1, 2, 3]


def test_a_model_whose_weights_are_damaged(taught: Any, space: Space) -> None:
    model = load_answer_model(str(taught.folder), "summarize", space)
    assert model is not None
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.fill_(torch.nan)
    window = [embedded(space, taught.stories["cat"])]
    with pytest.raises(IntegrityError, match=r"taught\d* predicts NaN"):
        summarize_all(window, space, [], None, model)


def test_which_model(taught: Any, space: Space, random_space: Any, tmp_path: Any) -> None:
    assert load_answer_model("extractive", "summarize", space) is None
    with pytest.raises(NotFoundError, match="nosuch"):
        load_answer_model("nosuch", "summarize", space)
    other = load_space(str(random_space), device="cpu")
    assert load_answer_model("auto", "summarize", other) is None
    assert load_answer_model(str(taught.folder), "summarize", other, must_suit=False) is None
    with pytest.raises(IntegrityError, match="width 384"):
        load_answer_model(str(taught.folder), "summarize", other)
    save(build(preset("base", "nano", concept_dim=space.dim)), tmp_path)
    assert load_answer_model(str(tmp_path), "summarize", space, must_suit=False) is None
    with pytest.raises(UsageError, match="was not trained to summarize"):
        load_answer_model(str(tmp_path), "summarize", space)


def test_a_space_without_a_model_cannot_expand(random_space: Any) -> None:
    other = load_space(str(random_space), device="cpu")
    with pytest.raises(NotFoundError, match="no model that expands"):
        expand(Document("a", lang="en", sentences=["Yes."]), other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two_tower", "one_tower", "quant", "sonar_llm"])
def test_models_that_know_nothing_are_refused(kind: str, space: Space, taught: Any) -> None:
    torch.manual_seed(1)
    prompts = {"summarize": "[SUMMARY]:"}
    size: dict[str, Any] = {"concept_dim": space.dim, "max_length": 64, "prompts": prompts}
    model: Any = build(preset(kind, "nano", **size)).eval()
    window = [embedded(space, taught.stories["cat"])]
    (answer,) = summarize_all(window, space, [], None, AnswerModel(model, kind, "summarize", space))
    assert answer.fallback in ("empty", "repetition", "unrelated", "language")
    assert answer.method == "centroid" and len(answer.sentences) == 3
