"""The concept models that come with lcm do, offline, what their cards say."""

import pytest

import lcm_cli
from lcm_cli.documents import Document
from lcm_cli.hub import cards
from lcm_cli.models.checkpoint import check_model_space
from lcm_cli.models.config import SpaceRef
from lcm_cli.models.generate import GenerateOptions

STORY = [
    "Once upon a time, there was a little girl named Lily.",
    "She loved to play in the park.",
    "One day, she found a big red ball.",
    "She was very happy.",
    'Her mom smiled and said, "You can keep it."',
    "They went home together.",
    "Lily played with the ball every day.",
]
BUNDLED = [name for name, card in cards.cards().items() if card.kind == "model" and card.files]


@pytest.fixture(scope="module")
def space():
    return lcm_cli.load_space("tiny", device="cpu")


@pytest.mark.parametrize("name", BUNDLED)
def test_belongs_to_the_bundled_space(name, space):
    config = lcm_cli.load_model(name, device="cpu").config
    check_model_space(config, SpaceRef("tiny", space.fingerprint), space.dim)
    assert set(config.prompts) == {"summarize", "expand"}


@pytest.mark.parametrize("name", BUNDLED)
def test_goes_on_with_a_story(name, space):
    model = lcm_cli.load_model(name, device="cpu")
    document = Document("lily", lang="eng_Latn", sentences=STORY)
    options = GenerateOptions(max_concepts=3, repeat_similarity=None)
    written = lcm_cli.generate(document, model, space, ["fra_Latn"], options)
    assert written.sentences
    assert written.texts["fra_Latn"].strip()


@pytest.mark.parametrize("name", BUNDLED)
def test_goes_on_for_five_sentences_without_repeating_itself(name, space):
    model = lcm_cli.load_model(name, device="cpu")
    document = Document("lily", lang="eng_Latn", sentences=STORY[:4])
    written = lcm_cli.generate(
        document, model, space, ["eng_Latn"], GenerateOptions(max_concepts=5)
    )
    assert len(written.sentences) == 5


@pytest.mark.parametrize("name", BUNDLED)
def test_summarizes_if_asked_for(name, space):
    document = Document("lily", lang="eng_Latn", sentences=STORY)
    answer = lcm_cli.summarize(document, space, model=name)
    assert 0 < len(answer.sentences) < len(STORY)


def test_no_model_stands_behind_summaries_unless_asked_for(space):
    document = Document("lily", lang="eng_Latn", sentences=STORY)
    assert lcm_cli.summarize(document, space).model is None
