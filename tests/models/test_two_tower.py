"""The Two-Tower beyond the comparison with official results: dropping, training, shortcuts."""

import dataclasses

import pytest
import torch
from rounding import additions, assert_near
from torch import Tensor, nn

from lcm_cli.models.config import DiffusionObjective, TwoTowerConfig, preset
from lcm_cli.models.diffusion_training import Draws
from lcm_cli.models.interface import Batch
from lcm_cli.models.two_tower import TwoTowerLCM

LENGTH, DIM = 6, 16


@pytest.fixture
def model() -> TwoTowerLCM:
    torch.manual_seed(0)
    config = preset("two_tower", "nano", concept_dim=DIM)
    assert isinstance(config, TwoTowerConfig)
    model = TwoTowerLCM(config)
    for name, parameter in model.named_parameters():
        if "modulator" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def batch() -> Batch:
    x = torch.randn(3, LENGTH, DIM, generator=torch.Generator().manual_seed(1))
    return Batch(x, torch.tensor([6, 4, 5]))


def test_the_layers_of_a_new_denoiser_are_the_identity() -> None:
    """All gates are zero: only the first and the last projection have an effect."""
    model = TwoTowerLCM(preset("two_tower", "nano", concept_dim=DIM)).eval()  # type: ignore[arg-type]
    x, denoiser = torch.randn(1, 2, DIM), model.denoiser
    plain = denoiser.final_proj(denoiser.layer_norm(denoiser.initial_proj(x)))
    assert_near(model(x, x, torch.tensor([[3, 50]])), plain, additions(model))


def test_looked_up_modulations_are_the_computed_ones(model: TwoTowerLCM) -> None:
    for shape in ((1, 2), (20, 10)):  # fewer positions than timesteps, and more
        timesteps = torch.randint(100, shape)
        ours = model._modulations_everywhere(timesteps)
        for table, direct in zip(ours, model.denoiser.modulations(timesteps), strict=True):
            assert_near(table, direct, additions(model))


def test_dropped_positions_see_only_the_zero_vector(model: TwoTowerLCM, batch: Batch) -> None:
    x, noisy = batch.concepts_BSD, torch.randn(3, LENGTH, DIM)
    t, dropped = torch.randint(100, (3, LENGTH)), torch.rand(3, LENGTH) < 0.5
    plain, ours = model(x, noisy, t), model(x, noisy, t, dropped_BS=dropped)
    assert_near(ours[~dropped], plain[~dropped], additions(model))
    other = model(torch.randn_like(x), noisy, t, dropped_BS=dropped)
    assert_near(ours[dropped], other[dropped], additions(model))
    # The first position always sees only the zero vector.
    assert_near(ours[:, 0], plain[:, 0], additions(model))


def _dropped(model: TwoTowerLCM, x: Tensor, shared: bool = True) -> Tensor | None:
    return model.draw(x, torch.Generator().manual_seed(2), shared=shared).dropped_BS


def test_dropping_happens_only_in_training(model: TwoTowerLCM) -> None:
    x = torch.randn(200, 50, DIM)
    assert _dropped(model, x) is None
    dropped = _dropped(model.train(), x)
    assert dropped is not None
    assert dropped.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert dropped.float().mean(dim=0).std() < 0.05  # independent by position and document


def test_official_dropping(model: TwoTowerLCM) -> None:
    objective = DiffusionObjective(dropping="official")
    model.config = dataclasses.replace(model.config, objective=objective)
    assert not bool(_dropped(model, torch.randn(4, 7, DIM)).any())  # type: ignore[union-attr]
    shared, own = (_dropped(model, torch.randn(4, 41, DIM), shared) for shared in (True, False))
    assert shared is not None and own is not None
    assert shared.sum(dim=1).tolist() == own.sum(dim=1).tolist() == [6] * 4
    assert not bool(shared[:, 0].any() | own[:, 0].any())
    assert torch.equal(shared[0], shared[1])
    assert not torch.equal(own[0], own[1])


def test_same_seed_same_draws(model: TwoTowerLCM, batch: Batch) -> None:
    losses = [model.loss(batch, torch.Generator().manual_seed(0)).value for _ in range(2)]
    assert torch.equal(losses[0], losses[1])


def test_padding_does_not_count(model: TwoTowerLCM, batch: Batch) -> None:
    draws = model.draw(batch.concepts_BSD, None, shared=True)
    before = model.loss(batch, draws=draws)
    padded = batch.concepts_BSD.clone()
    padded[1, 4:] = 100.0
    after = model.loss(Batch(padded, batch.lengths_B), draws=draws)
    assert before.targets == 15
    assert_near(before.value, after.value, additions(model))


def test_frozen_weights_are_those_without_effect(model: TwoTowerLCM, batch: Batch) -> None:
    model.loss(batch).value.backward()
    for name, parameter in model.named_parameters():
        dead = (
            "denoiser" in name and "self_attn." in name and ("q_proj" in name or "k_proj" in name)
        )
        assert (parameter.grad is None) == dead, name
        assert parameter.requires_grad != dead


@pytest.mark.slow
def test_it_learns(model: TwoTowerLCM, batch: Batch) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    model.train()
    for _ in range(60):
        loss = model.loss(batch, generator)
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
        losses.append(loss.mean.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_weights_have_mean_one(model: TwoTowerLCM, batch: Batch) -> None:
    objective = DiffusionObjective(weighting="clamped_snr", snr_min=0.001)
    config = dataclasses.replace(model.config, objective=objective)
    weighted = TwoTowerLCM(config).eval()
    weighted.load_state_dict(model.state_dict())
    noise = torch.randn(3, LENGTH, DIM)
    level = torch.full((3, LENGTH), 40)
    draws = Draws(noise, level, None)  # equal levels have equal weights
    ours, plain = (each.loss(batch, draws=draws).value for each in (weighted, model))
    assert_near(ours, plain, additions(model))
