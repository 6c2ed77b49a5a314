"""Schedules, spacings, sampler steps and level sampling against the official implementation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lcm_cli.models.config import DiffusionObjective
from lcm_cli.models.diffusion import DiffusionOptions, Levels, Schedule, timesteps
from lcm_cli.models.official import official_schedule

FILES = ["ddim_schedules", "ddim_steps"]
COMPARED = 429
PREDICTIONS = {"sample": "x0", "epsilon": "epsilon", "v_prediction": "v"}


def test_schedules(golden: Callable[[str], Any]) -> None:
    file = golden("ddim_schedules")
    for name, config in file.facts["alphas"].items():
        schedule = Schedule(official_schedule(config))
        total = schedule.config.steps
        ours = {
            "alphas_cumprod": schedule.alphas_T,
            "betas": schedule.betas_T,
            "variances": torch.tensor([schedule.variance(t, t - 1) for t in range(total)]),
            "snrs": schedule.snrs(),
        }
        for what, tensor in ours.items():
            if (theirs := file.tensors.get(f"{what}/{name}")) is not None:
                # Signal over almost no noise magnifies the last bit of alpha.
                rtol = 1e-4 if what == "snrs" else 1e-5
                file.check(f"{what}/{name}", tensor, theirs.isfinite(), rtol=rtol)


def test_official_spacing(golden: Callable[[str], Any]) -> None:
    file = golden("ddim_schedules")
    for key in [key for key in file.tensors if key.startswith("timesteps/")]:
        _, total, spacing, steps = key.split("/")
        options = DiffusionOptions(steps=int(steps[1:]), spacing=spacing, exact_steps=False)  # type: ignore[arg-type]
        ours = timesteps(int(total[1:]), options)
        file.check(key, torch.tensor(ours))
        assert len(ours) == file.facts["timesteps"][key.removeprefix("timesteps/")]


def _options(case: dict[str, Any]) -> DiffusionOptions:
    config, step = case["config"], case["step_kwargs"]
    return DiffusionOptions(
        steps=case["num_inference_steps"],
        eta=step.get("eta", 0.0),
        epsilon_scaling=step.get("epsilon_scaling", 1.0),
        threshold=config["dynamic_thresholding_ratio"] if config["thresholding"] else None,
        threshold_max=config["sample_max_value"],
        clip_x0=config["clip_sample_range"] if config["clip_sample"] else None,
    )


def test_steps(golden: Callable[[str], Any]) -> None:
    """Where the official code gives NaN or infinity we are finite; all else is equal."""
    file = golden("ddim_steps")
    x, output, noise = (
        file[key].flatten(1) for key in ("sample", "model_output", "variance_noise")
    )
    finite = 0
    for case in file.facts["cases"]:
        options, step = _options(case), case["step_kwargs"]
        previous, x0 = Schedule(official_schedule(case["config"])).step(
            output,
            x,
            case["timestep"],
            max(case["prev_timestep"], -1),
            options,
            prediction=PREDICTIONS.get(step.get("prediction_type")),  # type: ignore[arg-type]
            noise=noise if options.eta > 0 else None,
            consistent=step.get("use_clipped_model_output", False),
        )
        for name, ours in (("prev_sample", previous), ("pred_original_sample", x0)):
            assert bool(ours.isfinite().all()), case["name"]
            key = f"{case['key']}/{name}"
            where = file.tensors[key].isfinite()
            finite += int(where.all())
            file.check(key, ours.view(3, 2, 16), where)
    assert finite == 2 * len(file.facts["cases"]) - 16


def test_noising(golden: Callable[[str], Any]) -> None:
    file = golden("ddim_steps")
    facts = next(
        c["config"] for c in file.facts["cases"] if c["name"] == "v_prediction S20 t54 eta0.0"
    )
    schedule, levels = Schedule(official_schedule(facts)), file["add_noise/timesteps"]
    x0, noise = (file[key].flatten(0, 1) for key in ("sample", "variance_noise"))
    file.check("add_noise/out", schedule.noised(x0, noise, levels))
    file.check("velocity/out", schedule.target(x0, noise, levels))
    for key in [key for key in file.tensors if key.startswith("get_epsilon/")]:
        _, kind, t = key.split("/")
        config = official_schedule(facts | {"prediction_type": kind})
        ours = Schedule(config).epsilon(file["model_output"], file["sample"], int(t[1:]))
        file.check(key, ours)


def test_level_sampling(golden: Callable[[str], Any]) -> None:
    file = golden("ddim_steps")
    schedule = Schedule(official_schedule(file.facts["cases"][0]["config"]))
    file.check("sampler/uniform/probs", Levels(DiffusionObjective(), schedule).probabilities_T)
    for key in [key for key in file.tensors if key.startswith("sampler/beta_")]:
        a, b = map(float, key.split("/")[1].split("_")[1:])
        objective = DiffusionObjective(timesteps="beta", beta_a=a, beta_b=b)
        file.check(key, Levels(objective, schedule).probabilities_T)
    steps = file["sampler/clamp_snr/steps"]
    for key in [key for key in file.tensors if key.endswith("/loss_scales")]:
        low, high = (0.0, 5.0)
        if key.startswith("sampler/clamp_snr_"):
            low, high = map(float, key.split("/")[1].removeprefix("clamp_snr_").split("_"))
        objective = DiffusionObjective(weighting="clamped_snr", snr_min=low, snr_max=high)
        levels = Levels(objective, schedule)
        ours = levels.weights(steps)
        assert ours is not None and levels.weights_T is not None
        file.check(key, ours)
        if f"{key.removesuffix('loss_scales')}gamma_per_step" in file.tensors:
            file.check(f"{key.removesuffix('loss_scales')}gamma_per_step", levels.weights_T)


def test_nothing_is_left_out(assert_complete: Callable[[list[str], int], None]) -> None:
    assert_complete(FILES, COMPARED)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("total", [1, 7, 100, 1000])
def test_exact_steps_are_as_many_as_asked(spacing: str, total: int) -> None:
    for steps in {1, 2, total // 3, 2 * total // 5, total} - {0}:
        if steps > total:
            continue
        ours = timesteps(total, DiffusionOptions(steps=steps, spacing=spacing))  # type: ignore[arg-type]
        assert len(ours) == len(set(ours)) == steps
        assert ours == sorted(ours, reverse=True)
        assert 0 <= ours[-1] <= ours[0] < total
