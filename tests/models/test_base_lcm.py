"""Base-LCM and SONAR-LLM beyond the comparison with official results."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.models.base_lcm import BaseLCM, BaseOptions
from lcm_cli.models.config import preset
from lcm_cli.models.interface import TOKENS, Batch, Noise
from lcm_cli.models.sonar_llm import SonarLLM

DIM = 8


def _batch(sources: list[int] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch.of([torch.randn(n, DIM, generator=generator) for n in (4, 6, 2)], sources)


@pytest.fixture
def model() -> BaseLCM:
    torch.manual_seed(0)
    return BaseLCM(preset("base", "nano", concept_dim=DIM)).eval()  # type: ignore[arg-type]


def test_learns_sentences_in_order(model: BaseLCM) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model.loss(_batch()).mean.item()
    for _ in range(80):
        loss = model.loss(_batch())
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
    assert loss.targets == 9
    assert model.loss(_batch()).mean.item() < 0.2 * first


def test_sources_are_not_targets(model: BaseLCM) -> None:
    assert model.loss(_batch([3, 2, 1])).targets == 1 + 4 + 1


def test_a_document_of_one_sentence_has_no_targets(model: BaseLCM) -> None:
    loss = model.loss(Batch.of([torch.randn(1, DIM)]))
    assert loss.targets == 0
    assert loss.mean.item() == 0


def test_temperature_is_the_deviation_of_the_noise(model: BaseLCM) -> None:
    batch = Batch.of([torch.randn(100, DIM)])
    mean = model.predict(batch, BaseOptions(), Noise([0]))
    spread = model.predict(batch, BaseOptions(0.5), Noise([0])) - mean
    assert spread.std().item() == pytest.approx(0.5, rel=0.1)
    with pytest.raises(UsageError, match="temperature -1"):
        BaseOptions(-1.0)


@pytest.fixture
def llama() -> SonarLLM:
    torch.manual_seed(0)
    return SonarLLM(preset("sonar_llm", "nano", concept_dim=DIM)).eval()  # type: ignore[arg-type]


def test_sonar_llm_learns_through_a_decoder(llama: SonarLLM) -> None:
    """The decoder's loss receives each prediction with the tokens of its own sentence."""
    batch, asked = _batch(), list[int]()
    squared = llama.loss(batch).value
    weight = torch.randn(DIM, 70)
    lengths = (4, 6, 2)
    tokens = [[np.array([10 * row + n], np.int32) for n in range(6)] for row in range(3)]

    def token_loss(prediction_ND: Tensor, sentences: Sequence[NDArray[np.int32]]) -> Tensor:
        goal_N = torch.tensor([int(sentence[0]) for sentence in sentences])
        asked.extend(goal_N.tolist())
        return torch.nn.functional.cross_entropy(prediction_ND @ weight, goal_N, reduction="none")

    llama.token_loss = token_loss
    with pytest.raises(IntegrityError, match="no tokens of their sentences"):
        llama.loss(batch)
    loss = llama.loss(replace(batch, columns={TOKENS: tokens}))
    assert asked == [10 * row + n for row, length in enumerate(lengths) for n in range(1, length)]
    assert loss.targets == len(asked)
    loss.value.backward()
    assert all(p.grad is not None for p in llama.parameters())
    assert squared != loss.value


def test_sonar_llm_temperature_is_relative(llama: SonarLLM) -> None:
    batch = Batch.of([torch.randn(200, DIM) * 0.01])
    mean = llama.predict(batch, BaseOptions(), Noise([0]))
    spread = llama.predict(batch, BaseOptions(0.3), Noise([0])) - mean
    ratio = spread.pow(2).mean(dim=-1).sqrt() / mean.pow(2).mean(dim=-1).sqrt()
    assert ratio.mean().item() == pytest.approx(0.3, rel=0.1)


def test_noise_depends_only_on_the_row() -> None:
    noise = Noise([7, 8, 9])
    first = noise.normal(3)
    noise.keep([2, 0])
    second = noise.normal(3)
    alone = Noise([9])
    assert torch.equal(alone.normal(3)[0], first[2])
    assert torch.equal(alone.normal(3)[0], second[0])
    assert Noise([0]).uniform().shape == (1,)
    assert not torch.equal(Noise([0]).normal(4), Noise([-1]).normal(4))
