"""Curves and estimates: the output of `lcm plot` and `lcm train --dry-run`."""

import json

import pytest
import torch

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.training.curves import plot, read_curves, tensorboard
from lcm_cli.training.dry_run import _measured, _report
from lcm_cli.training.estimate import flops_per_concept, matrix_weights
from lcm_cli.training.loop import Run

RECORDS = [
    {"step": 20, "loss": 3.0, "loss_3": 2.0, "lr": 0.1, "minutes": 1},
    {"step": 20, "eval": {"loss": 2.5, "l2": 0.3}, "minutes": 1},
    {"step": 40, "sample": {"text": ["A cat."]}, "minutes": 2},
    {"step": 40, "loss": 2.0, "lr": 0.2, "minutes": 2},
]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 60, "lo')  # being written
    return folder


def test_curves_are_read_from_the_log(run):
    curves = read_curves(run)
    assert curves["loss"] == ([20, 40], [3.0, 2.0]) and curves["eval.l2"] == ([20], [0.3])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_runs_are_drawn_side_by_side(run, tmp_path, suffix):
    target = tmp_path / f"curves.{suffix}"
    assert plot([run, run], target) == ["loss", "eval.loss", "eval.l2", "lr"]
    start = target.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if suffix == "png" else b"<?xml" in start
    with pytest.raises(UsageError, match="exists already"):
        plot([run], target)


def test_what_cannot_be_drawn(run, tmp_path):
    with pytest.raises(UsageError, match="not a supported image"):
        plot([run], tmp_path / "curves.txt")
    with pytest.raises(NotFoundError, match="nowhere"):
        plot([tmp_path / "nowhere"], tmp_path / "a.png")
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(IntegrityError, match="no log records"):
        plot([run], tmp_path / "a.png")
    (run / "metrics.jsonl").unlink()
    (run / "recipe.json").write_text("{}")  # the run has begun
    with pytest.raises(IntegrityError, match="no log records yet"):
        plot([run], tmp_path / "a.png")


@pytest.mark.slow
def test_the_command_draws(lcm, run, tmp_path):
    result = lcm("plot", run, "-o", tmp_path / "a.png", "--json")
    assert result.code == 0 and json.loads(result.stdout)["panels"][0] == "loss"
    assert lcm("plot", run, "-o", tmp_path / "a.png").code == 2
    assert lcm("plot", tmp_path, "-o", tmp_path / "b.png").code == 3


def test_tensorboard_gets_every_number(tmp_path):
    write = tensorboard(tmp_path)
    for record in RECORDS:
        write(record)
    written = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"eval/l2" in written and b"A cat." in written


def test_an_estimate_counts_what_a_state_holds(start, tmp_path, model_recipe):
    trainer = start(tmp_path)
    size = sum(p.numel() for p in trainer.model.parameters())
    report = _report(model_recipe(), (size, size), 0.0)
    Run(trainer, tmp_path).train()
    state = next(tmp_path.glob("state-*.pt")).stat().st_size
    assert report["disk_bytes"] == pytest.approx(3 * state + 8 * size, rel=0.05)
    assert report["state_bytes"] == 16 * size
    measured = _measured(start(tmp_path / "b"), torch.device("cpu"))
    assert measured["unit"] == "concepts" and measured["per_step"] > 20
    assert measured["minutes"] == pytest.approx(24 * measured["seconds_per_step"] / 60)


def test_flops_of_a_step_by_torchs_own_count(start, tmp_path):
    from torch.utils.flop_counter import FlopCounterMode

    trainer = start(tmp_path, data=None)
    batch = trainer.data.batch(0)
    with FlopCounterMode(display=False) as counter:
        trainer.model.loss(batch).value.backward()
    positions = batch.concepts_BSD.shape[0] * batch.concepts_BSD.shape[1]
    ours = flops_per_concept(trainer.model.config, matrix_weights(trainer.model), 6) * positions
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.15)
