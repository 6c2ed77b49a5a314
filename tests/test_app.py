import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lcm_cli import __version__, app, console
from lcm_cli.errors import AuthError, IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.files import atomic_path

Run = Callable[..., Any]
HEAVY = ("torch", "numpy", "sonar", "fairseq2", "transformers", "pyarrow", "rich")


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A command `probe` that prints its options, or raises `probe.error`."""
    options = import_module("lcm_cli.commands._options")
    module = ModuleType("lcm_cli.commands.probe")

    def main(
        device: options.Device = "auto",  # type: ignore[name-defined]
        precision: options.Precision = "auto",  # type: ignore[name-defined]
        to: options.To = None,  # type: ignore[name-defined]
        seed: options.Seed = 0,  # type: ignore[name-defined]
    ) -> None:
        """Print the options."""
        if module.error is not None:
            raise module.error
        console.detail("a detail")
        offline = os.environ.get("HF_HUB_OFFLINE")
        console.emit(
            {"device": device, "precision": precision, "to": to, "seed": seed, "offline": offline}
        )

    vars(module).update(main=main, error=None, EPILOG="lcm probe --seed 3\n\nlcm probe\n")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(app, "COMMANDS", ("probe", "doctor"))
    return module


def test_every_command_has_a_module_and_a_line_of_help(lcm: Run) -> None:
    shown = lcm("--help")
    assert shown.code == 0
    listed = shown.stdout.partition("Commands:")[2].split("\n")
    assert [line.split()[0] for line in listed if line] == list(app.COMMANDS)
    assert all(len(line.split()) > 1 for line in listed if line)


@pytest.mark.parametrize("args", [["--help"], ["summarize", "--help"], ["--version"], ["nosuch"]])
def test_nothing_heavy_is_imported_before_it_is_needed(args: list[str]) -> None:
    code = (
        "import sys; from lcm_cli.app import main; main(sys.argv[1:]);"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_quick() -> None:
    code = "import time; from lcm_cli.app import main; main(['--help']); print(time.process_time())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # About 0.15 s of processor time; the slack is for slow machines, not for new imports.
    assert float(done.stdout.splitlines()[-1]) < 1.0


def test_import_of_the_library_is_light() -> None:
    code = f"import lcm_cli, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_version(lcm: Run, lcm_process: Run) -> None:
    for run in (lcm, lcm_process):
        assert run("-V").stdout == run("--version").stdout == f"lcm {__version__}\n"


def test_without_a_command(lcm: Run, probe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = lcm()
    assert (silent.code, silent.stdout) == (2, "")
    assert silent.stderr == "error: no command given\nhint: see the commands: lcm --help\n"


def test_without_a_command_a_terminal_gets_help(
    probe: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert app.main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: lcm ")


def test_help_has_one_example_per_line(lcm: Run, probe: ModuleType) -> None:
    for flag in ("-h", "--help"):
        shown = lcm("probe", flag)
        assert shown.code == 0
        assert shown.stdout.endswith("  Examples:\n    lcm probe --seed 3\n    lcm probe\n")


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["prove"], "no such command 'prove'. Did you mean 'probe'?", "options: lcm --help"),
        (["probe", "--sede", "1"], "no such option: --sede", "options: lcm probe --help"),
        (["probe", "--seed", "x"], "invalid value for '--seed'", "options: lcm probe --help"),
        (["probe", "--seed", "x"], ": 'x' should be a valid integer", "lcm probe --help"),
        (["probe", "--precision", "double"], ": 'double' is not one of 'auto', ", "lcm probe"),
        (["probe", "--device", "gpu"], "'gpu' is not one of auto, cpu", "lcm probe --help"),
        (["probe", "--precision", "int4"], "'--precision'", "lcm probe --help"),
        (["probe", "more"], "unexpected extra argument(s) (more)", "lcm probe --help"),
        (["--sede"], "no such option: --sede", "lcm --help"),
        (["probe", "--device", ""], "the argument after --device is empty", "of the shell"),
        (["probe", "--device="], "--device= has no value", "variable of the shell"),
        (["probe", ""], "the argument after probe is empty", "variable of the shell"),
    ],
)
def test_wrong_call_gives_two_lines(
    args: list[str], message: str, hint: str, lcm: Run, probe: ModuleType
) -> None:
    done = lcm(*args)
    assert (done.code, done.stdout) == (2, "")
    error, help = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert help.startswith("hint: ")
    assert hint in help


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (LcmError("m", "h"), 1, "error: m\nhint: h\n"),
        (UsageError("m"), 2, "error: m\n"),
        (NotFoundError("m"), 3, "error: m\n"),
        (AuthError("m"), 4, "error: m\n"),
        (IntegrityError("m"), 5, "error: m\n"),
        (KeyboardInterrupt(), 130, ""),
        (FileNotFoundError(errno.ENOENT, "No such", "a\x1bb"), 3, "error: no such file: a\\x1bb\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a"),
            1,
            "error: a: Permission denied\n",
        ),
        (
            ValueError("two\nlines"),
            1,
            "error: unexpected ValueError: two lines; "
            "run again with LCM_DEBUG=1 for the traceback\n",
        ),
    ],
)
def test_an_error_has_its_code_and_no_traceback(
    error: BaseException, code: int, stderr: str, lcm: Run, probe: ModuleType
) -> None:
    probe.error = error
    done = lcm("probe", "--quiet")
    assert (done.code, done.stdout, done.stderr) == (code, "", stderr)


@pytest.fixture
def writing(probe: ModuleType, tmp_path: Path) -> Callable[..., None]:
    """Make `probe` write a file and receive signals meanwhile."""

    def main(*signals: int) -> None:
        def work() -> None:
            """Write a file."""
            with atomic_path(tmp_path / "result") as temporary:
                for number in signals:
                    os.kill(os.getpid(), number)
                temporary.write_text("done")

        vars(probe).update(main=work)

    return main


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_cleans_up(
    name: str, code: int, lcm: Run, writing: Callable[..., None], tmp_path: Path
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    writing(number)
    done = lcm("probe")
    assert (done.code, done.stdout, done.stderr) == (code, "", "")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) == before


def test_an_ignored_signal_stays_ignored(
    lcm: Run, writing: Callable[..., None], tmp_path: Path
) -> None:
    writing(signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert lcm("probe").code == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "result").read_text() == "done"


def test_signals_in_quick_succession_count_once() -> None:
    received: list[int] = []
    with app.on_signals(received.append, "SIGTERM", "SIGHUP"):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == [signal.SIGHUP]
        time.sleep(app.REPEATED)
        os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGHUP, signal.SIGTERM]


def test_main_runs_outside_the_main_thread(lcm: Run, probe: ModuleType) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(lcm("probe").code))
    thread.start()
    thread.join()
    assert codes == [0]


FULL = "cannot write to standard output: No space left on device"
CLOSED = "cannot write to standard output: Bad file descriptor"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_streams_that_are_closed_or_full(surroundings: dict[str, str]) -> None:
    script = (
        "import os, sys\n"
        "from lcm_cli.app import main\n"
        "for name, how in zip(('stdin', 'stdout', 'stderr'), sys.argv[1].split(',')):\n"
        "    number = getattr(sys, name).fileno()\n"
        "    if how == 'full': os.dup2(os.open('/dev/full', os.O_RDWR), number)\n"
        "    if how == 'closed': os.close(number); setattr(sys, name, None)\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )

    def run(how: str, *args: str, **variables: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", script, how, *args],
            env=surroundings | variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    shown = run("open,open,open", "languages", "french")
    assert shown[0] == 0
    assert "fra_Latn" in shown[1]
    assert run("open,full,open", "languages", "french") == (1, "", f"error: {FULL}\n")
    assert run("open,full,open", "--help") == (1, "", f"error: {FULL}\n")
    drawn = run("open,full,open", "languages", "french", FORCE_COLOR="1")
    assert drawn == (1, "", f"error: {FULL}\n")
    assert run("open,closed,open", "languages", "--json") == (1, "", f"error: {CLOSED}\n")
    assert run("closed,open,closed", "languages", "french") == shown
    assert run("closed,closed,closed", "languages", "french") == (1, "", "")
    assert run("open,open,full", "languages", "nosuchlanguage") == (3, "", "")
    code, _, errors = run("closed,open,open", "translate", "--to", "fr", "-q")
    assert (code, errors.splitlines()[0]) == (5, "error: stdin is empty")


def test_debug_shows_the_traceback(lcm: Run, probe: ModuleType) -> None:
    probe.error = ValueError("boom")
    assert "Traceback" in lcm("probe", LCM_DEBUG="1").stderr
    assert "Traceback" not in lcm("probe", LCM_DEBUG="0").stderr


def test_priority_of_flag_variable_file_and_default(
    lcm: Run, probe: ModuleType, tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    config.write_text('device = "mps"\nto = ["fr"]\n[probe]\nseed = 5\n', encoding="utf-8")

    def options(*args: str, **variables: str) -> dict[str, Any]:
        done = lcm("probe", *args, **variables)
        assert done.code == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    assert options() == {
        "device": "auto",
        "precision": "auto",
        "to": None,
        "seed": 0,
        "offline": None,
    }
    file = options("--config", str(config))
    assert (file["device"], file["to"], file["seed"]) == ("mps", ["fr"], 5)
    assert options(LCM_CONFIG=str(config), LCM_DEVICE="cuda:1")["device"] == "cuda:1"
    flags = ["--device", "cpu", "--to", "de", "--to", "es", "--seed", "0"]
    given = options(*flags, LCM_CONFIG=str(config), LCM_DEVICE="cuda")
    assert (given["device"], given["to"], given["seed"]) == ("cpu", ["de", "es"], 0)


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ('device = "gpu"', 2, "c.toml: invalid value for '--device'"),
        ("to = {a = 1}", 5, 'c.toml: to = {"a": 1} is a table, not a list of strings'),
        ('_o = "x"', 5, "c.toml: '_o' is not a known option"),
        ('[probe]\nconfig = "x"', 5, "c.toml: 'config' is not a known option of probe"),
        ("[probe]\nx = 1", 5, "known: device, precision, to, seed, quiet, verbose, offline\n"),
        ("[probe]\nseed = 1.5", 2, "c.toml: invalid value for '--seed'"),
        (
            '[probe]\nsede = "3"',
            5,
            "c.toml: 'sede' is not a known option of probe\nhint: did you mean seed?",
        ),
        ("[prob]", 5, "c.toml: 'prob' is not a known command\nhint: did you mean probe?"),
    ],
)
def test_an_error_in_the_config_file_names_the_file(
    text: str, code: int, message: str, lcm: Run, probe: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    done = lcm("probe", "--config", tmp_path / "c.toml")
    assert done.code == code
    assert message in done.stderr


def test_several_languages_in_one_value(lcm: Run, probe: ModuleType, tmp_path: Path) -> None:
    def languages(*args: str) -> Any:
        done = lcm("probe", *args)
        assert done.code == 0, done.stderr
        return json.loads(done.stdout)["to"]

    assert languages("--to", "fr,de") == ["fr", "de"]
    assert languages("--to", "fr, de", "--to", "all,es") == ["fr", "de", "all", "es"]
    assert languages("--to", "Greek, Modern (1453-)") == ["Greek, Modern (1453-)"]
    config = tmp_path / "c.toml"
    for text in ('to = "fr,de"', 'to = ["fr", "de"]', '[probe]\nto = "fr, de"'):
        config.write_text(text, encoding="utf-8")
        assert languages("--config", str(config)) == ["fr", "de"]
    for value in ("fr,", ",", "fr,,de"):
        done = lcm("probe", "--to", value)
        assert (done.code, f"a language is missing in '{value}'" in done.stderr) == (2, True)


def test_documents_are_in_one_language(lcm: Run) -> None:
    done = lcm("translate", "--from", "fr,de", "--to", "en")
    assert done.code == 2
    assert "'fr,de' names several languages; documents have one each" in done.stderr


def test_common_options(lcm: Run, probe: ModuleType, tmp_path: Path) -> None:
    assert json.loads(lcm("probe", "--offline").stdout)["offline"] == "1"
    assert json.loads(lcm("probe", LCM_OFFLINE="1").stdout)["offline"] == "1"
    assert os.environ.get("HF_HUB_OFFLINE") != "1"  # settings of one run do not affect the next
    assert lcm("probe").stderr == ""
    assert lcm("probe", "-v").stderr == "a detail\n"
    assert lcm("probe", "--config", tmp_path / "gone.toml").code == 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lcm doc", "doctor"),
        ("lcm doctor --js", "--json"),
        ("lcm summarize --precision bf", "bfloat16"),
        ("lcm translate --to fra", "fra_Latn"),
        ("lcm embed --space so", "sonar"),
    ],
)
def test_completion(line: str, expected: str, lcm_process: Run) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = lcm_process(_LCM_COMPLETE="complete_bash", **words)
    assert expected in done.stdout.split()


def test_completion_can_be_shown_for_a_shell(lcm_process: Run) -> None:
    shown = lcm_process(_LCM_COMPLETE="source_bash")
    assert "_LCM_COMPLETE=complete_bash" in shown.stdout


WAITING = """
import os
import sys
from lcm_cli import app
app.main(["--version"])
assert "torch" not in sys.modules
print(*(os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")))
"""


@pytest.mark.parametrize(
    ("chosen", "waiting"),
    [
        ({}, ["passive", app.SPINS]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", "None"]),
        ({"GOMP_SPINCOUNT": "1000"}, ["None", "1000"]),
        ({"KMP_BLOCKTIME": "200"}, ["None", "None"]),
    ],
)
def test_idle_threads_sleep_unless_the_user_says_otherwise(chosen, waiting):
    env = {name: value for name, value in os.environ.items() if name not in app.SPINNING}
    done = subprocess.run(
        [sys.executable, "-c", WAITING], env=env | chosen, capture_output=True, text=True
    )
    assert done.stdout.split()[-2:] == waiting, done.stderr
