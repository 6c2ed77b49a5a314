"""The residual quantizer and both heads of Quant-LCM."""

import dataclasses

import pytest
import torch
from rounding import additions, assert_near
from torch import Tensor

from lcm_cli.errors import UsageError
from lcm_cli.models.config import QuantConfig, QuantizerConfig, preset
from lcm_cli.models.generate import GenerateOptions, generate_concepts
from lcm_cli.models.interface import Batch, Noise
from lcm_cli.models.normalizer import fit
from lcm_cli.models.quant_lcm import (
    QuantLCM,
    QuantOptions,
    ResidualQuantizer,
    choose_codes,
    fit_quantizer,
)

DIM = 8


def _points(count: int = 600) -> Tensor:
    """Return sums of one of 8 long vectors, one of 8 short ones, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    far, near = torch.randn(2, 8, DIM, generator=generator)
    picks = torch.randint(8, (2, count), generator=generator)
    noise = torch.randn(count, DIM, generator=generator)
    return 4 * far[picks[0]] + near[picks[1]] + 0.01 * noise


@pytest.fixture(scope="module")
def quantizer() -> ResidualQuantizer:
    return fit_quantizer(_points(), QuantizerConfig(concept_dim=DIM, codebooks=4, units=16))


def test_each_codebook_reduces_the_error(quantizer: ResidualQuantizer) -> None:
    errors = quantizer.errors(_points())
    assert len(errors) == 4
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.1
    assert errors[-1] < 0.01
    x = _points()
    copy = quantizer.decode(quantizer.encode(x))
    lost = ((copy - x) ** 2).sum() / ((x - x.mean(dim=0)) ** 2).sum()
    assert lost.item() == pytest.approx(errors[-1], rel=1e-3)


def test_codes_are_the_nearest_units(quantizer: ResidualQuantizer) -> None:
    x = _points(50)
    codes, rest = quantizer.encode(x), x
    for codebook in range(4):
        distances = torch.cdist(rest, quantizer.codebooks_CUD[codebook])
        chosen = distances.gather(1, codes[:, codebook, None])[:, 0]
        # Of two units equally near up to rounding, either may be chosen.
        assert_near(chosen, distances.amin(dim=-1), terms=DIM, size=rest.norm(dim=-1).max())
        rest = rest - quantizer.codebooks_CUD[codebook][codes[:, codebook]]


def test_partial_sums(quantizer: ResidualQuantizer) -> None:
    codes = quantizer.encode(_points(5))
    depth = torch.tensor([0, 1, 2, 3, 4])
    sums = quantizer.decode(codes, depth)
    assert torch.equal(sums[0], torch.zeros(DIM))
    assert torch.equal(sums[1], quantizer.codebooks_CUD[0][codes[1, 0]])
    assert torch.equal(sums[4], quantizer.decode(codes)[4])


def test_as_many_units_as_concepts_copies_them() -> None:
    x = _points(12)
    config = QuantizerConfig(concept_dim=DIM, codebooks=1, units=12)
    assert fit_quantizer(x, config).errors(x)[0] == pytest.approx(0, abs=1e-6)


def test_too_few_concepts() -> None:
    with pytest.raises(UsageError, match="3 concepts are too few for codebooks of 16"):
        fit_quantizer(_points(3), QuantizerConfig(concept_dim=DIM, units=16))


@pytest.fixture(params=["discrete", "continuous"])
def model(request: pytest.FixtureRequest, quantizer: ResidualQuantizer) -> QuantLCM:
    config = preset(
        "quant", "nano", concept_dim=DIM, flavour=request.param, units=16, max_length=32
    )
    assert isinstance(config, QuantConfig)
    torch.manual_seed(0)
    stack = dataclasses.replace(config.transformer, dropout=0.0)
    model = QuantLCM(dataclasses.replace(config, transformer=stack)).eval()
    model.quantizer.load_state_dict(quantizer.state_dict())
    model.normalizer = fit([_points()], config.normalizer)
    return model


@pytest.mark.slow
def test_learns_documents_by_heart(model: QuantLCM, quantizer: ResidualQuantizer) -> None:
    x = _points(10).view(2, 5, DIM)
    batch = Batch(x, torch.tensor([5, 5]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(200):
        loss = model.loss(batch, generator)
        assert loss.targets == 10
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
    model.eval()
    best = QuantOptions(temperature=0, guidance=1.0)
    ours = model.predict(batch, best, Noise([0, 0]))
    truth = quantizer.decode(quantizer.encode(x[:, 1:].flatten(0, 1))).view(ours.shape)
    wrong = (ours - truth).norm(dim=-1) / truth.norm(dim=-1)
    assert wrong.max() < 0.3
    state = model.begin(Batch(x[:, :2], torch.tensor([2, 2])), 8, best)
    true, other = model.likelihood(state, truth[:, 1]), model.likelihood(state, truth[:, 3])
    assert bool((true > other).all())


def test_one_by_one_as_all_at_once(model: QuantLCM) -> None:
    x = _points(10).view(2, 5, DIM)
    for options in (QuantOptions(temperature=0), QuantOptions(guidance=2.0)):
        together = model.predict(Batch(x, torch.tensor([5, 5])), options, _Half())
        for n in range(1, 5):
            state = model.begin(Batch(x[:, :n], torch.tensor([n, n])), 8, options)
            assert_near(model.next(state, _Half()), together[:, n - 1], additions(model))


class _Half(Noise):
    def __init__(self) -> None:
        super().__init__([0, 0])

    def uniform(self, *shape: int) -> Tensor:
        return torch.full((2, *shape), 0.5)


def test_generates_sums_of_centroids(model: QuantLCM) -> None:
    prompts = [_points(3), _points(5)]
    made = generate_concepts(
        model, prompts, GenerateOptions(max_concepts=4, repeat_similarity=None)
    )
    for continuation in made:
        copy = continuation.concepts_SD
        assert copy.shape == (4, DIM)
        units = model.quantizer.codebooks_CUD
        axes = [units[k].view(*[1] * k, 16, *[1] * (3 - k), DIM) for k in range(4)]
        every = (axes[0] + axes[1] + axes[2] + axes[3]).view(-1, DIM)
        assert torch.cdist(copy, every).min(dim=-1).values.max() < 0.01


def test_supervised_targets_only(model: QuantLCM) -> None:
    x = _points(10).view(2, 5, DIM)
    batch = Batch(x, torch.tensor([5, 4]), torch.tensor([3, 1]))
    assert model.loss(batch).targets == 5


def test_choice() -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    assert choose_codes(scores, QuantOptions(0.0, 2, 1.0), lambda: torch.tensor([0.9])).item() == 1
    for draw, unit in ((0.0, 1), (0.72, 1), (0.74, 3), (0.9999, 3)):
        assert (
            choose_codes(scores, QuantOptions(1.0, 2, 1.0), lambda d=draw: torch.tensor([d])).item()
            == unit
        )


def test_options() -> None:
    assert QuantOptions().resolved("discrete") == QuantOptions(1.0, 3, 1.0)
    assert QuantOptions(temperature=0.0).resolved("continuous") == QuantOptions(0.0, 5, 1.5)
    for bad in ({"temperature": -1.0}, {"guidance": -1.0}, {"top_k": 0}):
        with pytest.raises(UsageError):
            QuantOptions(**bad)  # type: ignore[arg-type]
