import sys
from importlib import import_module
from typing import Annotated, get_args, get_origin

import pytest
import typer

from lcm_cli import console
from lcm_cli.errors import UsageError

options = import_module("lcm_cli.commands._options")
training = import_module("lcm_cli.commands._training")


def _flags() -> set[str]:
    aliases = [value for value in vars(options).values() if get_origin(value) is Annotated]
    found = [info for alias in aliases for info in get_args(alias)[1:]]
    return {
        flag.removeprefix("--")
        for info in found
        if hasattr(info, "param_decls") and not isinstance(info, type(typer.Argument()))
        for flag in (info.default, *(info.param_decls or ()))
        if isinstance(flag, str) and flag.startswith("--")
    }


@pytest.mark.parametrize(
    ("epochs", "told"),
    [(3000.0, "3,000 epochs"), (99.5, "99.5 epochs"), (1.0, "1 epoch"), (1e-3, "0.001 epochs")],
)
def test_an_estimate_in_epochs(
    capsys: pytest.CaptureFixture[str], epochs: float, told: str
) -> None:
    keys = ("parameters", "trained", "state_bytes", "disk_bytes", "per_step")
    rest = {"memory_bytes": 0, "steps": 50, "unit": "concepts", "epochs": epochs}
    unknown = {"seconds_per_step": None, "not_known": []}
    training.show_estimate(dict.fromkeys(keys, 10) | rest | unknown)
    assert f"steps       50, {told}\n" in capsys.readouterr().out


def test_what_the_config_file_may_share_is_shared() -> None:
    common = {"quiet", "verbose", "offline"}
    assert set(options.SHARED) - common <= _flags()
    # These are for single calls only.
    assert _flags() - set(options.SHARED) == {"json", "output", "force"}


def test_inputs_default_to_what_is_piped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options.input_paths(["a", "-"]) == ["a", "-"]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    assert options.input_paths(None) == ["-"]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(UsageError, match="nothing to read"):
        options.input_paths([])


def test_the_default_space_is_said_and_a_chosen_one_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.configure()
    assert options.space_or_default("sonar") == "sonar"
    assert capsys.readouterr().err == ""
    assert options.space_or_default(None) == "tiny"
    assert "lcm pull sonar --set-default" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:3"])
def test_devices_that_can_exist(device: str) -> None:
    assert options._checked_device(device) == device


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:x", "cpu "])
def test_devices_that_cannot(device: str) -> None:
    with pytest.raises(typer.BadParameter):
        options._checked_device(device)
