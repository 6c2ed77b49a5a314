from pathlib import Path

import pytest

from lcm_cli import settings
from lcm_cli.errors import IntegrityError, NotFoundError

OPTIONS = ("device", "to", "length", "one_per_line")
SHARED = ("device", "to", "one_per_line", "seed")
COMMANDS = ("summarize", "embed")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder with its own user folder, and return the latter."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "lcm"


def _defaults(text: str) -> dict[str, object]:
    path = Path("c.toml")
    path.write_text(text, encoding="utf-8")
    return settings.defaults(path, ["summarize"], OPTIONS, SHARED, COMMANDS)


def test_find_prefers_the_chosen_file_then_the_folder_then_the_user(home: Path) -> None:
    assert settings.find_settings() is None
    home.mkdir(parents=True)
    (home / "lcm.toml").touch()
    assert settings.find_settings() == home / "lcm.toml"
    Path("lcm.toml").touch()
    assert settings.find_settings() == Path("lcm.toml")
    Path("mine.toml").touch()
    assert settings.find_settings(Path("mine.toml")) == Path("mine.toml")
    with pytest.raises(NotFoundError, match=r"no such config file: gone\.toml"):
        settings.find_settings(Path("gone.toml"))


def test_defaults_takes_flat_keys_and_the_commands_table() -> None:
    text = """
        device = "cpu"
        one-per-line = true
        seed = 3
        [summarize]
        length = "20%"
        device = "mps"
        [embed]
        anything = 1
    """
    assert _defaults(text) == {"device": "mps", "one_per_line": True, "length": "20%"}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('devise = "cpu"', "c.toml: 'devise' is not a known option", "did you mean device?"),
        ("length = 3", "c.toml: 'length' is not a known option", "known: device, to"),
        ("[summarise]", "c.toml: 'summarise' is not a known command", "did you mean summarize?"),
        ("[summarize]\nlenght = 3", "'lenght' is not a known option of summarize", "mean length?"),
        ("device = ", "c.toml is not valid TOML", ""),
    ],
)
def test_defaults_refuses_unknown_keys(text: str, message: str, hint: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        _defaults(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_set_user_default_creates_the_file(home: Path) -> None:
    path = settings.set_user_default("space", 'my "odd" \\ one')
    assert path == home / "lcm.toml"
    assert settings.read_settings(path) == {"space": 'my "odd" \\ one'}


def test_set_user_default_keeps_everything_else(home: Path) -> None:
    home.mkdir(parents=True)
    old = '# mine\ndevice = "cpu"\nspace = "tiny"\n\n[embed]\nspace = "other"  # stays\n'
    (home / "lcm.toml").write_text(old, encoding="utf-8")

    path = settings.set_user_default("space", "sonar")

    assert path.read_text(encoding="utf-8") == old.replace('"tiny"', '"sonar"')


def test_set_user_default_refuses_unsafe_changes(home: Path) -> None:
    home.mkdir(parents=True)
    tricky = 'to = """\nspace = "tiny"\n"""\n'
    (home / "lcm.toml").write_text(tricky, encoding="utf-8")

    with pytest.raises(IntegrityError, match="cannot change") as caught:
        settings.set_user_default("space", "sonar")

    assert caught.value.hint == 'add this line yourself: space = "sonar"'
    assert (home / "lcm.toml").read_text(encoding="utf-8") == tricky
