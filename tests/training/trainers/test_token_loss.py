"""SONAR-LLM's loss on tokens: its value and gradient, the tokens read for it, and learning."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rounding import additions, assert_near
from torch.nn import functional as F

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.errors import IntegrityError
from lcm_cli.models.checkpoint import load_model
from lcm_cli.models.config import preset
from lcm_cli.models.interface import Batch, Noise
from lcm_cli.space import DecodeOptions, Space, load_space
from lcm_cli.space.tokenizer import EOS
from lcm_cli.training.data_options import DataOptions, DataSet
from lcm_cli.training.prepare import make_trainer, open_data, tokenizing
from lcm_cli.training.recipes.load import load_recipe
from lcm_cli.training.trainers import token_loss
from lcm_cli.training.trainers.concept_model import ModelTrainer
from lcm_cli.transfer.convert import convert

STORIES = {
    "eng_Latn": ["The cat sleeps.", "A dog comes in.", "The cat runs away.", "It is quiet now."],
    "fra_Latn": ["Il pleut.", "Je reste à la maison.", "Je lis un livre."],
}
CPU = torch.device("cpu")
RECIPE = """
kind = "model"
name = "micro"
[data]
train = ["{data}"]
validation = ["{data}"]
batch_concepts = {concepts}
[model]
architecture = "sonar_llm"
size = "nano"
[train]
steps = 100
learning_rate = 3e-3
warmup = 5
"""


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("tiny", device="cpu")


@pytest.fixture
def corpus(tmp_path: Path, space: Space) -> str:
    path = tmp_path / "data.parquet"
    with open_writer(str(path), SpaceInfo("tiny", space.fingerprint, 384)) as writer:
        for lang, said in STORIES.items():
            concepts = space.encode(said, lang).concepts
            writer.write(Document(lang, lang, sentences=said, concepts=concepts))
    return str(path)


@pytest.fixture
def start(corpus: str, tmp_path: Path) -> Callable[..., ModelTrainer]:
    def begin(*changes: str, concepts: int = 100) -> ModelTrainer:
        path = tmp_path / "micro.toml"
        path.write_text(RECIPE.format(data=corpus, concepts=concepts))
        return make_trainer(load_recipe(path, changes), tmp_path, CPU)  # type: ignore[arg-type]

    return begin


def texts(batch: Batch, space: Space) -> list[list[tuple[int, str]]]:
    """Return the language token and the text of each concept of a batch."""
    assert batch.tokens is not None
    return [
        [(int(row[0]), space.tokenizer.decode([row.tolist()])[0]) for row in rows]
        for rows in batch.tokens
    ]


def plainly(space: Space, concept_D: torch.Tensor, sentence: Sequence[int]) -> torch.Tensor:
    """Return the cross-entropy of one sentence, from all logits at once."""
    decoder = token_loss.TokenLoss(space).decoder
    hidden_TM = decoder(concept_D[None], [[EOS, *sentence[:-1]]])
    return F.cross_entropy(
        decoder.project(hidden_TM)[1:], torch.tensor(sentence[1:]), reduction="sum"
    )


@pytest.mark.slow
@pytest.mark.parametrize("together", [4096, 20, 1])
def test_it_is_the_cross_entropy_through_the_decoder(
    space: Space, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """The loss does not depend on the number of sentences decoded at once; nor does its gradient,
    which is that of plain autograd."""
    monkeypatch.setattr(token_loss, "TOGETHER", together)
    said = [*STORIES["eng_Latn"], "Tom.", "word " * 400]
    sentences = tokenizing(space)(said, "eng_Latn")
    longest = space.decoder.config.max_length
    assert len(sentences[-1]) > longest  # it is cut off
    concepts = space.encode(said, "eng_Latn").concepts
    given_ND = torch.from_numpy(concepts).roll(1, 0).requires_grad_()
    errors_N = token_loss.TokenLoss(space)(given_ND, sentences)
    weights_N = torch.arange(1.0, 7.0)
    (errors_N * weights_N).sum().backward()

    other_ND = given_ND.detach().clone().requires_grad_()
    rows = [row.tolist()[:longest] for row in sentences]
    expected_N = torch.stack([plainly(space, other_ND[n], row) for n, row in enumerate(rows)])
    (expected_N * weights_N).sum().backward()
    terms = 2 * additions(space.decoder)  # forward and backward
    assert_near(errors_N, expected_N, terms)
    assert_near(given_ND.grad, other_ND.grad, terms)


def test_the_true_concept_says_its_sentence_best(space: Space) -> None:
    said = STORIES["eng_Latn"]
    concepts_ND = torch.from_numpy(space.encode(said, "eng_Latn").concepts)
    judge, sentences = token_loss.TokenLoss(space), tokenizing(space)(said, "eng_Latn")
    own_N, other_N = judge(concepts_ND, sentences), judge(concepts_ND.roll(1, 0), sentences)
    assert (own_N < other_N).all() and not own_N.requires_grad


def test_no_sentence_has_no_loss(space: Space) -> None:
    nothing_ND = torch.zeros(0, 384, requires_grad=True)
    found_N = token_loss.TokenLoss(space)(nothing_ND, [])
    found_N.sum().backward()
    assert found_N.shape == (0,) and nothing_ND.grad is not None


@pytest.mark.parametrize("packing", [False, True])
def test_batches_hold_what_their_concepts_say(corpus: str, space: Space, packing: bool) -> None:
    options = DataOptions((corpus,), (corpus,), batch_concepts=100, packing=packing, wrap=20)
    with open_data(options, space, seed=0, config=preset("sonar_llm", "nano")) as data:
        batches = [data.batch(0), *data.validation()]
    english, french = (space.tokenizer.language(lang) for lang in STORIES)
    around = (english, "Begin of text."), (english, "End of sequence.")
    whole = [
        [around[0], *((language, text) for text in said), around[1]]
        for language, said in zip((english, french), STORIES.values(), strict=True)
    ]
    for number, batch in enumerate(batches):
        found = texts(batch, space)
        rows = [whole[0] + whole[1], whole[1] + whole[0]] if packing and not number else whole
        assert all(row in rows for row in found)
        for row, (length, each) in enumerate(zip(batch.lengths_B.tolist(), found, strict=True)):
            assert len(each) == length
            for place, (language, text) in enumerate(each):
                lang = "fra_Latn" if language == french else "eng_Latn"
                concept = space.encode([text], lang).concepts[0]
                np.testing.assert_allclose(batch.concepts_BSD[row, place], concept, atol=2e-3)


def test_pieces_pairs_and_plans_say_what_they_are(tmp_path: Path, space: Space) -> None:
    width = pa.list_(pa.list_(pa.float16(), 384))
    said = {
        "sentences": [["One.", "Two.", "Three.", "Four."], ["A long source."]],
        "target_sentences": [None, ["Short."]],
        "plans": [["Counting up.", "And on."], None],
    }
    columns = {name: pa.array(value, pa.list_(pa.string())) for name, value in said.items()}
    for name, value in said.items():
        vectors = [
            None if part is None else list(space.encode(part, "eng_Latn").concepts.astype("f2"))
            for part in value
        ]
        columns[name.replace("sentences", "concepts").replace("plans", "plan_concepts")] = pa.array(
            vectors, width
        )
    columns["paragraphs"] = pa.array([[1, 1, 2, 2], None], pa.list_(pa.int32()))
    path = tmp_path / "mixed.parquet"
    pq.write_table(pa.table(columns), path)
    config = replace(preset("sonar_llm", "nano"), prompts={"summarize": "In short:"}, begin_text="")
    options = DataOptions((DataSet(str(path), task="summarize"),), wrap=5, plan=True)
    with open_data(options, space, seed=0, config=config) as data:
        found = [[text for _, text in row] for row in texts(data.batch(0), space)]
    pair = ["A long source.", "In short:", "Short.", "End of sequence."]
    plain = ["Counting up.", "One.", "Two.", "[BREAK]"]
    plain += ["And on.", "Three.", "Four.", "[BREAK]", "End of sequence."]
    assert sorted(found) == sorted([pair, plain[:4], plain[4:]])


def test_others_read_no_sentences(corpus: str, space: Space) -> None:
    for config in (preset("base", "nano"), replace(preset("sonar_llm", "nano"), loss="squared")):
        with open_data(DataOptions((corpus,)), space, seed=0, config=config) as data:
            assert data.batch(0).tokens is None


@pytest.mark.parametrize("change", ["data.packing=true", "train.accumulate=2"])
def test_packing_and_parts_change_no_number(start, change: str) -> None:
    still = ("train.clip=0", "model.transformer.dropout=0.0")
    whole, other = start(*still), start(*still, change)
    for _ in range(3):
        left, right = whole.train_step(), other.train_step()
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)


def test_a_decoder_from_int8(random_space: Path, tmp_path: Path) -> None:
    convert(str(random_space), tmp_path / "int8", "int8")
    convert(str(tmp_path / "int8"), tmp_path / "float32", "float32")
    rows = load_space(str(random_space)).tokenize(STORIES["eng_Latn"], "eng_Latn")
    concepts_ND = torch.randn(len(rows), 32)
    found = [
        token_loss.TokenLoss(load_space(str(tmp_path / name), device="cpu"))(
            concepts_ND, [np.array(row) for row in rows]
        )
        for name in ("int8", "float32")
    ]
    torch.testing.assert_close(*found)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision(start, precision: str) -> None:
    full, half = start(), start(f'train.precision="{precision}"')
    assert half.train_step()["loss"] == pytest.approx(full.train_step()["loss"], rel=0.02)


@pytest.mark.slow
def test_it_learns_to_say_the_next_sentence(
    start, corpus: str, space: Space, tmp_path: Path
) -> None:
    broken(
        corpus, lambda table: table.slice(0, 1)
    )  # two documents would begin alike and continue differently
    trainer = start("train.steps=250")
    judge = trainer.model.token_loss
    before = [p.clone() for p in judge.decoder.parameters()]
    first = trainer.evaluate(tmp_path)["eval"]["loss"]
    losses = [trainer.train_step()["loss"] for _ in range(250)]
    assert losses[-1] < 0.1 * losses[0]
    assert trainer.evaluate(tmp_path)["eval"]["loss"] < 0.1 * first
    model = load_model(trainer.export(tmp_path))
    said = STORIES["eng_Latn"]
    opening = space.encode(["Begin of text.", *said], "eng_Latn").concepts
    batch = Batch.of([torch.from_numpy(opening)])
    predicted_SD = model.predict(batch, model.Options(), Noise([0]))[0].numpy()
    found = space.decode(predicted_SD, ["eng_Latn"], DecodeOptions(beam=1))["eng_Latn"]
    assert [best[0].text for best in found] == said
    # The decoder belongs to the space: it is neither changed nor saved.
    assert all(map(torch.equal, before, judge.decoder.parameters()))
    assert not any("decoder" in name for name in model.state_dict())
    assert all(p.grad is None for p in judge.decoder.parameters())
    assert sum(map(len, (group["params"] for group in trainer.optimizers[0].param_groups))) == len(
        list(model.parameters())
    )


def broken(corpus: str, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(corpus)), corpus)


def replaced(name: str, values: Sequence[object]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        kind = table.schema.field(name).type
        return table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop(["sentences"]), "no sentences to learn tokens from"),
        (replaced("sentences", [None, STORIES["fra_Latn"]]), "4 concepts and 0 sentences"),
        (
            replaced("sentences", [["One.", None, "Three.", "Four."], STORIES["fra_Latn"]]),
            "row 0 has 4 concepts and 3 sentences",
        ),
        (replaced("lang", ["eng_Latn", "xyz_Latn"]), "row 1: .*xyz_Latn"),
    ],
)
def test_what_lacks_is_named(start, corpus: str, change, words: str) -> None:
    broken(corpus, change)
    with pytest.raises(IntegrityError, match=words):
        start().train_step()


def test_a_language_that_is_not_named_is_the_space_s_own(start, corpus: str, space: Space) -> None:
    broken(corpus, replaced("lang", [None, ""]))
    languages = {lang for row in texts(start().data.batch(0), space) for lang, _ in row}
    assert languages == {space.tokenizer.language("eng_Latn")}
