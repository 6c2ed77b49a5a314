"""Breaks and plans: their places in training data, and the output of a model trained with them."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcm_cli.documents import Document, SpaceInfo, open_writer, read_concepts
from lcm_cli.errors import IntegrityError
from lcm_cli.space import load_space
from lcm_cli.text import paragraphs
from lcm_cli.training.data.batches import ConceptData
from lcm_cli.training.data_options import DataOptions
from lcm_cli.training.loop import Run
from lcm_cli.training.parallel import deal
from lcm_cli.training.prepare import make_trainer
from lcm_cli.training.recipes.load import load_recipe
from lcm_cli.training.recipes.model import ModelRecipe

DIM = 4
FIXED = {"End of text.": -1.0, "[BREAK]": -2.0, "Go.": -3.0, "Short:": -4.0}


def encode(sentences: Sequence[str]) -> torch.Tensor:
    return torch.tensor([[FIXED[text]] * DIM for text in sentences])


def rows(first: int, count: int) -> np.ndarray:
    return np.repeat(np.arange(first, first + count, dtype=np.float16)[:, None], DIM, axis=1)


def document(sizes: Sequence[int], plans: bool = False, target: int = 0, **more: Any) -> Document:
    """Sentences 0, 1, 2 ... in paragraphs of these sizes; plans 100, 101 ..., targets 200 ..."""
    numbers = [number for number, size in enumerate(sizes) for _ in range(size)]
    made = Document("d", "eng_Latn", paragraphs=numbers, concepts=rows(0, len(numbers)), **more)
    if plans:
        made.plans = Document("d", concepts=rows(100, len(sizes)))
    if target:
        made.target = Document("d", concepts=rows(200, target))
    return made


def write(path: Path, *documents: Document) -> str:
    with open_writer(str(path), SpaceInfo("s", "f", DIM)) as writer:
        for each in documents:
            writer.write(each)
    return str(path)


def read(path: str, **more: Any) -> tuple[list[list[int]], ConceptData]:
    """Return the numbers in each row of the first epoch."""
    options = DataOptions((path,), plan=True, **more)
    with ConceptData(
        options, dim=DIM, max_length=64, seed=0, encode=encode, prompts={"summarize": "Short:"}
    ) as data:
        batches = [data.batch(number) for number in range(data.batches_per_epoch)]
        found = [
            batch.concepts_BSD[row, :length, 0].int().tolist()
            for batch in batches
            for row, length in enumerate(batch.lengths_B.tolist())
        ]
        return found, data


def test_breaks_close_paragraphs(tmp_path: Path) -> None:
    found, data = read(write(tmp_path / "a.parquet", document([2, 3])))
    assert found == [[0, 1, -2, 2, 3, 4, -2, -1]]
    assert (data.plans, data.concepts) == (False, 8)


def test_plans_open_them(tmp_path: Path) -> None:
    """The first plan comes at the very start, the others after a break."""
    found, data = read(write(tmp_path / "a.parquet", document([2, 3], plans=True)), prefix=("Go.",))
    assert found == [[-3, 100, 0, 1, -2, 101, 2, 3, 4, -2, -1]]
    assert data.plans


def test_short_paragraphs_are_joined_and_long_ones_cut(tmp_path: Path) -> None:
    found, _ = read(write(tmp_path / "a.parquet", document([1, 2, 1, 11], plans=True)))
    first = [101, 0, 1, 2, 3, -2]  # the plan of the paragraph with most of its sentences
    rest = [103, *range(4, 9), -2, 103, *range(9, 15), -2]
    assert found == [[*first, *rest, -1]]


def test_pairs_are_left_as_they_are(tmp_path: Path) -> None:
    pair, plain = document([2, 2], target=2), document([1, 1])
    found, _ = read(write(tmp_path / "a.parquet", pair, plain), suffix=())
    assert sorted(found) == [[0, 1, -2], [0, 1, 2, 3, 200, 201]]


def test_documents_that_do_not_say_are_one_paragraph(tmp_path: Path) -> None:
    made = Document("d", concepts=rows(0, 3))
    assert read(write(tmp_path / "a.parquet", made))[0] == [[0, 1, 2, -2, -1]]


def test_long_documents_are_wrapped_with_their_breaks(tmp_path: Path) -> None:
    found, _ = read(write(tmp_path / "a.parquet", document([4] * 6)), wrap=8)
    told = [each for row in sorted(found, key=max) for each in row]
    paragraphs_of_four = [[*range(4 * n, 4 * n + 4), -2] for n in range(6)]
    assert told == [each for part in paragraphs_of_four for each in part] + [-1]
    assert all(len(row) <= 8 for row in found)


def test_packing_and_validation_have_them_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", document([2]), document([3]))
    options = DataOptions((path,), (path,), plan=True, packing=True)
    with ConceptData(options, dim=DIM, max_length=64, seed=0, encode=encode) as data:
        packed, held = data.batch(0), data.validation()
    assert packed.concepts_BSD[0, :, 0].tolist() == [0, 1, 2, -2, -1, 0, 1, -2, -1]
    assert held[0].concepts_BSD[0, :4, 0].tolist() == [0, 1, -2, -1]


def test_the_batch_tells_what_is_woven_in(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", document([2, 3], plans=True), document([2], plans=True))
    for more in ({"packing": True}, {"prefix": ("Go.",)}, {"wrap": 4}):
        options = DataOptions((path,), (path,), plan=True, **more)
        with ConceptData(options, dim=DIM, max_length=64, seed=0, encode=encode) as data:
            whole, held = data.batch(0), data.validation()
        hands = [hand for hand in deal(whole.lengths_B.tolist(), 2) if hand]
        for batch in (whole, *map(whole.rows, hands), *held, whole.to("cpu")):
            assert batch.woven_BS is not None
            first_BS = batch.concepts_BSD[..., 0]
            assert torch.equal(batch.woven_BS, (first_BS == -2) | (first_BS >= 100))
            only, _ = batch.sentences()
            left = [first_BS[row][:n] for row, n in enumerate(batch.lengths_B.tolist())]
            left = [each[(each != -2) & (each < 100)].tolist() for each in left]
            assert only.lengths_B.tolist() == [len(each) for each in left]
            for row, numbers in enumerate(left):
                assert only.concepts_BSD[row, : len(numbers), 0].tolist() == numbers


def test_pairs_among_planned_documents_have_nothing_woven_in(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", document([2], target=2), document([2]))
    options = DataOptions((path,), plan=True)
    with ConceptData(options, dim=DIM, max_length=64, seed=0, encode=encode) as data:
        batch = data.batch(0)
    assert batch.woven_BS is not None and batch.sources_B is not None
    told = {
        int(source): mark.tolist()
        for source, mark in zip(batch.sources_B, batch.woven_BS, strict=True)
    }
    assert told == {2: [False] * 5, 0: [False, False, True, False, False]}


def test_some_documents_without_plans(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", document([2], plans=True), document([3]))
    with pytest.raises(IntegrityError, match="1 of 2 documents have plans"):
        read(path)


def test_plans_that_are_not_as_many_as_the_paragraphs(tmp_path: Path) -> None:
    wrong = document([2, 2], plans=True)
    wrong.plans = Document("d", concepts=rows(0, 3))
    path = write(tmp_path / "a.parquet", document([2], plans=True), wrong)
    with pytest.raises(IntegrityError, match=r"a.parquet row 1 has 3 plans and 2 paragraphs"):
        read(path)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.booleans())
def test_every_sentence_once_in_paragraphs_of_two_to_nine(sizes: list[int], plans: bool) -> None:
    numbers = [number for number, size in enumerate(sizes) for _ in range(size)]
    count = len(numbers)
    found = paragraphs.parts(numbers, count)
    assert found[0][0] == 0 and found[-1][1] == count
    assert all(end == begin for (_, end), (begin, _) in pairwise(found))
    assert all(2 <= end - begin <= 9 for begin, end in found) or count == 1
    order = paragraphs.order(numbers, count, len(sizes) if plans else 0).tolist()
    assert [row for row in order if row < count] == list(range(count))
    assert order.count(count + plans * len(sizes)) == len(found)
    if plans:
        named = [row - count for row in order if count <= row < count + len(sizes)]
        assert named == sorted(named) and len(named) == len(found)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "arrow", "safetensors"])
def test_every_format_keeps_plans(tmp_path: Path, suffix: str) -> None:
    made = document([2, 1], sentences=["A.", "B.", "C."])
    made.plans = Document("d", sentences=["P.", "Q."], concepts=rows(100, 2))
    _, found = read_concepts([write(tmp_path / f"a.{suffix}", made)])
    (again,) = found
    assert again.plans is not None and again.plans.sentences == ["P.", "Q."]
    assert np.array_equal(again.plans.concepts, rows(100, 2))


# --- a model that memorises a story, and tells it

STORY = [
    ["The cat sleeps.", "It is warm in the house."],
    ["A dog runs through the garden.", "He has found a ball."],
]
PLANS = ["This is about a cat.", "This is about a dog."]

RECIPE = """
kind = "model"
name = "planner"
[data]
train = ["{data}"]
plan = true
batch_concepts = 64
[model]
architecture = "base"
size = "nano"
transformer = {{ dropout = 0.0 }}
[train]
steps = 150
learning_rate = 5e-3
warmup = 5
eval_every = 1000
save_every = 1000
"""


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose model has memorised one story with its plans."""
    from lcm_cli.pipeline import embed, prepare_documents, space_info

    folder, tiny = tmp_path_factory.mktemp("planner"), load_space("tiny")
    text = "\n\n".join(" ".join(part) for part in STORY)
    story = Document("s", "eng_Latn", text=text, plans=Document("s", sentences=PLANS))
    embedded = embed([prepare_documents(story, tiny.languages, "tiny")], tiny)[0].document
    with open_writer(str(folder / "data.parquet"), space_info(tiny), dtype="float32") as writer:
        writer.write(embedded)
    (folder / "recipe.toml").write_text(RECIPE.format(data=folder / "data.parquet"))
    recipe = load_recipe(folder / "recipe.toml", ())
    assert isinstance(recipe, ModelRecipe)
    run = folder / "run"
    run.mkdir()
    assert Run(make_trainer(recipe, run, torch.device("cpu")), run).train()
    return run


