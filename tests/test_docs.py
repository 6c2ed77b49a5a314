"""The pages say what the program says."""

import importlib.util
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from lcm_cli.app import COMMANDS

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def update_help() -> ModuleType:
    spec = importlib.util.spec_from_file_location("update_help", DOCS / "update_help.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_the_help_in_a_page_is_the_programs(
    page: Path, update_help: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1")  # is set by the script, and put back here
    text = page.read_text(encoding="utf-8")
    assert update_help.updated(text) == text, "run: make docs"


def test_every_command_has_its_block(update_help: ModuleType) -> None:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    expected = ["lcm"]
    for name in COMMANDS:
        module = import_module(f"lcm_cli.commands.{name}")
        below = getattr(module, "SUBCOMMANDS", ())
        expected += [f"lcm {name}", *(f"lcm {name} {subcommand}" for subcommand in below)]
    assert update_help.commands(page) == expected


def test_every_checkpoint_is_in_the_table_with_its_licence() -> None:
    from lcm_cli.hub.cards import UNKNOWN_LICENCE, cards

    page = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    for name, card in cards().items():
        start = f"| [{card.family}-LANG]" if card.family else f"| [{name}]"
        line = next(line for line in page.splitlines() if line.startswith(start))
        *_, licence = (cell.strip() for cell in line.strip("| ").split("|"))
        unknown = card.licence == UNKNOWN_LICENCE
        shown = "not known before the pull" if unknown else card.licence
        assert shown in licence if card.family else shown == licence
        assert f"| {card.kind} |" in line
