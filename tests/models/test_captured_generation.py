"""Generation with CUDA graphs: the numbers of the plain path, from static buffers."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from rounding import additions, assert_near
from taping import tape_graphs
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli import cuda_graph
from lcm_cli.models import retained
from lcm_cli.models.checkpoint import build
from lcm_cli.models.config import TransformerConfig, preset
from lcm_cli.models.diffusion import Denoised, DiffusionOptions
from lcm_cli.models.generate import Continuation, GenerateOptions, generate_concepts
from lcm_cli.models.interface import Batch, ConceptModel, Noise
from lcm_cli.models.packed import lay_out, merge
from lcm_cli.models.retained import Retained

DIM, CONCEPTS, STEPS = 16, 4, 5
KINDS = ["two_tower", "one_tower"]
SAMPLERS = {
    "guided": DiffusionOptions(steps=STEPS),
    "unguided": DiffusionOptions(steps=STEPS, guidance=1.0),
    "noisy": DiffusionOptions(steps=STEPS, eta=1.0),
}
# The first step is not guided: it is another graph.
GRAPHS = {"guided": 3, "unguided": 2, "noisy": 3}


def _model(kind: str, **changes: Any) -> ConceptModel:
    torch.manual_seed(0)
    model = build(preset(kind, "nano", concept_dim=DIM, max_length=24, **changes)).eval()
    for name, tensor in model.named_parameters():
        if "modulator" in name or "estimate_proj" in name:
            nn.init.normal_(tensor, std=0.3)
    made: ConceptModel = model
    return made


def _prompts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(length, DIM, generator=generator) for length in lengths]


def _options(sampler: str = "guided", **changes: Any) -> GenerateOptions:
    given = {"max_concepts": CONCEPTS, "repeat_similarity": None, "sampler": SAMPLERS[sampler]}
    return GenerateOptions(**given | changes)


def _terms(model: ConceptModel) -> int:
    return CONCEPTS * STEPS * additions(model)


def _compare(
    model: ConceptModel, found: list[Continuation], wanted: list[Continuation], terms: int
) -> None:
    for ours, plain in zip(found, wanted, strict=True):
        assert ours.reason == plain.reason
        assert_near(ours.concepts_SD.cpu(), plain.concepts_SD.cpu(), terms)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "lengths", [*(pytest.param(each, marks=pytest.mark.slow) for each in ((5,), (3, 3))), (5, 2, 7)]
)
def test_graphs_give_the_numbers_of_the_plain_path(
    kind: str, sampler: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts, options = _model(kind), _prompts(*lengths), _options(sampler)
    wanted = generate_concepts(model, prompts, options)
    tapes = tape_graphs(monkeypatch)
    for _ in range(2):  # the second run takes over the graphs of the first
        _compare(model, generate_concepts(model, prompts, options), wanted, _terms(model))
    assert len(tapes) == GRAPHS[sampler]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_self_conditioning(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = _model(kind, self_conditioning=True), _prompts(4, 2)
    wanted = generate_concepts(model, prompts, _options())
    tapes = tape_graphs(monkeypatch)
    _compare(model, generate_concepts(model, prompts, _options()), wanted, _terms(model))
    assert len(tapes) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_learned_positions_and_grouped_heads(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = TransformerConfig(layers=2, heads=4, kv_heads=2, inner_dim=64, positions="learned")
    towers = {"contextualizer": stack, "denoiser": replace(stack, positions="none")}
    stacks: dict[str, Any] = towers if kind == "two_tower" else {"transformer": stack}
    model, prompts = _model(kind, **stacks), _prompts(4, 2)
    wanted = generate_concepts(model, prompts, _options())
    tape_graphs(monkeypatch)
    _compare(model, generate_concepts(model, prompts, _options()), wanted, _terms(model))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_leave_are_captured_anew(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = _model(kind), _prompts(5, 2, 7)
    end = generate_concepts(model, prompts, _options())[1].concepts_SD[1]
    options = _options(end_similarity=0.9999)
    wanted = generate_concepts(model, prompts, options, end=end)
    assert [len(made.concepts_SD) for made in wanted] == [4, 1, 4]
    tapes = tape_graphs(monkeypatch)
    for _ in range(2):
        found = generate_concepts(model, prompts, options, end=end)
        _compare(model, found, wanted, _terms(model))
    assert len(tapes) > 2 * GRAPHS["guided"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rerank", ["step", "document"])
def test_candidates(kind: str, rerank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likelihood visits other timesteps than the sampler."""
    model, prompts = _model(kind), _prompts(5, 2)
    options = _options(candidates=2, rerank=rerank)
    wanted = generate_concepts(model, prompts, options)
    tape_graphs(monkeypatch)
    found = generate_concepts(model, prompts, options)
    _compare(model, found, wanted, _terms(model))
    for ours, plain in zip(found, wanted, strict=True):
        assert ours.score == pytest.approx(plain.score, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_watched_steps_keep_their_values(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = _model(kind), _prompts(4)
    wanted: list[Denoised] = []
    generate_concepts(model, prompts, _options("unguided"), watch=wanted.append)
    tape_graphs(monkeypatch)
    found: list[Denoised] = []
    generate_concepts(model, prompts, _options("unguided"), watch=found.append)
    assert [step.t for step in found] == [step.t for step in wanted]
    for ours, plain in zip(found, wanted, strict=True):
        for name in ("output", "previous", "x0"):
            assert_near(getattr(ours, name), getattr(plain, name), _terms(model), name=name)


@pytest.mark.parametrize("kind", KINDS)
def test_models_laid_out_for_gpus(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = _model(kind), _prompts(5, 2, 7)
    wanted = generate_concepts(model, prompts, _options())
    terms = _terms(model)
    merge(model)
    tapes = tape_graphs(monkeypatch)
    _compare(model, generate_concepts(model, prompts, _options()), wanted, terms)
    assert len(tapes) == 3


def test_a_denoiser_layer_has_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three norms, five maps, attention, SiLU, a product, three additions, and one copy."""
    counts = []
    for layers in (2, 3):
        stack = replace(preset("two_tower", "nano").denoiser, layers=layers)  # type: ignore[union-attr]
        model = _model("two_tower", denoiser=stack)
        merge(model)
        with monkeypatch.context() as patch:
            tapes = tape_graphs(patch)
            generate_concepts(model, _prompts(5), _options())
        guided = next(tape for tape in tapes if "cat" in tape.kernels())
        counts.append(guided.kernels().total())
    assert counts[1] - counts[0] <= 15


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_follow_changed_weights_and_prompts(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = _model(kind), [_prompts(5, 2), _prompts(2, 5), _prompts(4, 3)]
    tapes = tape_graphs(monkeypatch)
    generate_concepts(model, prompts[0], _options())
    count = len(tapes)
    for changed in (lambda weight: weight.mul_(0.9), lambda weight: weight.set_(weight.clone())):
        with torch.no_grad():
            for weight in model.parameters():
                changed(weight)
        found = [generate_concepts(model, each, _options()) for each in prompts]
        with monkeypatch.context() as patch:
            patch.setattr(cuda_graph, "available", lambda device: False)
            wanted = [generate_concepts(model, each, _options()) for each in prompts]
        for ours, plain in zip(found, wanted, strict=True):
            _compare(model, ours, plain, _terms(model))
        # Captured again only where the weights are elsewhere.
        assert len(tapes) == count
        count += 3


@pytest.mark.parametrize("kind", KINDS)
def test_runs_side_by_side_share_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = _model(kind), [_prompts(5), _prompts(3)]
    wanted = [generate_concepts(model, each, _options())[0].concepts_SD for each in prompts]
    tape_graphs(monkeypatch)
    generate_concepts(model, prompts[1], _options())
    states = [model.begin(Batch.of(each), 9, SAMPLERS["guided"]) for each in prompts]
    noises, found = [Noise([0]), Noise([0])], [list[Tensor](), list[Tensor]()]
    for _ in range(CONCEPTS):
        for state, noise, made in zip(states, noises, found, strict=True):
            made.append(model.next(state, noise))
            model.extend(state, made[-1])
    for made, plain in zip(found, wanted, strict=True):
        assert_near(torch.cat(made), plain, _terms(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_ends_when_rows_leave_is_not_taken_over(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = _model(kind), _prompts(5, 3)
    wanted = generate_concepts(model, prompts, _options())
    tape_graphs(monkeypatch)
    state = model.begin(Batch.of(prompts), 5 + CONCEPTS, SAMPLERS["guided"])
    model.extend(state, model.next(state, Noise([0, 0])))
    state.keep(torch.tensor([1]))
    del state
    _compare(model, generate_concepts(model, prompts, _options()), wanted, _terms(model))


def test_a_copy_of_a_model_has_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tapes = _model("two_tower"), tape_graphs(monkeypatch)
    wanted = generate_concepts(model, _prompts(4), _options())
    found = generate_concepts(copy.deepcopy(model), _prompts(4), _options())
    assert len(tapes) == 6
    _compare(model, found, wanted, _terms(model))


def test_large_runs_are_not_retained(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tapes = _model("two_tower"), tape_graphs(monkeypatch)
    monkeypatch.setattr(retained, "LARGEST", 1000)
    for _ in range(2):
        generate_concepts(model, _prompts(4), _options())
    assert len(tapes) == 6


def test_a_model_in_training_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout draws random numbers, which a graph would repeat."""
    tapes = tape_graphs(monkeypatch)
    generate_concepts(_model("two_tower").train(), _prompts(4), _options())
    assert not tapes


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the graphs that are captured without an error."""
    captured: list[int] = []
    plain: Callable[..., Any] = cuda_graph.record

    def record(*given: Any) -> Any:
        graph = plain(*given)
        captured.append(1)
        return graph

    monkeypatch.setattr(cuda_graph, "record", record)
    return captured


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("lengths", [(5,), (5, 2, 7)])
def test_gpu_graphs_give_the_numbers_of_the_plain_path(
    kind: str, sampler: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(kind, self_conditioning=sampler == "noisy").to("cuda")
    prompts, options = _prompts(*lengths), _options(sampler)
    captured = _counted(monkeypatch)
    # The second run takes over the graphs of the first, the third those of neither.
    found = [generate_concepts(model, prompts, options) for _ in range(2)]
    assert len(captured) == GRAPHS[sampler]
    model._retained = Retained()
    found.append(generate_concepts(model, prompts, options))
    assert len(captured) == 2 * GRAPHS[sampler]
    monkeypatch.setattr(cuda_graph, "available", lambda device: False)
    wanted = generate_concepts(model, prompts, options)
    for each in found:
        _compare(model, each, wanted, _terms(model))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_models_laid_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = _model(kind).to("cuda"), _prompts(5, 2, 7)
    monkeypatch.setattr(cuda_graph, "available", lambda device: False)
    wanted = generate_concepts(model, prompts, _options())
    monkeypatch.undo()
    terms, captured = _terms(model), _counted(monkeypatch)
    lay_out(model)
    _compare(model, generate_concepts(model, prompts, _options()), wanted, terms)
    assert len(captured) == GRAPHS["guided"]


@pytest.mark.gpu
@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gpu_graphs_in_half_precision(
    kind: str, dtype: torch.dtype, laid_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = _model(kind).to("cuda", dtype), _prompts(5, 2, 7)
    monkeypatch.setattr(cuda_graph, "available", lambda device: False)
    wanted = generate_concepts(model, prompts, _options())
    monkeypatch.undo()
    captured = _counted(monkeypatch)
    if laid_out:
        lay_out(model, str(dtype).removeprefix("torch."))
    found = generate_concepts(model, prompts, _options())
    assert len(captured) == GRAPHS["guided"]
    for ours, plain in zip(found, wanted, strict=True):
        assert F.cosine_similarity(ours.concepts_SD, plain.concepts_SD).min() > 0.98


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_rows_that_leave_are_captured_anew(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = _model(kind).to("cuda"), _prompts(5, 2, 7)
    monkeypatch.setattr(cuda_graph, "available", lambda device: False)
    end = generate_concepts(model, prompts, _options())[1].concepts_SD[1]
    options = _options(end_similarity=0.9999)
    wanted = generate_concepts(model, prompts, options, end=end)
    monkeypatch.undo()
    captured = _counted(monkeypatch)
    found = generate_concepts(model, prompts, options, end=end)
    assert captured
    _compare(model, found, wanted, _terms(model))
