from pathlib import Path

import pytest

from lcm_cli import paths

VARIABLES = ("LCM_CACHE", "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "~/.cache/huggingface/lcm"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/huggingface/lcm"),
        ({"XDG_CACHE_HOME": "/xdg", "HF_HOME": "/hf"}, "/hf/lcm"),
        ({"HF_HOME": "/hf", "LCM_CACHE": "~/mine"}, "~/mine"),
        ({"HF_HOME": "", "LCM_CACHE": ""}, "~/.cache/huggingface/lcm"),
    ],
)
def test_cache_dir(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, variables)
    assert paths.cache_dir() == Path(expected).expanduser()


def test_cache_dir_is_beside_what_huggingface_hub_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, {})
    from huggingface_hub import constants

    assert paths.hf_home() == Path(constants.default_home).expanduser() / "huggingface"


def test_user_config_file(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, {})
    assert paths.user_config_file() == Path("~/.config/lcm/lcm.toml").expanduser()
    _set(monkeypatch, {"XDG_CONFIG_HOME": "/xdg"})
    assert paths.user_config_file() == Path("/xdg/lcm/lcm.toml")


def _set(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
