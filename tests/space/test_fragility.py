"""Fragility of concepts: its measurement, its storage and its use as a weight of the loss."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rounding import additions, assert_near

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.errors import IntegrityError
from lcm_cli.models.checkpoint import build
from lcm_cli.models.config import preset
from lcm_cli.models.diffusion_training import fragility_weights
from lcm_cli.models.interface import FRAGILITY, Batch
from lcm_cli.space import load_space
from lcm_cli.space.fragility import DRAWS, ChannelStatistics, channel_statistics, score
from lcm_cli.training.data.batches import ConceptData
from lcm_cli.training.data_options import DataOptions
from lcm_cli.training.parallel import deal

DIM = 12
TEXT = ["The cat sleeps.", "A dog runs through the garden.", "It is warm in the house."]
LOW, HIGH = -8.0, -4.0  # a, b


def encode(sentences: Sequence[str]) -> torch.Tensor:
    return torch.zeros(len(sentences), DIM)


def document(name: str, scores: Sequence[float] | None, **more: Any) -> Document:
    """Return a document with one concept per score, or three concepts without scores."""
    count = 3 if scores is None else len(scores)
    concepts = np.random.default_rng(sum(map(ord, name))).normal(size=(count, DIM))
    made = Document(name, "eng_Latn", concepts=concepts.astype(np.float32), **more)
    made.fragility = None if scores is None else np.array(scores, np.float32)
    return made


def write(path: Path, *documents: Document) -> str:
    with open_writer(str(path), SpaceInfo("s", "f", DIM), dtype="float32") as writer:
        for each in documents:
            writer.write(each)
    return str(path)


def data(path: str, **options: Any) -> ConceptData:
    chosen = DataOptions((path,), **options)
    return ConceptData(chosen, dim=DIM, max_length=64, seed=0, encode=encode, fragility=True)


def model(**objective: Any) -> Any:
    torch.manual_seed(0)
    changes = {"condition_dropping": 0.0, "weighting": "fragility"} | objective
    small: Any = preset("two_tower", "nano", concept_dim=DIM)
    made: Any = build(replace(small, objective=replace(small.objective, **changes)))
    for parameter in made.parameters():  # AdaLN starts at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def test_equation_19() -> None:
    found = fragility_weights(torch.tensor([-1.0, -0.5, 0.0, math.nan]), -4.0, 3.5)
    assert found.tolist() == pytest.approx([0.999447, 0.995930, 0.970688, 1.0], abs=1e-6)
    found = fragility_weights(torch.tensor([-1.0, -0.5, 0.0]), -8.0, -4.0)
    assert found.tolist() == pytest.approx([0.982014, 0.5, 0.017986], abs=1e-6)


def test_equation_27() -> None:
    around = ChannelStatistics(np.array([1.0, 2.0], np.float32), np.array([0.5, 2.0], np.float32))
    x_SD, noise_SD = np.array([[3.0, 4.0]]), np.array([[1.0, -1.0]])
    # 1 + sqrt(0.64) 2 + sqrt(0.36) 0.5, and 2 + sqrt(0.64) 2 - sqrt(0.36) 2
    assert around.noised(x_SD, np.array([[0.36]]), noise_SD).tolist() == [pytest.approx([2.9, 2.4])]


def test_the_weighted_loss_and_its_gradient() -> None:
    """The loss is the weighted sum of errors, and its gradient that of the weighted targets."""
    x_SD = torch.randn(3, DIM, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([[-1.0, -0.2, math.nan]])
    weighing = model(fragility_a=LOW, fragility_b=HIGH)
    batch = Batch.of([x_SD])

    def loss(fragility_BS: torch.Tensor | None) -> Any:
        weighing.zero_grad()
        scored = replace(batch, columns={} if fragility_BS is None else {FRAGILITY: fragility_BS})
        found = weighing.loss(scored, torch.Generator().manual_seed(1))
        found.value.backward()
        parts = [p.grad.ravel() for p in weighing.parameters() if p.grad is not None]
        return found, torch.cat(parts)

    plain, _ = loss(None)
    scored, gradient = loss(scores)
    weights = fragility_weights(scores[0], LOW, HIGH)
    assert torch.equal(scored.errors_N, plain.errors_N) and plain.weights_N is None
    assert scored.value.item() == pytest.approx(float((weights * plain.errors_N).sum()), rel=1e-6)
    # Give all targets but one a weight of almost 0: the gradient is that of the one's error.
    alone = []
    for number in range(3):
        only = torch.full((1, 3), 100.0)  # sigmoid(-804) is 0
        only[0, number] = math.nan
        alone.append(loss(only)[1])
    expected = sum(w * g for w, g in zip(weights, alone, strict=True))
    assert_near(gradient, expected, 2 * additions(weighing))
    assert float(weights[0] / weights[1]) > 10  # the robust one counts over ten times as much


def test_scores_without_the_weighting_change_nothing() -> None:
    batch = Batch.of([torch.randn(3, DIM)])
    scored = replace(batch, columns={FRAGILITY: torch.rand(1, 3) - 1})
    for weighting in ("none", "clamped_snr"):
        plain = model(weighting=weighting)
        losses = [plain.loss(b, torch.Generator().manual_seed(1)).value for b in (batch, scored)]
        assert torch.equal(*losses)


def test_scores_stay_with_their_concepts(tmp_path: Path) -> None:
    """A concept keeps its score wherever it is placed; inserted sentences have none."""
    made = [document("a", [-0.1, -0.2, -0.3, -0.4, -0.5]), document("b", [-0.6, -0.7])]
    path = write(tmp_path / "a.parquet", *made)
    expected = {
        tuple(x_D.tolist()): float(score_)
        for each in made
        for x_D, score_ in zip(each.concepts, each.fragility, strict=True)  # type: ignore[arg-type]
    }
    for options in ({}, {"packing": True}, {"wrap": 3, "prefix": ("Go.",)}, {"plan": True}):
        with data(path, **options) as read:
            whole = read.batch(0)
        hands = [whole.rows(hand) for hand in deal(whole.lengths_B.tolist(), 2) if hand]
        for batch in (whole.to("cpu"), *hands):
            assert batch.fragility_BS is not None
            for row, length in enumerate(batch.lengths_B.tolist()):
                for x_D, value in zip(
                    batch.concepts_BSD[row, :length].tolist(),
                    batch.fragility_BS[row].tolist(),
                    strict=False,
                ):
                    assert value == expected.get(tuple(x_D), value) or tuple(x_D) not in expected
                    assert math.isnan(value) == (tuple(x_D) not in expected)
        count = int((~whole.fragility_BS.isnan()).sum())
        assert count == 7 or options.get("wrap") == 3


def test_a_pair_is_weighted_by_its_target(tmp_path: Path) -> None:
    pair = document("a", None, target=document("t", [-0.25, -0.5]))
    with data(write(tmp_path / "a.parquet", pair, document("b", [-0.75]))) as read:
        batch = read.batch(0)
    found = {row[~row.isnan()].numel(): row[~row.isnan()].tolist() for row in batch.fragility_BS}
    assert found == {2: [-0.25, -0.5], 1: [-0.75]}
    loss = model(fragility_a=LOW, fragility_b=HIGH).loss(batch, torch.Generator().manual_seed(0))
    assert loss.weights_N is not None and len(loss.weights_N) == loss.targets == 5
    by_hand = fragility_weights(torch.tensor([-0.25, -0.5, -0.75]), LOW, HIGH)
    assert sorted(loss.weights_N.tolist()) == sorted([*by_hand.tolist(), 1.0, 1.0])


def test_packed_equals_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", *(document(n, [-0.9, -0.1, -0.4]) for n in "abc"))
    weights = []
    for packing in (False, True):
        with data(path, packing=packing) as read:
            batch = read.batch(0)
        assert (batch.segments_BS is not None) == packing
        found = model().loss(batch, torch.Generator().manual_seed(0)).weights_N
        weights.append(sorted(found.tolist()))
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (document("a", None), "0 values of fragility for 3 sentences"),
        (document("a", [math.nan, -1.0]), "NaN or infinite value in fragility"),
        (document("a", [-1.0], target=document("t", None)), "0 values of target_fragility for 3"),
    ],
)
def test_missing_scores(tmp_path: Path, made: Document, message: str) -> None:
    path = write(tmp_path / "a.parquet", made)
    with pytest.raises(IntegrityError, match=message) as error, data(path) as read:
        read.batch(0)
    assert "lcm embed TEXT -o DATASET/ --fragility" in error.value.hint


def test_files_without_the_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", document("a", [-1.0]))
    pq.write_table(pq.read_table(path).drop_columns(["fragility"]), path)
    with pytest.raises(IntegrityError, match="no column 'fragility'"):
        data(path)


def test_measured_scores() -> None:
    """Scores lie in [-1, 0], depend only on their own sentence, and rise with the noise."""
    tiny = load_space("tiny", device="cpu")
    made = Document("d", "eng_Latn", sentences=[*TEXT, TEXT[0]])
    made.concepts = tiny.encode(made.sentences, "eng_Latn").concepts
    around = channel_statistics([made], tiny)
    told: list[int] = []
    score([made], tiny, around, told.append)
    found = made.fragility
    assert found is not None and found.shape == (4,) and found.dtype == np.float32
    assert (found >= -1).all() and (found <= 0).all() and found[0] == found[3]
    assert sum(told) == DRAWS * len(TEXT)
    alone = Document("e", "eng_Latn", sentences=TEXT[1:2], concepts=made.concepts[1:2])
    score([alone], tiny, around)
    assert alone.fragility == pytest.approx(found[1:2], abs=1e-6)
    means = []
    for strength in (0.0, 3.0):
        score([made], tiny, ChannelStatistics(around.mean_D, around.std_D * strength))
        assert made.fragility is not None
        means.append(made.fragility.mean())
    assert means[0] < means[1] - 0.1
