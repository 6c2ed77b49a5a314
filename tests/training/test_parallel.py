"""Several processes compute the losses and weights of one, and resume in other numbers."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lcm_cli.models.checkpoint import load_model
from lcm_cli.training.states import states

COMMON = (
    "--set", "train.steps=8", "--set", "train.save_every=4", "--set", "train.accumulate=2",
    "--set", "train.eval_every=8", "--device", "cpu",
)  # fmt: skip


def weights(folder):
    model = load_model(folder / "model")
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def scores(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return next(record["eval"] for record in map(json.loads, lines) if "eval" in record)


@pytest.mark.parametrize(
    ("architecture", "parallel"),
    [
        ("base", "ddp"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                *(("two_tower", "ddp"), ("sonar_llm", "ddp")),
                *(("one_tower", "fsdp"), ("two_tower", "fsdp"), ("sonar_llm", "fsdp")),
            )
        ),
    ],
)
def test_two_processes_compute_what_one_does(run, write_recipe, tmp_path, architecture, parallel):
    compare_processes(run, write_recipe(architecture), tmp_path, f"train.parallel={parallel}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "parallel"), [("one_tower", "fsdp"), ("two_tower", "ddp")]
)
def test_two_processes_draw_different_rows_to_estimate(
    run, write_recipe, tmp_path, architecture, parallel
):
    changes = "model.self_conditioning=true", f"train.parallel={parallel}"
    compare_processes(run, write_recipe(architecture), tmp_path, *changes)


def compare_processes(run, recipe, tmp_path, *changes):
    """Train in one process and in two, and compare scores and weights."""
    errors = tmp_path / "errors"
    common = ("train", recipe, *COMMON, *(p for each in changes for p in ("--set", each)), "-o")
    assert run(*common, tmp_path / "one", errors=errors) == 0, errors.read_text()
    assert run(*common, tmp_path / "two", errors=errors, processes=2) == 0, errors.read_text()
    one, two = scores(tmp_path / "one"), scores(tmp_path / "two")
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    # AdamW turns rounding of tiny gradients into steps: a few weights differ in the fifth digit.
    torch.testing.assert_close(
        weights(tmp_path / "one"), weights(tmp_path / "two"), atol=1e-4, rtol=0
    )


@pytest.mark.slow
def test_two_processes_train_the_adapters_that_one_does(run, write_recipe, tmp_path):
    recipe, errors, base = write_recipe("base"), tmp_path / "errors", tmp_path / "base"
    assert run("train", recipe, *COMMON, "-o", base, errors=errors) == 0, errors.read_text()
    adapt = ("--set", f'start="{base}/model"', "--set", "adapter.rank=2")
    common = ("train", recipe, *COMMON, *adapt, "-o")
    assert run(*common, tmp_path / "one", errors=errors) == 0, errors.read_text()
    assert run(*common, tmp_path / "two", errors=errors, processes=2) == 0, errors.read_text()
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)
    assert not torch.equal(one, weights(base))


@pytest.mark.slow
def test_processes_with_readers_of_their_own_compute_what_one_does(run, write_recipe, tmp_path):
    recipe, errors = write_recipe("base"), tmp_path / "errors"
    packed = ("--set", "data.packing=true", "--set", "data.wrap=4")  # enough rows for two readers
    common = ("train", recipe, *COMMON, *packed, "-o")
    assert run(*common, tmp_path / "one", errors=errors) == 0, errors.read_text()
    assert run(*common, tmp_path / "two", errors=errors, processes=2) == 0, errors.read_text()
    alone = (*common, tmp_path / "alone", "--set", "data.readers=1")
    assert run(*alone, errors=errors) == 0, errors.read_text()
    one, two, other = (weights(tmp_path / name) for name in ("one", "two", "alone"))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)
    assert (one - other).abs().max() > 1e-3  # the order is another one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "precision", "tolerance"),
    [("muon", "float32", 1e-4), ("adamw", "float16", 2e-3), ("muon", "float16", 2e-3)],
)
def test_fsdp_with_muon_and_scaled_losses(
    run, write_recipe, tmp_path, optimizer, precision, tolerance
):
    """Two processes compute what one does, and resume as if never stopped."""
    recipe, errors = write_recipe("base"), tmp_path / "errors"
    still = ("model.transformer.dropout=0.0", "train.schedule=constant", "train.parallel=fsdp")
    kind = (f"train.optimizer={optimizer}", f"train.precision={precision}")
    changes = [part for change in (*still, *kind) for part in ("--set", change)]
    common = ("train", recipe, *COMMON, *changes, "-o")
    assert run(*common, tmp_path / "one", errors=errors) == 0, errors.read_text()
    assert run(*common, tmp_path / "two", errors=errors, processes=2) == 0, errors.read_text()
    half = (*common, tmp_path / "half", "--set", "train.steps=4")
    assert run(*half, errors=errors, processes=2) == 0, errors.read_text()
    resumed = (*common, tmp_path / "half", "--resume")
    assert run(*resumed, errors=errors, processes=2) == 0, errors.read_text()
    one, two, half = (weights(tmp_path / name) for name in ("one", "two", "half"))
    torch.testing.assert_close(one, two, atol=tolerance, rtol=0)
    assert torch.equal(two, half)
    assert scores(tmp_path / "one")["loss"] == pytest.approx(
        scores(tmp_path / "two")["loss"], rel=1e-5 if precision == "float32" else 1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "others"), [("ddp", 1), ("fsdp", 3)])
def test_a_run_goes_on_in_another_number_of_processes(
    run, write_recipe, tmp_path, parallel, others
):
    recipe, errors = write_recipe("base"), tmp_path / "errors"
    # Without dropout nothing is random, however many micro-batches there are.
    still = ("--set", "model.transformer.dropout=0.0", "--set", "train.schedule=constant")
    common = ("train", recipe, *COMMON, *still, "--set", f"train.parallel={parallel}", "-o")
    assert run(*common, tmp_path / "whole", errors=errors) == 0, errors.read_text()
    half = (*common, tmp_path / "run", "--set", "train.steps=4")
    assert run(*half, errors=errors, processes=2) == 0, errors.read_text()
    assert states(tmp_path / "run")[-1].is_dir() == (parallel == "fsdp")
    resumed = (*common, tmp_path / "run", "--resume")
    assert run(*resumed, errors=errors, processes=others) == 0, errors.read_text()
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "run")
    torch.testing.assert_close(left, right, atol=1e-4, rtol=0)


DISAGREEING = """
import os
from pathlib import Path
from lcm_cli.app import main
from lcm_cli.training.trainers.concept_model import ModelTrainer

