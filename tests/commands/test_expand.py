"""lcm expand."""

import json
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def expand(lcm: Run, taught: Any) -> Run:
    """Run `lcm expand` with a model trained on a few stories."""

    def run(*arguments: str, **more: Any) -> Any:
        call = ("expand", "--from", "en", "--space", "tiny", "--model", taught.folder)
        return lcm(*call, *arguments, **more)

    return run


def test_a_sentence_becomes_its_story(expand: Run, taught: Any) -> None:
    story = taught.stories["boat"]
    done = expand(input=story[0].encode())
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith(story[0])
    assert story[3] in done.stdout  # unchanged, within the precision of the space


def test_json(expand: Run, taught: Any) -> None:
    first = taught.stories["boat"][0]
    done = expand("--to", "fra", "--to", "deu", "--json", input=first.encode())
    record = json.loads(done.stdout)
    assert list(record["expansions"]) == ["fra_Latn", "deu_Latn"]
    assert (record["method"], record["model"]) == ("generated", str(taught.folder))
    assert (record["fallback"], record["total"], len(record["sentences"])) == (None, 1, 6)
    assert record["sentences"][0]["text"] == first
    assert record["sentences"][0]["similarity"]["fra_Latn"] > 0.6


def test_length(expand: Run, taught: Any) -> None:
    first = taught.stories["boat"][0].encode()
    for length, count in (("4", 4), ("400%", 4), ("21w", 3)):
        record = json.loads(expand("--length", length, "--json", input=first).stdout)
        assert (record["length"], len(record["sentences"])) == (length, count)


def test_cite_says_what_comes_from_nowhere(expand: Run, taught: Any) -> None:
    first, second = taught.stories["boat"][:2]
    lines = expand("--cite", input=first.encode()).stdout.splitlines()
    assert lines[0] == first and lines[1] == f"    [1] 1.00  {first}"
    assert lines[2] == second and lines[3].startswith("    nothing is near; nearest: [1] 0.")


def test_a_bad_answer_is_replaced_by_the_text(expand: Run) -> None:
    text = "Bring two kilos of potatoes."
    done = expand("--length", "60", "--json", input=text.encode())
    record = json.loads(done.stdout)
    assert (done.code, record["method"], record["fallback"]) == (0, "source", "short")
    assert record["expansions"] == {"eng_Latn": text}
    assert done.stderr.startswith("warning: stdin: the model stopped too early")
    strict = expand("--length", "60", "--strict", input=text.encode())
    assert (strict.code, strict.stdout) == (1, "")


def test_it_takes_a_model(road: Run) -> None:
    for more in ([], ["--model", "extractive"]):
        done = road("expand", "--from", "en", *more, input=b"Yes.")
        assert (done.code, done.stdout) == (3, "")
        assert "no model that expands texts" in done.stderr and "--model" in done.stderr


@pytest.mark.parametrize("length", ["0", "many", "0%"])
def test_what_is_no_length(expand: Run, length: str) -> None:
    assert expand("--length", length, input=b"Yes.").code == 2
