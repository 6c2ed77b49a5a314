import pytest
import typer

from lcm_cli import console
from lcm_cli.commands._problems import SHOWN, Problems
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError

Capture = pytest.CaptureFixture[str]


def finish(problems: Problems, any_done: bool = True) -> int:
    with pytest.raises(typer.Exit) as caught:
        problems.finish(any_done)
    return int(caught.value.exit_code)


def test_only_the_first_errors_of_a_file_are_shown(capsys: Capture) -> None:
    problems = Problems()
    for number in range(1, 5001):
        problems(IntegrityError(f"a.jsonl line {number} is not valid JSON", "write it again"))
    for number in (1, 2):
        problems(IntegrityError(f"b.parquet row {number} has no text in it"))
    for number in range(SHOWN + 1):
        problems(IntegrityError(f"c.parquet row {number} ('x') has no text in it"))
    problems(NotFoundError("no such file: d.txt"))
    assert problems.count == 5000 + 2 + SHOWN + 1 + 1
    assert finish(problems) == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown.count("hint: write it again") == SHOWN
    assert sum("a.jsonl line " in line for line in shown) == SHOWN
    assert "error: and 4,995 more lines of a.jsonl like these" in shown
    assert sum("b.parquet" in line for line in shown) == 2
    assert "error: and 1 more row of c.parquet like these" in shown
    assert "error: no such file: d.txt" in shown


def test_all_errors_are_shown_when_verbose(capsys: Capture) -> None:
    console.configure(verbose=1)
    try:
        problems = Problems()
        for number in range(9):
            problems(LcmError(f"a.jsonl line {number} is broken"))
    finally:
        console.configure()
    assert capsys.readouterr().err.count("is broken") == 9


@pytest.mark.parametrize(("count", "done", "code"), [(1, False, 5), (1, True, 1), (2, False, 1)])
def test_exit_codes(count: int, done: bool, code: int, capsys: Capture) -> None:
    problems = Problems()
    problems.finish()  # without errors it returns
    for number in range(count):
        problems(IntegrityError(f"a.jsonl line {number} is broken"))
    assert finish(problems, done) == code
