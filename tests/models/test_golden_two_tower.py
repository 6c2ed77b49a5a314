"""The Two-Tower against the official implementation: intermediates, losses and gradients."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rounding import additions, assert_near, rounding
from torch import Tensor

from lcm_cli.models.config import DiffusionObjective
from lcm_cli.models.diffusion_training import Draws, official_drop
from lcm_cli.models.interface import Batch, Loss
from lcm_cli.models.two_tower import Memory, TwoTowerLCM, after_zero, sees
from lcm_cli.transfer.converters.official import official_config, official_state

FILES = ["two_tower_model", "two_tower_forward", "two_tower_losses"]
COMPARED = 147
PREDICTIONS = {"sample": "x0", "epsilon": "epsilon", "v_prediction": "v"}


def _model(golden: Callable[[str], Any], prediction: str = "sample", **changes: Any) -> TwoTowerLCM:
    file = golden("two_tower_model")
    config = official_config(file.facts["config"], **changes)
    schedule = dataclasses.replace(config.schedule, prediction=PREDICTIONS[prediction])
    model = TwoTowerLCM(dataclasses.replace(config, schedule=schedule))
    model.load_state_dict(official_state(file.under("")))
    return model.eval()


@pytest.fixture
def model(golden: Callable[[str], Any]) -> TwoTowerLCM:
    return _model(golden)


def test_forward_and_every_intermediate(model: TwoTowerLCM, golden: Callable[[str], Any]) -> None:
    file = golden("two_tower_forward")
    real, timesteps_BS = file["padding_mask"], file["timesteps"]
    batch = Batch(file["seqs"], file["seq_lens"])
    assert torch.equal(batch.learned(), real)
    names = {
        "encoder_frontend": "encoder_frontend_out",
        "context_encoder": "context_encoder_out",
        "denoiser.initial_proj": "initial_proj_out",
    }
    for layer in range(2):
        place, key = f"denoiser.layers.{layer}", f"denoiser_layer{layer}"
        names |= {
            place: f"{key}_out",
            f"{place}.self_attn.output_proj": f"{key}_self_attn_out",
            f"{place}.cross_attention.output_proj": f"{key}_cross_attn_out",
        }
    seen = _watch(model, names)
    x_BSD = model.normalizer.normalize(batch.concepts_BSD)
    noisy_BSD = model.schedule.noised(x_BSD, file["noise"], timesteps_BS)
    seen |= {"normalized": x_BSD, "noisy": noisy_BSD}
    seen["forward_out"] = model(x_BSD, noisy_BSD, timesteps_BS)
    seen["embed_time_out"] = model.denoiser.embed_time(timesteps_BS)
    terms = additions(model)
    for name, tensor in seen.items():
        file.check(name, tensor, real, terms)
    for layer, modulation in enumerate(model.denoiser.modulations(timesteps_BS)):
        # Ours holds 1 + scale where theirs holds scale.
        plain = modulation.unflatten(-1, (3, 3, -1)) - torch.tensor([[0.0], [1.0], [0.0]])
        for part, chunk in enumerate(plain.flatten(-3).chunk(3, dim=-1)):
            file.check(f"denoiser_layer{layer}_modulator_out/{part}", chunk, real, terms)


def _watch(model: torch.nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    for module, key in names.items():
        model.get_submodule(module).register_forward_hook(
            lambda _, __, out, key=key: seen.__setitem__(key, out.detach())
        )
    return seen


def test_time_embedding(model: TwoTowerLCM, golden: Callable[[str], Any]) -> None:
    file, embed = golden("two_tower_forward"), model.denoiser.embed_time
    # An angle is t times a rate, so the rounding error of the rate grows t-fold.
    times = torch.tensor([0, 1, 49, 99])
    file.check("sinusoid/t0_1_49_99", embed.waves(times), terms=4, size=1 + times[:, None])
    for key in [key for key in file.tensors if key.startswith("embed_time/")]:
        t = int(key.rpartition("/")[2].removeprefix("t"))
        file.check(key, embed(torch.tensor([[t]])), terms=additions(model))


def test_masks(model: TwoTowerLCM, golden: Callable[[str], Any]) -> None:
    """The official masks are added to the scores: 0 for visible keys, -inf for all others."""
    file = golden("two_tower_forward")
    steps = torch.arange(5)[None]
    file.check("mask/shifted_5x6", _additive(sees(steps, 6))[0, 0])
    after_source = torch.tensor([[2], [4]]) + torch.arange(4)
    file.check("mask/shifted_4x8_src_2_4", _additive(sees(after_source, 8)))
    # The denoiser's self-attention under the official diagonal mask is what `alone` computes.
    attention, x = model.denoiser.layers[0].self_attn, torch.randn(1, 5, 64)
    mask = file["mask/self_5"] == 0
    assert_near(attention(x, mask=mask), attention.alone(x), additions(attention))


def _additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


def test_one_latent_with_and_without_context(
    model: TwoTowerLCM, golden: Callable[[str], Any]
) -> None:
    file = golden("two_tower_forward")
    context_BKM = after_zero(file["denoise_inf/context"])
    parts = model.denoiser.cross_attentions()
    memories = [Memory(*p.keys_values(context_BKM), p.nothing(context_BKM)) for p in parts]
    predict = model.predictor(memories, {})
    latent = file["denoise_inf/latent"]
    for key in [key for key in file.tensors if key.startswith("denoise_inf/out_t")]:
        t = int(key.rpartition("_t")[2])
        conditional, unconditional = predict(latent, t, True)
        file.check(key, conditional, terms=additions(model))
        if t == 49:
            file.check("denoise_inf/uncond_out_t49", unconditional, terms=additions(model))


def test_supervised_forward(model: TwoTowerLCM, golden: Callable[[str], Any]) -> None:
    file = golden("two_tower_forward")
    batch = Batch(file["sup/input_seqs"], file["sup/input_lens"], file["sup/source_lengths"])
    x_BSD = model.normalizer.normalize(batch.concepts_BSD)
    x0_BSD, real = batch.targets(x_BSD)
    lengths_B = file["sup/target_lens"]
    assert torch.equal(real, torch.arange(6) < lengths_B[:, None])
    raw_BSD, _ = batch.targets(batch.concepts_BSD)
    assert torch.equal(raw_BSD[real], file["sup/target_seqs"][real])
    timesteps_BS = file["sup/timesteps"]
    noisy_BSD = model.schedule.noised(x0_BSD, file["sup/noise"], timesteps_BS)
    file.check("sup/noisy", noisy_BSD, real)
    out_BSD = model(x_BSD, noisy_BSD, timesteps_BS, batch.places())
    file.check("sup/forward_out", out_BSD, real, additions(model))


LOSSES = [
    *(
        f"{kind}_{prediction}_{rest}"
        for prediction in PREDICTIONS
        for kind, rest in (
            ("next_sent", "sum_rmse0"),
            ("next_sent", "mean_rmse1"),
            ("next_sent", "mean_rmse0"),
            ("finetuning", "sum_rmse0"),
        )
    ),
    "next_sent_clampsnr_buckets_sum",
    *(f"{kind}_cf{chance}_sum" for kind in ("next_sent", "finetuning") for chance in (0.15, 0.5)),
]


def _loss(golden: Callable[[str], Any], case: str) -> tuple[TwoTowerLCM, Loss]:
    file = golden("two_tower_losses")
    facts = next(entry for entry in file.facts["cases"] if entry["key"] == case)
    steps = facts["criterion"]["step_sampling"]
    objective = DiffusionObjective(
        root=facts["criterion"]["compute_rmse"],
        weighting="clamped_snr" if steps["weighting"] == "clamp_snr" else "none",
        snr_min=steps["min_gamma"],
        snr_max=steps["max_gamma"],
        condition_dropping=facts["criterion"]["cf_guidance_probability"],
        dropping="official",
    )
    model = _model(golden, facts["prediction_type"], objective=objective)
    sources, targets = file.listed("source/"), file.listed("target/")
    if case.startswith("finetuning"):
        documents = [torch.cat(pair) for pair in zip(sources, targets, strict=True)]
        batch = Batch.of(documents, [len(source) for source in sources])
        noise, timesteps = file["sup_noise"], file["sup_timesteps"]
    else:
        batch, noise, timesteps = Batch.of(sources), file["noise"], file["timesteps"]
    orders = file.listed(f"randperm/{case}/")
    dropped = None
    if orders:
        count = int((timesteps.shape[1] - 1) * objective.condition_dropping)
        dropped = torch.stack([official_drop(order, count) for order in orders])
        dropped = dropped.expand(timesteps.shape)
    return model, model.loss(batch, draws=Draws(noise, timesteps, dropped))


@pytest.mark.parametrize("case", LOSSES)
def test_loss(golden: Callable[[str], Any], case: str) -> None:
    file = golden("two_tower_losses")
    facts = next(entry for entry in file.facts["cases"] if entry["key"] == case)
    model, loss = _loss(golden, case)
    mean = facts["criterion"]["reduction"] == "mean"
    value = loss.mean if mean else loss.value
    terms = 2 * additions(model)  # forward and backward
    file.check(f"loss/{case}", value.detach(), terms=terms)
    assert loss.targets == facts["num_target_elements"]
    share = loss.targets if mean else 1
    plain, raw = (
        facts["summands"][key][0] for key in ("mse_loss", "unnormalized_reconstruction_loss")
    )
    rel = rounding(terms)
    assert loss.errors_N.sum().item() / share == pytest.approx(plain, rel=rel)
    assert loss.terms["unnormalized"].item() / share == pytest.approx(raw, rel=rel)
    value.backward()
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(facts["grad_norm"], rel=rel)
    for key in [key for key in file.tensors if key.startswith(f"grad/{case}/")]:
        name = key.removeprefix(f"grad/{case}/")
        parameter = model.get_parameter(name)
        ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        file.check(key, ours, terms=terms, size=_size_of_what_cancels(model, name))


def _size_of_what_cancels(model: TwoTowerLCM, name: str) -> Tensor | None:
    """Return the size for gradients that are zero up to rounding, None for all others.

    The denoiser's self-attention has a single key, so that scores do not matter (its query and key
    projections are frozen); a bias of the context's keys shifts all scores of a query alike.
    """
    dead = r"denoiser\.layers\.\d\.(self_attn\.[qk]_proj\..*|cross_attention\.k_proj\.bias)"
    if not re.fullmatch(dead, name):
        return None
    values = model.get_parameter(re.sub("[qk]_proj", "v_proj", name)).grad
    assert values is not None
    return values.abs().amax()


def test_official_buckets_from_our_errors(golden: Callable[[str], Any]) -> None:
    """The official buckets are shifted by one and lose t > 90; ours hold every target."""
    model, loss = _loss(golden, "next_sent_clampsnr_buckets_sum")
    assert loss.timesteps_N is not None
    ours = loss.buckets(100)
    assert sum(count for _, count in ours) == loss.targets
    for low, (_, count) in zip(range(0, 100, 10), ours, strict=True):
        inside = (loss.timesteps_N >= low) & (loss.timesteps_N < low + 10)
        assert count == int(inside.sum())
    facts = golden("two_tower_losses").facts["cases"]
    summands = next(c for c in facts if c["key"] == "next_sent_clampsnr_buckets_sum")["summands"]
    for low in range(0, 100, 10):
        theirs = (loss.timesteps_N > low - 10) & (loss.timesteps_N <= low)
        total, count = summands[f"reconstruction_loss_t{low}-{low + 10}"]
        assert count == int(theirs.sum())
        rel = rounding(2 * additions(model))
        assert loss.errors_N[theirs].sum().item() == pytest.approx(total, rel=rel)


def test_nothing_is_left_out(assert_complete: Callable[[list[str], int], None]) -> None:
    assert_complete(FILES, COMPARED)
