"""Windows: how a stream of documents is cut."""

import io
import os
import sys

import pytest

from lcm_cli.documents.windows import FIRST, stdin_pauses, windows


def _one(_: int) -> int:
    return 1


def test_windows_grow_up_to_the_largest_and_lose_nothing() -> None:
    found = list(windows(range(500), _one, 100))
    assert [len(window) for window in found] == [FIRST, 2 * FIRST, 100, 100, 100, 100, 4]
    assert [item for window in found for item in window] == list(range(500))


def test_size_counts_not_the_number_of_items() -> None:
    found = list(windows([100, 100, 100, 50, 200, 1], lambda size: size, 150))
    assert found == [[100], [100], [100, 50], [200], [1]]
    assert list(windows([], _one, 10)) == []


def test_a_pause_ends_a_window() -> None:
    pauses = iter([False, True, True, False])
    found = list(windows(range(4), _one, 100, pausing=lambda: next(pauses)))
    assert found == [[0, 1], [2], [3]]


def test_items_are_taken_no_earlier_than_needed() -> None:
    taken = []

    def items() -> object:
        for item in range(3 * FIRST):
            taken.append(item)
            yield item

    next(windows(items(), _one, 1000))  # type: ignore[arg-type]
    assert len(taken) == FIRST


@pytest.mark.skipif(os.name == "nt", reason="pipes cannot be watched there")
def test_stdin_pauses_while_a_pipe_is_open_and_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert stdin_pauses()
        os.write(writing, b"x")
        assert not stdin_pauses()
        stream.read(1)
        assert stdin_pauses()
        os.close(writing)
        assert not stdin_pauses()  # at the end there is nothing to wait for


def test_stdin_that_is_no_file_never_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("text"))
    assert not stdin_pauses()