def test_the_model_knows_of_breaks_and_plans(planner: Path) -> None:
    config = json.loads((planner / "model" / "config.json").read_text())
    assert (config["break_text"], config["plans"]) == ("[BREAK]", True)


def test_a_plan_is_reported_and_is_not_text(planner: Path) -> None:
    from lcm_cli.models import load_model
    from lcm_cli.writing.writer import generate

    tiny, model = load_space("tiny"), load_model(planner / "model")
    told: list[str] = []
    prompt = Document("s", "eng_Latn", text=" ".join(STORY[0]))
    prompt.plans = Document("s", sentences=PLANS[:1])
    done = generate(
        prompt, model, tiny, on_sentence=lambda each: told.append(each.texts["eng_Latn"])
    )
    expected = tiny.encode(STORY[1], "eng_Latn").concepts
    assert done.stop == "end"
    assert (done.prompt, len(done.sentences), done.breaks) == (3, 2, (0, 2))
    for each, concept in zip(done.sentences, expected, strict=True):
        assert cosine(each.concept_D, concept) > 0.95
    assert told == [each.texts["eng_Latn"] for each in done.sentences]
    (plan,) = done.plans
    assert plan.before == 1
    assert cosine(plan.concept_D, tiny.encode(PLANS[1:], "eng_Latn").concepts[0]) > 0.95
    assert done.texts["eng_Latn"] == " ".join(told)


