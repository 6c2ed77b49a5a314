from pathlib import Path

import pytest

from lcm_cli import settings
from lcm_cli.errors import IntegrityError, NotFoundError, UsageError

OPTIONS: dict[str, settings.Takes] = {
    "device": "value",
    "to": "list",
    "length": "value",
    "one-per-line": "switch",
    "verbose": "count",
}
SHARED = ("device", "to", "one-per-line", "seed")
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


def test_a_chosen_file_must_be_one(home: Path) -> None:
    Path("inner").mkdir()
    with pytest.raises(UsageError, match="inner is a folder, not a config file") as caught:
        settings.find_settings(Path("inner"))
    assert caught.value.hint == "name a file: inner/lcm.toml"
    Path("inner/lcm.toml").touch()
    with pytest.raises(UsageError) as caught:
        settings.find_settings(Path("inner"))
    assert caught.value.hint == "did you mean inner/lcm.toml?"
    with pytest.raises(UsageError, match="/dev/full is not a regular file"):
        settings.find_settings(Path("/dev/full"))
    assert settings.read_settings(Path("/dev/null")) == {}
    assert settings.find_settings(Path("/dev/null")) == Path("/dev/null")


def test_a_file_in_another_encoding() -> None:
    path = Path("c.toml")
    path.write_text('device = "cpu"\r\nseed = 3\r\n', encoding="utf-8-sig")
    assert settings.read_settings(path) == {"device": "cpu", "seed": 3}
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        path.write_text('device = "cpu"\n', encoding=encoding)
        with pytest.raises(IntegrityError, match=r"c\.toml is UTF-16, not UTF-8"):
            settings.read_settings(path)
    path.write_text('to = "fr"\n# fran\xe7ais\n', encoding="latin-1")
    with pytest.raises(IntegrityError, match=r"c\.toml is not UTF-8 at byte 16 \(line 2\)"):
        settings.read_settings(path)
    with pytest.raises(UsageError, match="cannot read gone"):
        settings.read_settings(Path("gone"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('to = "fr"', {"to": ["fr"]}),
        ('to = ["fr", "de"]', {"to": ["fr", "de"]}),
        ("to = []", {"to": []}),
        ("[summarize]\nlength = 3", {"length": "3"}),
        ("[summarize]\nlength = 0.25", {"length": "0.25"}),
        ("[summarize]\none_per_line = false", {"one-per-line": False}),
        ("[summarize]\nverbose = 2", {"verbose": "2"}),
        ("[summarize]\nverbose = true", {"verbose": 1}),
    ],
)
def test_values_are_those_of_the_command_line(line: str, expected: dict[str, object]) -> None:
    assert _defaults(line) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('device = ["cpu"]', 'c.toml: device = ["cpu"] is a list, not a string or a number'),
        ("device = true", "c.toml: device = true is a boolean, not a string or a number"),
        ("device = {a = 1}", 'c.toml: device = {"a": 1} is a table, not a string or a number'),
        ("to = {a = 1}", 'c.toml: to = {"a": 1} is a table, not a list of strings'),
        ('to = [["fr"]]', 'c.toml: to = [["fr"]] is a list, not a list of strings'),
        ("to = [true]", "c.toml: to = [true] is a boolean, not a list of strings"),
        ("one-per-line = [1]", "c.toml: one-per-line = [1] is a list, not true or false"),
        ("[summarize]\nlength = {a = 1}", 'length = {"a": 1} is a table, not a string or a'),
        ("[summarize]\nlength = 2026-01-01", 'length = "2026-01-01" is a date or time, not'),
        ("[summarize]\nverbose = []", "verbose = [] is a list, not a whole number"),
        ("summarize = 3", "c.toml: 'summarize' is a command, not an option"),
        ("[[summarize]]\nlength = 3", "c.toml: 'summarize' is a command, not an option"),
    ],
)
def test_values_of_the_wrong_type_are_refused(text: str, message: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        _defaults(text)
    assert message in caught.value.message


def test_defaults_of_a_command_in_a_group() -> None:
    Path("c.toml").write_text("[checkpoints]\nconvert = 3\n", encoding="utf-8")
    command = ["checkpoints", "convert"]
    with pytest.raises(IntegrityError, match="'convert' is a command: its options go in a table"):
        settings.defaults(Path("c.toml"), command, OPTIONS, SHARED, ["checkpoints"])


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
    assert _defaults(text) == {"device": "mps", "one-per-line": True, "length": "20%"}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('devise = "cpu"', "c.toml: 'devise' is not a known option", "did you mean device?"),
        ("length = 3", "c.toml: 'length' is not a known option", "known: device, to"),
        ("[summarise]", "c.toml: 'summarise' is not a known command", "did you mean summarize?"),
        ("[summarize]\nlenght = 3", "'lenght' is not a known option of summarize", "mean length?"),
        ("one_perline = true", "'one_perline' is not a known option", "did you mean one-per-line?"),
        (
            "[summarize]\nx = 1",
            "option of summarize",
            "known: device, to, length, one-per-line, verb",
        ),
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


def test_set_user_default_accepts_a_byte_order_mark(home: Path) -> None:
    home.mkdir(parents=True)
    (home / "lcm.toml").write_text('space = "tiny"\n', encoding="utf-8-sig")
    settings.set_user_default("space", "sonar")
    assert (home / "lcm.toml").read_text(encoding="utf-8") == 'space = "sonar"\n'


def test_set_user_default_refuses_unsafe_changes(home: Path) -> None:
    home.mkdir(parents=True)
    tricky = 'to = """\nspace = "tiny"\n"""\n'
    (home / "lcm.toml").write_text(tricky, encoding="utf-8")

    with pytest.raises(IntegrityError, match="cannot change") as caught:
        settings.set_user_default("space", "sonar")

    assert caught.value.hint == 'add this line yourself: space = "sonar"'
    assert (home / "lcm.toml").read_text(encoding="utf-8") == tricky
