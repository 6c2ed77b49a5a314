"""Generation: stopping, randomness, candidates, and invalid input."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rounding import additions, assert_near, rounding
from torch import Tensor, nn

from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.models.base_lcm import BaseLCM, BaseOptions
from lcm_cli.models.checkpoint import build
from lcm_cli.models.config import ScheduleConfig, preset
from lcm_cli.models.diffusion import Denoised, DiffusionOptions
from lcm_cli.models.generate import GenerateOptions, generate_concepts
from lcm_cli.models.interface import Batch, ConceptModel, Noise
from lcm_cli.models.quant_lcm import QuantOptions

KINDS = ["base", "two_tower", "one_tower", "quant", "sonar_llm"]
DIM = 12
ON = GenerateOptions(max_concepts=4, repeat_similarity=None)  # stops only at the maximum length


def _model(architecture: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = build(preset(architecture, "nano", concept_dim=DIM, max_length=24, **changes)).eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "modulator" in name or "codebooks" in name:
            nn.init.normal_(tensor, std=0.3)
    return model


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> ConceptModel:
    made: ConceptModel = _model(request.param)
    return made


@pytest.fixture(scope="module")
def base() -> BaseLCM:
    made: BaseLCM = _model("base")
    return made


@pytest.fixture(scope="module")
def prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(length, DIM, generator=generator) for length in (5, 2, 7, 2)]


def _sampled(model: ConceptModel) -> GenerateOptions:
    """Return options under which every kind of model draws random numbers."""
    name = model.config.architecture
    samplers: dict[str, Any] = {"base": BaseOptions(1.0), "sonar_llm": BaseOptions(1.0)}
    samplers |= {"quant": QuantOptions(top_k=8)}
    sampler = samplers.get(name, DiffusionOptions(steps=5))
    return GenerateOptions(max_concepts=4, repeat_similarity=None, sampler=sampler)


def _made(model: ConceptModel, prompts: list[Tensor], options: GenerateOptions) -> list[Tensor]:
    return [continuation.concepts_SD for continuation in generate_concepts(model, prompts, options)]


def _terms(model: ConceptModel) -> int:
    """Return the number of additions behind the last concept of a run under `_sampled`."""
    options = _sampled(model)
    return options.max_concepts * getattr(options.sampler, "steps", 1) * additions(model)


def _with(options: GenerateOptions, **changes: Any) -> GenerateOptions:
    return GenerateOptions(**(vars(options) | changes))


def test_a_row_does_not_depend_on_the_batch(model: ConceptModel, prompts: list[Tensor]) -> None:
    options = _sampled(model)
    together = _made(model, prompts, options)
    turned = _made(model, prompts[::-1], options)[::-1]
    alone = [_made(model, [prompt], options)[0] for prompt in prompts]
    for first, second, third in zip(together, turned, alone, strict=True):
        assert first.shape == (4, DIM)
        assert_near(first, second, _terms(model))
        assert_near(first, third, _terms(model))


def test_seeds(model: ConceptModel, prompts: list[Tensor]) -> None:
    """The same seed gives the same concepts, and 0 is a seed like any other."""
    options = _sampled(model)
    made = {seed: _made(model, prompts, _with(options, seed=seed)) for seed in (0, 1)}
    again = _made(model, prompts, _with(options, seed=0))
    assert all(torch.equal(a, b) for a, b in zip(made[0], again, strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(made[0], made[1], strict=True))


def test_temperature_zero_is_deterministic(model: ConceptModel, prompts: list[Tensor]) -> None:
    options = _with(ON, sampler=model.Options(temperature=0.0))
    first, second = (_made(model, prompts, _with(options, seed=seed)) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_base_is_deterministic_by_default(base: BaseLCM, prompts: list[Tensor]) -> None:
    first, second = (_made(base, prompts, _with(ON, seed=seed)) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_number_of_threads_does_not_matter(model: ConceptModel, prompts: list[Tensor]) -> None:
    before, made = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        made.append(_made(model, prompts, _sampled(model)))
    torch.set_num_threads(before)
    for a, b in zip(*made, strict=True):
        assert_near(a, b, _terms(model))


def test_a_longer_continuation_starts_with_the_shorter(
    model: ConceptModel, prompts: list[Tensor]
) -> None:
    options = _sampled(model)
    short = _made(model, prompts, _with(options, max_concepts=2))
    for a, b in zip(short, _made(model, prompts, options), strict=True):
        assert_near(a, b[:2], _terms(model))


def test_the_end_concept_stops(base: BaseLCM, prompts: list[Tensor]) -> None:
    full = generate_concepts(base, prompts[:1], ON)[0].concepts_SD
    for place in range(4):
        options = _with(ON, end_similarity=0.99999)
        (made,) = generate_concepts(base, prompts[:1], options, end=full[place])
        assert made.reason == "end"
        assert_near(made.concepts_SD, full[:place], _terms(base))
        kept = _with(options, keep_stop=True)
        (made,) = generate_concepts(base, prompts[:1], kept, end=full[place])
        assert_near(made.concepts_SD, full[: place + 1], _terms(base))
        later = _with(options, min_concepts=place, max_concepts=5)
        (made,) = generate_concepts(base, prompts[:1], later, end=full[place])
        assert (len(made.concepts_SD), made.reason) == (place, "end")


@pytest.mark.slow
@pytest.mark.parametrize("rerank", [None, "document", "step"])
@pytest.mark.parametrize("rule", ["end", "repetition"])
@pytest.mark.parametrize("least", [1, 3])
def test_no_rule_stops_before_the_minimum(
    model: ConceptModel, prompts: list[Tensor], rule: str, least: int, rerank: Any
) -> None:
    """Although every concept signals a stop, the document gets the minimum."""
    limit = "end_similarity" if rule == "end" else "repeat_similarity"
    options = _with(_sampled(model), **{limit: -1.0}, min_concepts=least, max_concepts=least)
    if rerank is not None:
        options = _with(options, candidates=2, rerank=rerank)
    end = torch.ones(DIM) if rule == "end" else None
    for most, reason in ((least, "length"), (least + 1, rule)):
        longer = _with(options, max_concepts=most)
        for made in generate_concepts(model, prompts, longer, end=end):
            assert (len(made.concepts_SD), made.reason) == (least, reason)


def test_a_break_after_a_break_stops_only_after_the_minimum(
    base: BaseLCM, prompts: list[Tensor]
) -> None:
    breaks = GenerateOptions(max_concepts=4, min_concepts=3, end_similarity=-1.0)
    (found,) = generate_concepts(base, prompts[:1], breaks, breaks=torch.ones(DIM))
    assert (found.breaks, found.reason) == ((0, 0, 0), "repetition")


def test_each_model_has_its_own_end_similarity(base: BaseLCM, prompts: list[Tensor]) -> None:
    full = generate_concepts(base, prompts[:1], ON)[0].concepts_SD
    length, across = full[1].norm(), torch.randn(DIM)
    across = across - (across @ full[1]) * full[1] / length**2
    for cosine, reason in ((0.91, "end"), (0.89, "length")):
        slope = (1 / cosine**2 - 1) ** 0.5
        end = full[1] + across / across.norm() * length * slope
        (made,) = generate_concepts(
            base, prompts[:1], _with(ON, min_concepts=1, max_concepts=2), end=end
        )
        assert made.reason == reason
    assert _model("sonar_llm").end_similarity == 0.98


def test_repetition_stops(base: BaseLCM, prompts: list[Tensor]) -> None:
    """Base-LCM approaches a fixed point, so that cosines to the previous concept rise."""
    full = generate_concepts(base, prompts[:1], _with(ON, max_concepts=12))[0].concepts_SD
    whole = torch.cat([prompts[0][-1:], full])
    near = nn.functional.cosine_similarity(whole[1:], whole[:-1])
    threshold = near.topk(2).values.mean().item()  # further from every cosine than rounding
    place = int(near.argmax())
    options = _with(ON, max_concepts=12, repeat_similarity=threshold)
    (made,) = generate_concepts(base, prompts[:1], options)
    assert made.reason == "repetition"
    assert len(made.concepts_SD) == place


@pytest.mark.parametrize("plans", [False, True])
def test_breaks_and_plans_are_context_but_not_text(prompts: list[Tensor], plans: bool) -> None:
    """The model reads its concepts alike, whether they are sentences, breaks or plans."""
    model = _model("base", break_text="Break.", plans=plans)
    options = _with(ON, end_similarity=0.99999)
    free = _made(model, prompts[:1], options)[0]
    told: list[Tensor] = []
    found = generate_concepts(
        model,
        prompts[:1],
        options,
        breaks=free[1],
        on_concept=lambda _, concept_D: told.append(concept_D),
    )[0]
    text = free[[0, 3]] if plans else free[[0, 2, 3]]
    assert_near(found.concepts_SD, text, _terms(model))
    assert_near(torch.stack(told), text, _terms(model))
    assert (found.breaks, found.reason) == ((1,), "length")
    assert [before for before, _ in found.plans] == [1] * plans
    if plans:
        assert_near(found.plans[0][1], free[2], _terms(model))


def test_a_break_after_a_break_is_a_repetition(base: BaseLCM, prompts: list[Tensor]) -> None:
    everything = GenerateOptions(max_concepts=4, end_similarity=-1.0)
    found = generate_concepts(base, prompts, everything, breaks=torch.ones(DIM))
    for each in found:
        assert (len(each.concepts_SD), each.breaks, each.reason) == (0, (0,), "repetition")


def test_the_end_has_priority_over_a_break(base: BaseLCM, prompts: list[Tensor]) -> None:
    everything = GenerateOptions(max_concepts=4, end_similarity=-1.0)
    found = generate_concepts(
        base, prompts, everything, end=torch.ones(DIM), breaks=torch.ones(DIM)
    )
    assert {(each.breaks, each.reason) for each in found} == {((), "end")}


def test_finished_rows_leave_the_batch(base: BaseLCM, prompts: list[Tensor]) -> None:
    full = generate_concepts(base, prompts, ON)
    rows: list[int] = []
    plain = base.extend
    base.extend = lambda state, x: (rows.append(len(x)), plain(state, x))[1]  # type: ignore[method-assign]
    options = _with(ON, end_similarity=0.99999)
    made = generate_concepts(base, prompts, options, end=full[2].concepts_SD[1])
    del base.extend
    assert [m.reason for m in made] == ["length", "length", "end", "length"]
    assert rows == [4, 3, 3]
    for number in (0, 1, 3):
        assert_near(made[number].concepts_SD, full[number].concepts_SD, _terms(base))


def test_concepts_are_reported_as_they_are_generated(
    model: ConceptModel, prompts: list[Tensor]
) -> None:
    for options in (
        _sampled(model),
        _with(_sampled(model), candidates=2, rerank="step"),
        _with(_sampled(model), candidates=2),
    ):
        told: dict[int, list[Tensor]] = {number: [] for number in range(4)}
        made = generate_concepts(
            model, prompts, options, on_concept=lambda n, x, told=told: told[n].append(x)
        )
        for number, continuation in enumerate(made):
            assert torch.equal(torch.stack(told[number]), continuation.concepts_SD)


@pytest.mark.slow
@pytest.mark.parametrize("rerank", ["step", "document"])
def test_candidates_by_likelihood(model: ConceptModel, prompts: list[Tensor], rerank: str) -> None:
    options = _with(_sampled(model), candidates=3, rerank=rerank)
    made = generate_concepts(model, prompts, options)
    assert all(m.concepts_SD.shape == (4, DIM) and m.score is not None for m in made)
    (alone,) = generate_concepts(model, prompts[2:3], options)
    assert_near(alone.concepts_SD, made[2].concepts_SD, _terms(model))
    if rerank == "document":  # the best of the three results of single runs
        singles = [_seeded(model, prompts[:1], options, candidate) for candidate in range(3)]
        apart = [float((made[0].concepts_SD - single).abs().max()) for single in singles]
        assert min(apart) <= rounding(_terms(model)) * made[0].concepts_SD.abs().max()


def _seeded(model: Any, prompts: list[Tensor], options: GenerateOptions, candidate: int) -> Tensor:
    return _made(model, prompts, _with(options, candidates=1, seed=candidate << 32))[0]


def test_candidates_by_round_trip(prompts: list[Tensor]) -> None:
    """A round trip that clips negative values prefers candidates with few of them."""
    model = _model("two_tower")

    def reencode(x: Tensor) -> Tensor:
        return x.clamp(min=0)

    options = _with(ON, candidates=4, rerank="step", judge="roundtrip", max_concepts=1)
    made = generate_concepts(model, prompts, options, reencode=reencode)
    single = generate_concepts(model, prompts, _with(options, candidates=1))
    for best, first in zip(made, single, strict=True):
        trip = nn.functional.cosine_similarity
        assert best.score == pytest.approx(
            trip(reencode(best.concepts_SD), best.concepts_SD).item(), abs=1e-5
        )
        assert best.score >= trip(reencode(first.concepts_SD), first.concepts_SD).item() - 1e-5
    with pytest.raises(UsageError, match="round trip"):
        generate_concepts(model, prompts, options)


def test_likelihood_prefers_the_models_own_prediction(prompts: list[Tensor]) -> None:
    for name in ("base", "sonar_llm", "two_tower", "one_tower"):
        model = _model(name)
        state = model.begin(Batch.of(prompts[:2]), 12, model.Options(temperature=0.0))
        said = model.next(state, Noise([0, 0]))
        other = said + torch.randn_like(said)
        assert bool((model.likelihood(state, said) > model.likelihood(state, other)).all())


@pytest.mark.parametrize("kind", KINDS)
def test_reencoding_models_read_reencoded_concepts(kind: str, prompts: list[Tensor]) -> None:
    """A model with `reencode` continues from the re-encoded concepts, not from its predictions."""

    def reencode(x: Tensor) -> Tensor:
        return x.round(decimals=1)

    model = _model(kind, reencode=True)
    (made,) = generate_concepts(model, prompts[:1], ON, reencode=reencode)
    x = made.concepts_SD
    assert torch.equal(x, reencode(x))
    first = _with(ON, max_concepts=1)
    (read,) = generate_concepts(model, [torch.cat([prompts[0], x[:1]])], first, reencode=reencode)
    if kind in ("base", "sonar_llm"):  # other models draw other noise for the first concept
        assert torch.equal(read.concepts_SD[0], x[1])
    plain = _model(kind, reencode=False)
    (made,) = generate_concepts(plain, prompts[:1], ON, reencode=reencode)
    assert not torch.equal(made.concepts_SD, reencode(made.concepts_SD))


def test_only_sonar_llm_reencodes_by_default() -> None:
    assert [kind for kind in KINDS if preset(kind, "nano").reencode] == ["sonar_llm"]


def test_watching_the_denoising_steps(prompts: list[Tensor], base: BaseLCM) -> None:
    for name in ("two_tower", "one_tower"):
        model, seen = _model(name), list[Denoised]()
        options = _with(ON, max_concepts=2, sampler=DiffusionOptions(steps=5))
        (made,) = generate_concepts(model, prompts[:1], options, watch=seen.append)
        assert [step.t for step in seen] == [99, 79, 59, 39, 19] * 2
        last = model.normalizer.denormalize(seen[4].x0)
        assert_near(last, made.concepts_SD[:1], terms=4)
    with pytest.raises(UsageError, match="no denoising steps"):
        generate_concepts(base, prompts, ON, watch=print)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 5, 20, 100])
def test_always_finite(prompts: list[Tensor], prediction: str, eta: float, steps: int) -> None:
    """Zero terminal SNR with any prediction and DDPM noise: the official code can give NaN."""
    model = _model("two_tower", schedule=ScheduleConfig(prediction=prediction))  # type: ignore[arg-type]
    sampler = DiffusionOptions(steps=steps, eta=eta)
    (made,) = generate_concepts(model, prompts[:1], _with(ON, max_concepts=1, sampler=sampler))
    assert bool(made.concepts_SD.isfinite().all())


BAD: list[tuple[Callable[[], tuple[list[Tensor], dict[str, Any]]], type[LcmError], str]] = [
    (lambda: ([torch.zeros(0, DIM)], {}), UsageError, "prompt 1 has no concepts"),
    (lambda: ([torch.zeros(DIM)], {}), UsageError, "prompt 1 has no concepts"),
    (lambda: ([torch.ones(2, DIM), torch.ones(2, 9)], {}), IntegrityError, "prompt 2 .* width 9"),
    (lambda: ([torch.full((2, DIM), torch.nan)], {}), IntegrityError, "prompt 1 contains NaN"),
    (lambda: ([torch.ones(21, DIM)], {}), UsageError, "21 concepts; with 4 more"),
    (lambda: ([torch.ones(2, DIM)], {"sampler": 3}), UsageError, "takes BaseOptions, not int"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_refused(base: BaseLCM, make: Any, error: type[LcmError], message: str) -> None:
    given, changes = make()
    with pytest.raises(error, match=message):
        generate_concepts(base, given, _with(ON, **changes))


def test_refused_options(prompts: list[Tensor]) -> None:
    with pytest.raises(UsageError, match="101 denoising steps"):
        generate_concepts(
            _model("two_tower"), prompts, _with(ON, sampler=DiffusionOptions(steps=101))
        )
    for bad in (
        {"max_concepts": 0}, {"min_concepts": -1}, {"candidates": 0}, {"end_similarity": 1.5},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            GenerateOptions(**bad)
    for bad in ({"steps": 0}, {"eta": 2.0}, {"guidance": -1.0}, {"threshold": 0.0}):
        with pytest.raises(UsageError):
            DiffusionOptions(**bad)


def test_options_do_not_persist(prompts: list[Tensor]) -> None:
    """A run does not change the model."""
    model = _model("two_tower")
    plain = _with(ON, sampler=DiffusionOptions(steps=5))
    before = _made(model, prompts, plain)
    other = DiffusionOptions(steps=9, threshold=0.9, clip_x0=0.1, eta=1.0, initial_noise=2.0)
    _made(model, prompts, _with(ON, sampler=other))
    for a, b in zip(before, _made(model, prompts, plain), strict=True):
        assert torch.equal(a, b)


def test_no_prompts(base: BaseLCM) -> None:
    assert generate_concepts(base, []) == []


@pytest.fixture(autouse=True)
def _seeded_torch() -> Iterator[None]:
    torch.manual_seed(0)
    yield
