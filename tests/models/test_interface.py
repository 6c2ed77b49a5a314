"""Batches, and the behaviour common to all kinds of models."""

from typing import Any

import pytest
import torch
from rounding import additions, assert_near

from lcm_cli.models.checkpoint import build
from lcm_cli.models.config import preset
from lcm_cli.models.interface import Batch, Loss, Noise

DIM = 12


@pytest.fixture(params=["base", "two_tower", "one_tower", "quant", "sonar_llm"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return build(preset(request.param, "nano", concept_dim=DIM, max_length=8)).eval()


def _documents(*lengths: int) -> list[torch.Tensor]:
    return [torch.randn(length, DIM) for length in lengths]


def test_positions_to_learn() -> None:
    batch = Batch.of(_documents(4, 2))
    assert batch.learned().sum(dim=1).tolist() == [4, 2]
    assert batch.learned(first=3).sum(dim=1).tolist() == [1, 0]
    assert batch.places().tolist() == [[0, 1, 2, 3]]
    given = Batch.of(_documents(4, 3), [1, 2])
    assert given.learned().tolist() == [[False, True, True, True], [False, False, True, False]]
    assert given.places().tolist() == [[1, 2, 3], [2, 3, 3]]
    concepts, real = given.targets(given.concepts_BSD)
    assert real.tolist() == [[True, True, True], [True, False, False]]
    assert torch.equal(concepts[0], given.concepts_BSD[0, 1:])
    assert torch.equal(concepts[1, 0], given.concepts_BSD[1, 2])
    moved = given.to("cpu")
    assert torch.equal(moved.places(), given.places())


def test_buckets_hold_every_level_once() -> None:
    loss = Loss(torch.zeros(()), torch.ones(100), torch.arange(100))
    assert loss.buckets(100) == [(10.0, 10)] * 10
    assert sum(count for _, count in loss.buckets(100, 7)) == 100


def test_documents_of_one_sentence(model: Any) -> None:
    batch = Batch.of(_documents(1, 1))
    assert bool(model.loss(batch).mean.isfinite())
    assert model.predict(batch, model.Options(), Noise([0, 0])).shape == (2, 0, DIM)


def test_targets_after_a_source_give_gradients(model: Any) -> None:
    """With long sources, the places of short targets would lie beyond the longest document."""
    model.train()
    loss = model.loss(Batch.of(_documents(8, 8), [7, 1]))
    assert loss.targets == 8
    loss.mean.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_losses_repeat_under_a_generator(model: Any) -> None:
    batch = Batch.of(_documents(5, 3))
    values = [model.loss(batch, torch.Generator().manual_seed(4)).value for _ in range(2)]
    assert torch.equal(values[0], values[1])


def test_padding_is_never_seen(model: Any) -> None:
    batch = Batch.of(_documents(6, 3))
    longer = Batch(batch.concepts_BSD.clone(), batch.lengths_B)
    longer.concepts_BSD[1, 3:] = 50.0
    values = [model.loss(b, torch.Generator().manual_seed(4)).value for b in (batch, longer)]
    assert_near(values[0], values[1], additions(model))
