"""The One-Tower: its attention mask, and the agreement of training and generation."""

import dataclasses

import pytest
import torch
from rounding import additions, assert_near
from torch import Tensor

from lcm_cli.models.config import DiffusionObjective, OneTowerConfig, TransformerConfig, preset
from lcm_cli.models.diffusion import DiffusionOptions
from lcm_cli.models.interface import Batch, Noise
from lcm_cli.models.one_tower import OneTowerLCM

LENGTH, DIM = 5, 16


@pytest.fixture(params=["learned", "rope"])
def model(request: pytest.FixtureRequest) -> OneTowerLCM:
    config = preset("one_tower", "nano", concept_dim=DIM, max_length=32)
    assert isinstance(config, OneTowerConfig)
    stack = dataclasses.replace(config.transformer, positions=request.param)
    torch.manual_seed(0)
    return OneTowerLCM(dataclasses.replace(config, transformer=stack)).eval()


def _document(rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, LENGTH, DIM, generator=generator)
    noisy = torch.randn(rows, LENGTH, DIM, generator=generator)
    return x, noisy, torch.randint(100, (rows, LENGTH), generator=generator)


def _interleaved(model: OneTowerLCM, x: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """Compute figure 7 literally: x0 x0_t x1 x1_t ..., with the mask filled in entry by entry."""
    rows, pairs = len(x), []
    for n in range(LENGTH):
        place = torch.full((rows, 1), n)
        clean = model.backbone.embed(x[:, n : n + 1], model.embed_time(torch.tensor(0)), place)
        tag = model.embed_time(t[:, n : n + 1])
        pairs += [clean, model.backbone.embed(noisy[:, n : n + 1], tag, place)]
    sees = torch.zeros(2 * LENGTH, 2 * LENGTH, dtype=torch.bool)
    for query in range(2 * LENGTH):
        for key in range(2 * LENGTH):
            earlier_and_clean = key // 2 < query // 2 and key % 2 == 0
            sees[query, key] = earlier_and_clean or key == query
    positions = torch.arange(LENGTH).repeat_interleave(2)
    h = model.backbone.transformer(torch.cat(pairs, dim=1), positions, sees[None, None])
    out: Tensor = model.postnet(h[:, 1::2])
    return out


def test_same_as_interleaved(model: OneTowerLCM) -> None:
    x, noisy, t = _document()
    assert_near(model(x, noisy, t), _interleaved(model, x, noisy, t), additions(model))


def test_no_position_sees_the_future_or_other_noisy_concepts(model: OneTowerLCM) -> None:
    x, noisy, t = _document()
    before = model(x, noisy, t)
    changed_x, changed_noisy = x.clone(), noisy.clone()
    changed_x[:, 3] += 1
    changed_noisy[:, 1] += 1
    after_x, after_noisy = model(changed_x, noisy, t), model(x, changed_noisy, t)
    assert torch.equal(after_x[:, :4], before[:, :4])
    assert not torch.allclose(after_x[:, 4], before[:, 4])
    others = [0, 2, 3, 4]
    assert_near(after_noisy[:, others], before[:, others], additions(model))


def test_dropped_positions_see_nothing(model: OneTowerLCM) -> None:
    x, noisy, t = _document()
    dropped = torch.zeros(2, LENGTH, dtype=torch.bool)
    dropped[0, 2] = dropped[1, 4] = True
    out = model(x, noisy, t, dropped_BS=dropped)
    other = model(torch.randn_like(x), noisy, t, dropped_BS=dropped)
    assert_near(out[dropped], other[dropped], additions(model))
    assert_near(out[~dropped], model(x, noisy, t)[~dropped], additions(model))


def test_denoising_only_the_targets_gives_the_same(model: OneTowerLCM) -> None:
    x, noisy, t = _document()
    places = torch.tensor([[2, 3], [3, 4]])
    rows = torch.arange(2)[:, None]
    out = model(x, noisy[rows, places], t[rows, places], places)
    assert_near(out, model(x, noisy, t)[rows, places], additions(model))


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [[3, 3], [4, 2]])
def test_against_a_cache_as_in_training(model: OneTowerLCM, lengths: list[int]) -> None:
    """The concept after each prompt, with and without context; earlier steps leave no trace."""
    x, noisy, _ = _document()
    state = model.begin(Batch(x, torch.tensor(lengths)), 8, DiffusionOptions())
    for t in (70, 7):
        places = torch.tensor(lengths)[:, None]
        rows, times = torch.arange(2), torch.full((2, 1), t)
        given = noisy[rows, lengths]
        conditional, unconditional = model.reader(state)(given, t, True)
        expected = model(x, given[:, None], times, places)[:, 0]
        alone = model(x, given[:, None], times, places, torch.ones(2, 1, dtype=torch.bool))[:, 0]
        assert_near(conditional, expected, additions(model))
        assert_near(unconditional, alone, additions(model))
    model.extend(state, x[rows, lengths])
    after = torch.tensor(lengths) + 1
    conditional, _ = model.reader(state)(given, 7, False)
    whole = torch.cat([x, x], dim=1)
    expected = model(whole, given[:, None], times, after[:, None])[:, 0]
    assert_near(conditional, expected, additions(model))


def test_all_positions_at_once_as_one_by_one(model: OneTowerLCM) -> None:
    x, _, _ = _document()
    options = DiffusionOptions(steps=4)
    together = model.predict(Batch(x, torch.tensor([LENGTH, LENGTH])), options, _Fixed())
    terms = options.steps * additions(model)
    for n in range(1, LENGTH):
        state = model.begin(Batch(x[:, :n], torch.tensor([n, n])), 8, options)
        assert_near(model.next(state, _Fixed()), together[:, n - 1], terms)


class _Fixed(Noise):
    """The same starting noise at every position."""

    def __init__(self) -> None:
        super().__init__([0, 0])

    def normal(self, *shape: int) -> Tensor:
        start = torch.randn(DIM, generator=torch.Generator().manual_seed(5))
        return start.expand(2, *shape)


@pytest.mark.slow
def test_it_learns(model: OneTowerLCM) -> None:
    objective = DiffusionObjective(condition_dropping=0.1)
    model.config = dataclasses.replace(model.config, objective=objective)
    model.train()
    batch = Batch(_document()[0], torch.tensor([LENGTH, LENGTH - 2]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(60):
        loss = model.loss(batch, generator)
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
        losses.append(loss.mean.item())
    assert loss.targets == 2 * LENGTH - 2
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert all(p.grad is not None for p in model.parameters())


@torch.inference_mode()
def test_grouped_heads_without_context() -> None:
    stack = TransformerConfig(heads=4, kv_heads=2, positions="learned")
    config = OneTowerConfig(concept_dim=DIM, model_dim=32, max_length=16, transformer=stack)
    model = OneTowerLCM(config).eval()
    x, noisy, _ = _document()
    state = model.begin(Batch(x, torch.tensor([5, 5])), 8, DiffusionOptions())
    _, unconditional = model.reader(state)(noisy[:, 0], 3, True)
    dropped = torch.ones(2, 1, dtype=torch.bool)
    places = torch.tensor([[5], [5]])
    expected = model(torch.cat([x, x], 1), noisy[:, :1], torch.full((2, 1), 3), places, dropped)
    assert_near(unconditional, expected[:, 0], additions(model))
