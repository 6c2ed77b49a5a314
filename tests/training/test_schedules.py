"""Learning rates, against the official ones where those are right, else against formulas."""

import json
from pathlib import Path

import pytest

from lcm_cli.training.recipes.model import Ramp, Training
from lcm_cli.training.schedules import loss_weight, rate

GOLDEN = Path(__file__).parent.parent / "golden" / "lr_schedules.json"
OFFICIAL = {"learning_rate": 1e-3, "initial_rate": 1e-7, "final_rate": 1e-5}


def rates(count: int, **options: object) -> list[float]:
    training = Training(**OFFICIAL | options)  # type: ignore[arg-type]
    return [rate(step, training) for step in range(count)]


@pytest.mark.parametrize(
    ("name", "options", "right"),
    [
        # The official cosine takes one step more than its maximum, and then restarts.
        ("cosine", {"schedule": "cosine", "warmup": 10, "steps": 51}, 51),
        ("myle", {"schedule": "inverse_sqrt", "warmup": 10, "steps": 50}, 60),
        ("wsd", {"schedule": "wsd", "warmup": 5, "decay": 0.5, "steps": 50}, 60),
        ("wsd_.2_.6_.2", {"schedule": "wsd", "warmup": 10, "decay": 0.2, "steps": 50}, 60),
        ("noop", {"schedule": "constant", "warmup": 10, "steps": 50}, 60),
    ],
)
def test_the_official_schedules(name, options, right):
    golden = json.loads(GOLDEN.read_text())[name]
    assert rates(right, **options) == pytest.approx(golden[:right], rel=1e-9)


def test_linear_falls_in_a_straight_line():
    found = rates(61, schedule="linear", warmup=10, steps=50, final_rate=2e-4)
    assert found[:11] == pytest.approx([1e-7 + (1e-3 - 1e-7) * step / 10 for step in range(11)])
    assert found[30] == pytest.approx(6e-4) and found[50:] == pytest.approx([2e-4] * 11)


def test_wsd_reaches_zero_in_a_straight_line():
    found = rates(50, schedule="wsd", warmup=0, steps=40, decay=0.5, final_rate=0.0)
    assert found[:21] == [1e-3] * 21 and found[30] == pytest.approx(5e-4) and found[40:] == [0] * 10


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "inverse_sqrt", "constant"])
def test_no_schedule_leaves_its_bounds(schedule):
    for warmup in (0, 1, 40, 100):
        found = rates(120, schedule=schedule, warmup=warmup, steps=40)
        assert all(1e-7 <= value <= 1e-3 for value in found)


def test_weights_of_losses_go_from_the_first_step_to_the_last():
    line, curve = Ramp(0.5, 2.5), Ramp(2.0, 0.0, "cosine")
    assert [loss_weight(line, step, 5) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.5]
    half = 2**0.5 / 2  # the cosine of an eighth of a circle
    expected = [2.0, 1 + half, 1.0, 1 - half, 0.0]
    found = [loss_weight(curve, step, 5) for step in range(5)]
    assert found == pytest.approx(expected, abs=1e-15)
    assert loss_weight(line, 7, 5) == 2.5 and loss_weight(line, 0, 1) == 0.5
    assert loss_weight(0.25, 3, 5) == 0.25
    assert line and curve and not Ramp(0.0, 0.0)
