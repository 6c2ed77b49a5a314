"""The package as it is installed."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lcm_cli

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = ("lcm_cli", "commands", "checkpoints")


def test_every_package_is_listed() -> None:
    found = {"lcm_cli.commands", "lcm_cli.checkpoints"}
    for init in (ROOT / "lcm_cli").rglob("__init__.py"):
        found.add(".".join(init.parent.relative_to(ROOT).parts))
    assert sorted(found) == sorted(PYPROJECT["tool"]["setuptools"]["packages"])


def test_everything_public_exists() -> None:
    assert {name for name in lcm_cli.__all__ if not hasattr(lcm_cli, name)} == set()
    assert set(lcm_cli.__all__) <= set(dir(lcm_cli))
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = lcm_cli.nosuch


def test_the_pinned_versions_suit_the_package_and_its_build() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = (Requirement(line) for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(pin.name): pin.specifier for pin in pinned}
    project = PYPROJECT["project"]
    wanted = [*PYPROJECT["build-system"]["requires"], *project["dependencies"]]
    wanted += [each for extra in project["optional-dependencies"].values() for each in extra]
    checked = set()
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        for pin in pins.get(name, ()):
            assert requirement.specifier.contains(pin.version), requirement
            checked.add(name)
    assert checked >= {"torch", "huggingface-hub", "sonar-space", "pytest"}


@pytest.mark.network  # pip fetches the build backend
def test_the_wheel_has_everything_below_one_name(tmp_path: Path) -> None:
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", "out", "."]
    subprocess.run(command, cwd=tmp_path, check=True)

    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (top,) = (name for name in names if name.endswith("top_level.txt"))
        assert archive.read(top).decode().split() == ["lcm_cli"]
    sources = (path for name in FOLDERS for path in (ROOT / name).rglob("*.*"))
    homes = {path.relative_to(ROOT).as_posix().removeprefix("lcm_cli/") for path in sources}
    wanted = {f"lcm_cli/{home}" for home in homes if "__pycache__" not in home}
    assert wanted - names == set()