scores = {"0": [3.0, 2.0, 2.5, 2.5], "1": [3.0, 4.0, 5.0, 1.0]}[os.environ["RANK"]]
ModelTrainer.evaluate = lambda self, folder: {"eval": {"loss": scores.pop(0)}}
os._exit(main())
"""


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_the_first_process_decides_which_weights_are_best(run, write_recipe, tmp_path, parallel):
    """As many processes export, which is a collective with fsdp, and end at the same step."""
    recipe, errors = write_recipe("base"), tmp_path / "errors"
    patience = (
        "--set",
        "train.steps=20",
        "--set",
        "train.eval_every=2",
        "--set",
        "train.patience=2",
    )
    common = ("train", recipe, *COMMON, *patience, "--set", f"train.parallel={parallel}", "-o")
    folder = tmp_path / "run"
    assert run(*common, folder, errors=errors, processes=2, code=DISAGREEING) == 0, (
        errors.read_text()
    )
    assert states(folder)[-1].name.removesuffix(".pt") == "state-000000008"
    assert (folder / "best" / "model").is_dir()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """A folder for the teachers by architecture, which are trained when first needed."""
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture
def taught(run, write_recipe, teachers, tmp_path):
    """Return the arguments of a distillation that also learns hidden states."""

    def make(architecture, *changes):
        recipe, errors = write_recipe(architecture), tmp_path / "errors"
        teacher = teachers / architecture
        if not teacher.exists():
            assert run("train", recipe, *COMMON, "-o", teacher, errors=errors) == 0
        with recipe.open("a") as file:
            file.write(f'[distill]\nteacher = "{teacher}"\nhidden = 1.0\n')
        narrow = "transformer" if architecture == "base" else "denoiser"
        smaller = ("--set", "model.model_dim=32", "--set", f"model.{narrow}.layers=1")
        return ("distill", recipe, *COMMON, *smaller, *changes, "-o")

    return make


def logged(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "parallel", "weights_of_parts"),
    [
        # A part without weight in the first step, and frozen parameters, must not stop DDP.
        ("base", "ddp", {"own": "{start=0.0,end=1.0}"}),
        ("two_tower", "fsdp", {}),
        # Without these losses the head has no gradient.
        ("base", "ddp", {"own": 0.0, "prediction": 0.0}),
    ],
)
def test_two_processes_distill_what_one_does(
    run, taught, tmp_path, architecture, parallel, weights_of_parts
):
    changes = [f"distill.{name}={value}" for name, value in weights_of_parts.items()]
    changes += [f"train.parallel={parallel}", "train.steps=20", "train.save_every=20"]
    changes += ['train.freeze=["*frontend.*"]']
    common = taught(architecture, *(part for change in changes for part in ("--set", change)))
    errors = tmp_path / "errors"
    assert run(*common, tmp_path / "one", errors=errors) == 0, errors.read_text()
    assert run(*common, tmp_path / "two", errors=errors, processes=2) == 0, errors.read_text()
    (one,), (two,) = (logged(tmp_path / name) for name in ("one", "two"))
    for name in {"loss", "own", "own_weight", "prediction", "hidden", "concepts"} & one.keys():
        assert one[name] == pytest.approx(two[name], rel=1e-5)
    assert "hidden" in one
    found, others = (scores(tmp_path / name) for name in ("one", "two"))
    for name in {"prediction", "hidden"} & one.keys():
        assert found[name] == pytest.approx(others[name], rel=1e-3)
    for folder in (".", "alone"):
        torch.testing.assert_close(
            weights(tmp_path / "one" / folder), weights(tmp_path / "two" / folder),
            atol=1e-4, rtol=0,
        )  # fmt: skip
    left, right = (json.loads((tmp_path / name / "report.json").read_text())
                   for name in ("one", "two"))  # fmt: skip
    assert list(left) == list(right) == ["teacher", "student", "alone"]
    assert left["student"]["l2"] == pytest.approx(right["student"]["l2"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "parallel", "others"),
    [
        ("base", "ddp", 1),
        ("base", "fsdp", 2),
        ("two_tower", "ddp", 2),
        ("two_tower", "fsdp", 2),
    ],
)
def test_a_distillation_goes_on(run, taught, tmp_path, architecture, parallel, others):
    still = ["--set", "train.schedule=constant", "--set", 'train.freeze=["*frontend.*"]']
    if architecture == "base":
        still += ["--set", "model.transformer.dropout=0.0"]
    common = taught(architecture, *still, "--set", f"train.parallel={parallel}")
    errors = tmp_path / "errors"
    assert run(*common, tmp_path / "whole", errors=errors) == 0, errors.read_text()
    half = (*common, tmp_path / "run", "--set", "distill.compare=false", "--set", "train.steps=4")
    assert run(*half, errors=errors, processes=2) == 0, errors.read_text()
    resumed = (*common, tmp_path / "run", "--resume")
    assert run(*resumed, errors=errors, processes=others) == 0, errors.read_text()
    for folder in (".", "alone"):
        torch.testing.assert_close(
            weights(tmp_path / "whole" / folder), weights(tmp_path / "run" / folder),
            atol=1e-4, rtol=0,
        )  # fmt: skip


@pytest.mark.slow
def test_processes_capture_and_learn_together(run, taught, tmp_path):
    common, errors = taught("two_tower", "--set", "distill.hidden=0.0"), tmp_path / "errors"
    captured = ("--set", f"distill.capture={tmp_path}/teacher", "--set", "distill.compare=false")
    assert run(*common, tmp_path / "run", *captured, "--capture", errors=errors, processes=2) == 0
    assert "share 0 of 2" in errors.read_text() and "share 1 of 2" in errors.read_text()
    for name, count in (("one", 1), ("two", 2)):
        code = run(*common, tmp_path / name, *captured, errors=errors, processes=count)
        assert code == 0, errors.read_text()
        assert "done:" in errors.read_text()
    torch.testing.assert_close(
        weights(tmp_path / "one"), weights(tmp_path / "two"), atol=1e-4, rtol=0
    )


@pytest.mark.slow
def test_cut_states_need_several_processes(run, write_recipe, tmp_path):
    recipe, errors = write_recipe("base"), tmp_path / "errors"
    common = ("train", recipe, *COMMON, "--set", "train.parallel=fsdp", "-o", tmp_path / "run")
    assert run(*common, errors=errors, processes=2) == 0, errors.read_text()
    assert run(*common, "--resume", errors=errors) == 5
    assert "two processes or more" in errors.read_text()


def test_a_space_is_trained_by_one(run, tmp_path):
    recipe, errors = tmp_path / "space.toml", tmp_path / "errors"
    recipe.write_text(
        'kind = "space"\nname = "x"\nlanguages = ["eng_Latn"]\n[data]\ntrain = ["nowhere.jsonl"]\n'
    )
    assert run("train", recipe, "-o", tmp_path / "run", errors=errors, processes=2) == 2
    assert "one process" in errors.read_text()


@pytest.mark.slow
def test_torchrun_starts_it(write_recipe, tmp_path):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "lcm_cli", "train", str(write_recipe("base")), "-o", str(tmp_path / "run")),
        *COMMON,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    # Gloo also writes to stdout, in partial lines.
    assert done.stdout.splitlines().count(str(tmp_path / "run" / "model")) == 1
    assert weights(tmp_path / "run").isfinite().all()