def test_evaluation_reads_breaks_and_the_models_own_plans(planner: Path) -> None:
    from lcm_cli.evaluation.examples import Example
    from lcm_cli.evaluation.named_systems import load_systems
    from lcm_cli.evaluation.systems import Settings
    from lcm_cli.evaluation.tasks import Context, SharedSpace, Work, run_task

    tiny = load_space("tiny", device="cpu")
    (system,) = load_systems([str(planner)], tiny, Settings())
    space = SharedSpace(tiny)
    example = Example(1, "s", "eng_Latn", (*STORY[0], *STORY[1]), paragraphs=(0, 0, 1, 1))
    own_SD = space.concepts(example.source, "eng_Latn")
    batch = system.batch([own_SD], [example], space)
    assert batch.woven_BS is not None
    assert batch.woven_BS.tolist() == [[False, False, True, True, False, False]]
    predicted_BSD = system.predict(batch, [0])
    texts = [*PLANS, *STORY[0], *STORY[1], "[BREAK]"]
    known_ND = tiny.encode(texts, "eng_Latn").concepts

    def nearest(position: int) -> str:
        predicted_D = predicted_BSD[0, position].numpy()
        return max(zip(texts, known_ND, strict=True), key=lambda x: cosine(predicted_D, x[1]))[0]

    assert nearest(2) == PLANS[1]  # after the break
    # Without the filled-in plan it would predict the plan here, not the sentence.
    (record,) = run_task("next-concept", system, [example], Context(space, Work()))
    assert len(record["prediction"]) == 3 and record["source"] == list(example.source)
    assert nearest(3) == STORY[1][0]
    assert record["scores"]["ca_all"] == 1.0


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
