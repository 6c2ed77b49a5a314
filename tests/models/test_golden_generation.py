"""Whole generations against the official implementation, with the noise that it drew."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from rounding import additions
from torch import Tensor

from lcm_cli.models.base_lcm import BaseLCM, BaseOptions
from lcm_cli.models.diffusion import Denoised, DiffusionOptions
from lcm_cli.models.generate import Continuation, GenerateOptions, generate_concepts
from lcm_cli.models.interface import Batch, Noise
from lcm_cli.models.two_tower import TwoTowerLCM
from lcm_cli.transfer.converters.official import official_config, official_state

FILES = ["base_generation", "two_tower_generation"]
COMPARED = 240
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
BASE_TAGS = [
    *("greedy_cache", "greedy_nocache", "greedy_solo0", "greedy_solo1", "greedy_solo2"),
    *("greedy_minlen1", "greedy_equal_lens", "eos_trim0_inc0", "eos_trim0_inc1"),
    *("eos_trim1_inc0", "eos_trim1_inc1", "eos_on_first_concept_min1", "eos_min_gen_len4"),
    *("repetition_stop", "sampled_T0.3"),
]
DIFFUSION_TAGS = [
    *("cfg3_s40", "cfg3_s20", "cfg3_s20_minlen1", "cfg3_s10_equal", "nocfg_s20"),
    *("nocfg_s20_epsscale", "nocfg_s10_eta0.5", "cfg3_s10_eta0.5", "cfg3_s10_thresholding"),
    *("cfg3_s10_clip1", "cfg1.5_rescale0_s10", "cfg3_s10_epsilon", "cfg3_s10_v_prediction"),
    *("cfg3_s10", "cfg3_s10_eos_trim"),
]
# The official sampler writes its options into the model: these runs followed the one with
# thresholding and still used it.
AFTER_THRESHOLDING = {
    *("cfg3_s10_clip1", "cfg1.5_rescale0_s10", "cfg3_s10", "cfg3_s10_eos_trim", "scorer_s10"),
}


class Recorded(Noise):
    """The noise that the official run drew for each row, in order."""

    def __init__(self, rows: Sequence[Sequence[Tensor]]) -> None:
        super().__init__([0] * len(rows))
        self.rows = [list(row) for row in rows]

    def normal(self, *shape: int) -> Tensor:
        return torch.stack([row.pop(0).reshape(shape) for row in self.rows])

    def keep(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[row] for row in rows]


def _options(facts: dict[str, Any], sampler: Any) -> GenerateOptions:
    official = facts["options"]
    return GenerateOptions(
        max_concepts=facts["max_gen_len"],
        min_concepts=facts.get("kwargs", {}).get("min_gen_len", 1),
        end_similarity=official["eos_threshold"],
        repeat_similarity=official.get("stop_on_repetition_cosine_threshold"),
        keep_stop=not official.get("trim_hypotheses") or official["include_eos_token"],
        sampler=sampler,
    )


def _compare(
    file: Any, tag: str, prompts: list[Tensor], ours: list[Continuation], terms: int
) -> None:
    for number, (prompt, more) in enumerate(zip(prompts, ours, strict=True)):
        whole = torch.cat([prompt, more.concepts_SD])
        assert len(whole) == file.facts[tag]["out_lens"][number]
        file.check(f"{tag}/out/{number}", whole, terms=terms * len(more.concepts_SD))


@pytest.fixture
def base(golden: Callable[[str], Any]) -> BaseLCM:
    file = golden("base_model")
    model = BaseLCM(official_config(file.facts["config"]))  # type: ignore[arg-type]
    model.load_state_dict(official_state(file.under("")))
    return model.eval()


@pytest.mark.parametrize("tag", BASE_TAGS)
def test_base(base: BaseLCM, golden: Callable[[str], Any], tag: str) -> None:
    file = golden("base_generation")
    facts, prompts = file.facts[tag], file.listed(f"{tag}/prompt/")
    end = file[f"{tag}/eos_vec"] if f"{tag}/eos_vec" in file.tensors else None
    temperature = facts["options"].get("lcm_temperature", 0.0)
    noise = _base_noise(file, tag) if temperature else None
    options = _options(facts, BaseOptions(temperature))
    ours = generate_concepts(base, prompts, options, end=end, noise=noise)
    _compare(file, tag, prompts, ours, additions(base))
    finished = [
        "length" if len(p) + 8 == n else "stop"
        for p, n in zip(prompts, facts["out_lens"], strict=True)
    ]
    assert [c.reason if c.reason == "length" else "stop" for c in ours] == finished


def _base_noise(file: Any, tag: str) -> Noise:
    """Collect the noise of each document from the official calls.

    Call k, from 1, is for position k - 1 after the shortest prompt, with one row per unfinished
    document.
    """
    facts, calls = file.facts[tag], file.listed(f"{tag}/randn_like_call/")
    shortest, rows = min(facts["prompt_lens"]), []
    for number, (begin, end) in enumerate(
        zip(facts["prompt_lens"], facts["out_lens"], strict=True)
    ):
        row = []
        for position in range(begin, end):
            left = [n for n, length in enumerate(facts["out_lens"]) if length > position]
            row.append(calls[position - shortest + 1][left.index(number), 0])
        rows.append(row)
    return Recorded(rows)


def _two_tower(golden: Callable[[str], Any], tag: str) -> TwoTowerLCM:
    file = golden("two_tower_model")
    config = official_config(file.facts["config"])
    kind = next((ours for name, ours in PREDICTIONS.items() if tag.endswith(name)), "x0")
    plain = dataclasses.replace(
        config.schedule, prediction=kind, zero_terminal_snr=kind != "epsilon"
    )
    model = TwoTowerLCM(dataclasses.replace(config, schedule=plain))
    model.load_state_dict(official_state(file.under("")))
    return model.eval()


def _sampler(file: Any, tag: str) -> DiffusionOptions:
    official = file.facts[tag]["options"]
    if tag in AFTER_THRESHOLDING:
        official = (
            file.facts["cfg3_s10_thresholding"]["options"] | official | {"thresholding": True}
        )
    threshold = official["dynamic_thresholding_ratio"] if official.get("thresholding") else None
    return DiffusionOptions(
        steps=official["inference_timesteps"],
        guidance=official["guidance_scale"],
        guidance_rescale=official["guidance_rescale"],
        initial_noise=official["initial_noise_scale"],
        epsilon_scaling=official.get("epsilon_scaling", 1.0),
        eta=official.get("ddim_eta", 0.0),
        clip=official.get("clip_noise", 100),
        threshold=threshold,
        threshold_max=official.get("sample_max_value", 6.0),
        exact_steps=False,
    )


def _diffusion_noise(file: Any, tag: str) -> Noise:
    """Collect the noise of each document from the official calls.

    The record of a call names its position and its rows; with eta > 0 every step draws once more.
    """
    facts = file.facts[tag]
    starts, extra = (file.listed(f"{tag}/{kind}_call/") for kind in ("noise", "variance_noise"))
    by_concept, steps, rows = file[f"{tag}/noise_by_concept"], len(facts["timesteps"]), []
    for number, begin in enumerate(facts["prompt_lens"]):
        row = []
        for call, where in enumerate(facts["calls"]):
            concept = where["step_nr"] - begin
            if concept < 0 or number not in where["sample_indices"]:
                continue
            place = where["sample_indices"].index(number)
            assert torch.equal(starts[call][place, 0], by_concept[number, concept])
            row.append(starts[call][place, 0])
            row += [draw[place, 0] for draw in extra[call * steps : (call + 1) * steps]]
        rows.append(row)
    return Recorded(rows)


@pytest.mark.parametrize("tag", DIFFUSION_TAGS)
def test_two_tower(golden: Callable[[str], Any], tag: str) -> None:
    """Ours denoises each row from the end of its own prompt, the official code of the shortest."""
    file = golden("two_tower_generation")
    facts, prompts = file.facts[tag], file.listed(f"{tag}/prompt/")
    end = golden("two_tower_generation").tensors["cfg3_s10/out/1"][4] if "eos" in tag else None
    facts["options"].setdefault("include_eos_token", False)
    options = _options(facts, _sampler(file, tag))
    model, noise = _two_tower(golden, tag), _diffusion_noise(file, tag)
    ours = generate_concepts(model, prompts, options, end=end, noise=noise)
    _compare(file, tag, prompts, ours, len(facts["timesteps"]) * additions(model))


def test_every_step_of_a_trajectory(golden: Callable[[str], Any]) -> None:
    """The first official call denoises all three rows after their first three concepts."""
    file, tag = golden("two_tower_generation"), "cfg3_s40"
    prompts = [prompt[:3] for prompt in file.listed(f"{tag}/prompt/")]
    seen: list[Denoised] = []
    options = GenerateOptions(max_concepts=1, sampler=_sampler(file, tag))
    noise = Recorded([[start] for start in file[f"{tag}/noise_call/00"]])
    model = _two_tower(golden, tag)
    generate_concepts(model, prompts, options, noise=noise, watch=seen.append)
    assert [step.t for step in seen] == file.facts[tag]["timesteps"]
    for step in seen:
        key, terms = f"{tag}/traj/{step.index:02d}_t{step.t}", (step.index + 1) * additions(model)
        file.check(f"{key}/model_output", step.output[:, None], terms=terms)
        file.check(f"{key}/prev_sample", step.previous[:, None], terms=terms)
        file.check(f"{key}/pred_x0", step.x0[:, None], terms=terms)


def test_two_tower_teacher_forced(golden: Callable[[str], Any]) -> None:
    file, documents = golden("two_tower_generation"), golden("two_tower_losses").listed("source/")
    calls = file.listed("scorer_s10/noise_call/")
    noise_BSD = torch.zeros(4, len(calls), 32)
    for call, drawn in enumerate(calls):
        left = [number for number, document in enumerate(documents) if len(document) > call + 1]
        noise_BSD[left, call] = drawn[:, 0]
    options = _sampler(file, "cfg3_s10")
    model, batch = _two_tower(golden, "scorer"), Batch.of(documents)
    ours_BSD = model.predict(batch, options, Recorded([[row] for row in noise_BSD]))
    for number, document in enumerate(documents):
        ours = ours_BSD[number, : len(document) - 1]
        terms = options.steps * additions(model)
        file.check(f"scorer_s10/out/{number}", ours, terms=terms)


def test_base_teacher_forced(base: BaseLCM, golden: Callable[[str], Any]) -> None:
    file, documents = golden("base_generation"), golden("base_losses").listed("source/")
    ours_BSD = base.predict(Batch.of(documents), BaseOptions(), Noise([0] * 4))
    for number, document in enumerate(documents):
        ours = ours_BSD[number, : len(document) - 1]
        file.check(f"scorer_ctx1/{number}", ours, terms=additions(base))


def test_nothing_is_left_out(assert_complete: Callable[[list[str], int], None]) -> None:
    assert_complete(FILES, COMPARED)
