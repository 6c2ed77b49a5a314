"""Self-conditioning: a diffusion model that also reads its previous estimate of a concept."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from rounding import additions, assert_near
from torch import Tensor, nn

from lcm_cli.errors import IntegrityError
from lcm_cli.models.checkpoint import build, with_added
from lcm_cli.models.config import ScheduleConfig, preset
from lcm_cli.models.diffusion import DiffusionOptions, Schedule, guide, step_pairs
from lcm_cli.models.diffusion_training import Draws
from lcm_cli.models.generate import GenerateOptions, generate_concepts
from lcm_cli.models.interface import Batch, Noise
from lcm_cli.models.packed import lay_out

DIM, LENGTHS = 16, (5, 3, 4)


def _build(kind: str, **changes: Any) -> Any:
    config = preset(kind, "nano", concept_dim=DIM, **{"self_conditioning": True} | changes)
    torch.manual_seed(0)
    model: Any = build(config).eval()
    for name, parameter in model.named_parameters():
        if "modulator" in name or "estimate" in name:  # they start at zero
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(params=["one_tower", "two_tower"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str) -> Any:
    return _build(kind)


def _documents() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, DIM, generator=generator) for length in LENGTHS]


def _inputs() -> tuple[Batch, Draws, Tensor]:
    """Return documents, the random numbers of a training step, and estimates."""
    batch = Batch.of(_documents())
    noise, estimate = torch.randn(2, *batch.concepts_BSD.shape)
    timesteps = torch.randint(100, batch.concepts_BSD.shape[:2])
    return batch, Draws(noise, timesteps, None), estimate


def _options(**changes: Any) -> GenerateOptions:
    # Few steps: random weights amplify rounding errors from step to step.
    sampler = DiffusionOptions(steps=3, **changes)
    return GenerateOptions(max_concepts=3, repeat_similarity=None, sampler=sampler)


def test_a_model_that_gets_it_computes_the_same_at_first(kind: str) -> None:
    plain = _build(kind, self_conditioning=False)
    more: Any = build(replace(plain.config, self_conditioning=True)).eval()
    more.load_state_dict(with_added(more, plain.state_dict()))
    batch, draws, estimate = _inputs()
    x, noise, t = batch.concepts_BSD, draws.noise_BSD, draws.timesteps_BS
    assert torch.equal(more(x, noise, t, estimate_BSD=estimate), plain(x, noise, t))
    pairs = (generate_concepts(each, _documents(), _options()) for each in (more, plain))
    for mine, theirs in zip(*pairs, strict=True):
        assert_near(mine.concepts_SD, theirs.concepts_SD, 9 * additions(plain))
    # Its own projection is kept.
    state = _build(kind).state_dict()
    assert all(with_added(more, state)[key] is tensor for key, tensor in state.items())


def test_rows_read_the_estimate_or_zeros(model: Any) -> None:
    batch, draws, _ = _inputs()
    x, t = batch.concepts_BSD, draws.timesteps_BS
    noisy = model.schedule.noised(x, draws.noise_BSD, t)
    first = model(x, noisy, t)
    outputs = first, model(x, noisy, t, estimate_BSD=first)
    chances = torch.tensor([False, True, False])
    for estimated_B in (None, chances, ~chances, torch.zeros(3, dtype=torch.bool)):
        loss = model.loss(batch, draws=replace(draws, estimated_B=estimated_B))
        rows = [True] * 3 if estimated_B is None else estimated_B.tolist()
        expected = [
            ((outputs[row][n] - x[n]) ** 2).sum(dim=-1)[:length]
            for n, (row, length) in enumerate(zip(rows, LENGTHS, strict=True))
        ]
        assert_near(loss.errors_N, torch.cat(expected), 2 * additions(model))


def test_half_of_the_rows_in_training(model: Any) -> None:
    x = torch.zeros(2000, 1, DIM)
    assert model.draw(x, None, shared=False).estimated_B is None
    drawn = model.train().draw(x, torch.Generator().manual_seed(0), shared=False).estimated_B
    assert drawn.float().mean().item() == pytest.approx(0.5, abs=0.05)
    plain = _build("two_tower", self_conditioning=False).train()
    again = plain.draw(x, torch.Generator().manual_seed(0), shared=False)
    assert again.estimated_B is None
    mine = model.draw(x, torch.Generator().manual_seed(0), shared=False)
    assert torch.equal(mine.noise_BSD, again.noise_BSD)
    assert torch.equal(mine.dropped_BS, again.dropped_BS)


def test_gradients_in_lower_precision(model: Any) -> None:
    """The weights that the pass without gradient rounds are not reused by the one with it."""
    batch, draws, _ = _inputs()
    gradients = []
    for lower in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            loss = model.loss(batch, draws=draws)
        loss.value.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        if name.endswith("k_proj.bias"):  # softmax cancels it: only rounding remains
            continue
        near = torch.cosine_similarity(gradient.flatten(), gradients[1][name].flatten(), dim=0)
        assert near > 0.95, name


@torch.inference_mode()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_each_step_reads_the_estimate_of_the_one_before(model: Any, guidance: float) -> None:
    (document, *_), options = _documents(), DiffusionOptions(steps=3, guidance=guidance)
    state = model.begin(Batch.of([document]), 8, options)
    concept = model.next(state, Noise([0]))
    x = Noise([0]).normal(DIM) * options.initial_noise
    whole, place = torch.cat([document, document])[None], torch.tensor([[len(document)]])
    estimate = torch.zeros_like(x)
    for t, s in step_pairs(100, options):
        given = whole, x[:, None], torch.tensor([[t]]), place
        out, alone = (
            model(*given, torch.tensor([[dropped]]), estimate_BSD=estimate[:, None])[:, 0]
            for dropped in (False, True)
        )
        prediction = None
        if options.guided and t < 99:
            noises = (model.schedule.epsilon(each, x, t) for each in (out, alone))
            out, prediction = guide(*noises, options), "epsilon"
        x, estimate = model.schedule.step(out, x, t, s, options, prediction=prediction)
    assert_near(concept, estimate, 9 * additions(model))


def test_all_positions_at_once_as_one_by_one(model: Any) -> None:
    batch, options = Batch.of(_documents()), DiffusionOptions(steps=3)
    noise = torch.randn(3, 4, DIM)
    together = model.predict(batch, options, _Fixed(noise))
    for row, length in enumerate(LENGTHS):
        for n in range(1, length):
            state = model.begin(Batch.of([batch.concepts_BSD[row, :n]]), 8, options)
            alone = model.next(state, _Fixed(noise[row : row + 1, n - 1]))
            assert_near(alone[0], together[row, n - 1], 9 * additions(model))


class _Fixed(Noise):
    def __init__(self, noise: Tensor) -> None:
        super().__init__([0])
        self.noise = noise

    def normal(self, *shape: int) -> Tensor:
        return self.noise


@pytest.mark.parametrize(
    ("kind", "prediction"), [("one_tower", "x0"), ("two_tower", "v"), ("two_tower", "flow")]
)
def test_documents_do_not_affect_each_other_and_packed_models_agree(
    kind: str, prediction: Any
) -> None:
    model = _build(kind, schedule=ScheduleConfig(prediction=prediction))
    packed = lay_out(copy.deepcopy(model), "float32")
    plain = copy.deepcopy(model)
    plain.get_submodule("denoiser" if kind == "two_tower" else "").estimate_proj = None
    terms, options = 12 * additions(model), _options()
    together = generate_concepts(model, _documents(), options)
    for document, theirs in zip(_documents(), together, strict=True):
        alone = generate_concepts(model, [document], options)[0].concepts_SD
        fast = generate_concepts(packed, [document], options)[0].concepts_SD
        without = generate_concepts(plain, [document], options)[0].concepts_SD
        assert_near(alone, theirs.concepts_SD, terms)
        assert_near(fast, theirs.concepts_SD, terms)
        assert not torch.allclose(without, alone, atol=0.01)


def test_documents_in_one_row_do_not_affect_each_other(model: Any) -> None:
    documents, (_, draws, _) = _documents(), _inputs()
    apart = model.loss(Batch.of(documents), draws=draws).errors_N
    parts = [
        torch.cat([each[n, :length] for n, length in enumerate(LENGTHS)])[None]
        for each in (draws.noise_BSD, draws.timesteps_BS)
    ]
    together = model.loss(Batch.packed([documents]), draws=Draws(*parts, None)).errors_N
    assert_near(together, apart, 2 * additions(model))


@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_the_clean_concept_follows_from_the_target(prediction: Any) -> None:
    schedule = Schedule(ScheduleConfig(prediction=prediction))
    x0, noise = torch.randn(2, 4, DIM)
    timesteps = torch.tensor([0, 30, 60, 99])
    x = schedule.noised(x0, noise, timesteps)
    target = schedule.target(x0, noise, timesteps)
    found = schedule.clean(target, x, timesteps)
    one_by_one = [schedule.clean(target[n], x[n], int(t)) for n, t in enumerate(timesteps)]
    assert_near(found, torch.stack(one_by_one), size=10.0)
    assert_near(found, x0, size=10.0)


def test_predicted_noise_gives_no_estimate(kind: str) -> None:
    with pytest.raises(IntegrityError, match="needs the prediction x0, v or flow, not 'epsilon'"):
        _build(kind, schedule=ScheduleConfig(prediction="epsilon"))
