"""Pairs of sentences and their rows on the device, against rows written out by hand."""

import gzip
import json
import lzma
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcm_cli.errors import IntegrityError
from lcm_cli.training.data.parallel_text import (
    MACHINE,
    NONE,
    ParallelText,
    human,
    read_translations,
    shifted,
)

LANGUAGES = ("deu_Latn", "eng_Latn", "fra_Latn")
EOS = 3


class Letters:
    """The minimal tokenizer for ParallelText, with one token per letter."""

    def knows(self, code: str) -> bool:
        return code in LANGUAGES

    def encode(self, texts: list[str], code: str) -> list[list[int]]:
        return [[1000 + LANGUAGES.index(code), *map(ord, text), EOS] for text in texts]


line = st.dictionaries(
    st.sampled_from(LANGUAGES),
    st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=1, max_size=3),
    min_size=1,
)
lines = st.lists(line, min_size=1, max_size=12)


def text(found: list, weight: float = 1.0, most: int = 99, longest: int = 40) -> ParallelText:
    return ParallelText([(found, weight)], Letters(), most, longest, torch.device("cpu"))


def spelled(data: ParallelText, number: int) -> list[int]:
    start, length = int(data._starts[number]), int(data._lengths[number])
    return data._tokens[start : start + length].tolist()


def joined(data: ParallelText, first: int, second: int) -> list[int]:
    if first == NONE:
        return []
    one = spelled(data, first)
    return one if second == NONE else one[:-1] + spelled(data, second)[1:]


def unpacked(rows, ids_T) -> list[list[int]]:
    starts = rows.starts_R1.tolist()
    return [ids_T[a:b].tolist() for a, b in pairwise(starts)]


@settings(max_examples=60, deadline=None)
@given(lines, st.integers(0, 9), st.floats(0, 1))
def test_pairs_stand_in_one_line_in_two_languages_if_there_are_two(found, seed, join):
    data = text(found)
    pairs, batches = data.epoch(seed, 0, 30, join=join, translate=0.5)
    assert sum(b.stop - b.start for b in batches) == len(pairs)
    homes = {}
    for each in found:
        for code, texts in each.items():
            for t in texts:
                homes.setdefault(tuple(Letters().encode([t], code)[0]), []).append(each)
    shown = 0
    for (l1, l2, r1, r2), aligned in zip(
        pairs.sentences_N4.tolist(), pairs.aligned_N.tolist(), strict=True
    ):
        assert (l2 == NONE) == (r2 == NONE)
        for left, right in ((l1, r1), (l2, r2)) if aligned else ():
            if left == NONE:
                continue
            shown += 1
            a, b = spelled(data, left), spelled(data, right)
            both = [h for h in homes[tuple(a)] if h in homes[tuple(b)]]
            assert both and left != right
            assert a[0] != b[0] or any(len(h) == 1 for h in both)
        if l2 != NONE:
            assert spelled(data, l1)[0] == spelled(data, l2)[0]
            assert spelled(data, r1)[0] == spelled(data, r2)[0]
    assert shown == sum(sum(map(len, each.values())) - 1 for each in found)
    assert not (pairs.swap_N2 & ~pairs.aligned_N[:, None]).any()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(lines, st.integers(0, 9))
def test_rows_are_the_sentences_with_and_without_room(found, seed):
    data = text(found)
    pairs, batches = data.epoch(seed, 0, 30, join=0.5, translate=0.5)
    room = data.room(batches, 30)
    for batch in batches:
        numbers = pairs[batch].targets()
        rows, order = data.rows(numbers)
        wanted = [joined(data, *numbers[i].tolist()) for i in order.tolist()]
        assert unpacked(rows, rows.ids_T) == wanted == sorted(wanted, key=len)
        full = pairs[batch].padded(room.pairs).targets()
        rows, order = data.rows(full, room)
        assert order.tolist() == list(range(2 * room.pairs)) and len(rows.ids_T) == room.tokens
        found_rows = unpacked(rows, rows.ids_T)
        assert found_rows[: len(full)] == [joined(data, *n) for n in full.tolist()]
        assert len(found_rows) == len(full) + room.spare_rows
        assert max(map(len, found_rows)) <= rows.longest and rows.starts_R1[-1] == room.tokens
        reads, writes = shifted(rows, len(full))
        for row, read, write in zip(
            found_rows, unpacked(reads, reads.ids_T), unpacked(reads, writes), strict=True
        ):
            assert read == [EOS, *row[:-1]][: len(row)]
            own = bool(row) and row[0] >= 1000
            assert write == [NONE, *row[1:]] if own else set(write) <= {NONE}


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.5])
def test_a_weight_says_how_often_lines_come(weight):
    found = [{"eng_Latn": ["ab"], "fra_Latn": ["cd"]}] * 400
    pairs, _ = text(found, weight).epoch(0, 0, 100, join=0.0, translate=0.0)
    assert len(pairs) == pytest.approx(400 * weight, rel=0.15)


def test_long_sentences_are_counted_and_left_out():
    data = text([{"eng_Latn": ["abc"], "fra_Latn": ["abcdefgh"]}], most=6)
    assert data.skipped == 1 and len(data) == 1
    with pytest.raises(IntegrityError, match="no sentence"):
        text([{"eng_Latn": ["abcdef"]}], most=6)
    with pytest.raises(IntegrityError, match="nld_Latn"):
        text([{"nld_Latn": ["abcdef"]}])


def test_lines_may_have_several_sentences_a_language(tmp_path: Path):
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps({"eng_Latn": ["a", "b"], "fra_Latn": "c"}) + "\n")
    assert list(read_translations(path)) == [{"eng_Latn": ["a", "b"], "fra_Latn": ["c"]}]


def test_translations_are_swapped_as_often_as_asked():
    found = [{"eng_Latn": ["ab"], "fra_Latn": ["cd"]}] * 400
    pairs, _ = text(found).epoch(0, 0, 100, join=0.0, translate=0.25)
    assert np.mean(pairs.swap_N2.numpy()) == pytest.approx(0.25, abs=0.1)


@settings(max_examples=60, deadline=None)
@given(st.lists(line, min_size=1, max_size=12), st.data(), st.integers(0, 9), st.floats(0, 1))
def test_machine_translations_are_never_decoded_into(found, data, seed, join):
    machines = set()
    marked = []
    for number, each in enumerate(found):
        new = {}
        for code, texts in each.items():
            by_machine = data.draw(st.booleans())
            # Digits tell these texts from all others.
            texts = [f"{text}{number}" if by_machine else text for text in texts]
            new[MACHINE + code if by_machine else code] = texts
            machines.update(texts if by_machine else ())
        marked.append(new)
    if not any(map(human, marked)):
        return
    parallel = text(marked)
    pairs, _ = parallel.epoch(seed, 0, 30, join=join, translate=0.5)
    read = {"".join(map(chr, row[1:-1])) for row in rows_of(parallel, pairs.sides())}
    wanted = ["".join(map(chr, row[1:-1])) for row in rows_of(parallel, pairs.targets())]
    assert not any(map(str.isdigit, "".join(wanted)))
    if join == 0 and all(len(human(each)) for each in marked):
        assert all(len(each) == len(human(each)) for each in marked) or read & machines
    used = pairs.sentences_N4[:, [0, 2]]
    by_machine_N2 = torch.from_numpy(parallel._machine)[used]
    assert not by_machine_N2.all(dim=1).any()
    assert (pairs.swap_N2 == by_machine_N2)[by_machine_N2.any(dim=1)].all()


def rows_of(data: ParallelText, numbers_R2: torch.Tensor) -> list[list[int]]:
    return [joined(data, *pair) for pair in numbers_R2.tolist()]


def test_machine_translations_are_marked_in_the_file(tmp_path: Path):
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps({"eng_Latn": "a", MACHINE + "fra_Latn": "b"}) + "\n")
    [line] = read_translations(path)
    assert line == {"eng_Latn": ["a"], "machine:fra_Latn": ["b"]} and human(line) == {
        "eng_Latn": ["a"]
    }
    with pytest.raises(IntegrityError, match="'nld_Latn'"):
        text([{MACHINE + "nld_Latn": ["abc"], "eng_Latn": ["a"]}])
    with pytest.raises(IntegrityError, match="no sentence"):
        text([{MACHINE + "fra_Latn": ["abc"]}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"eng_Latn": "a"}\n{"eng_Latn": "\xff"}\n', "not UTF-8 after line "),
        # Without a time, which would differ between the processes that collect the tests.
        ("a.jsonl.gz", gzip.compress(b'{"eng_Latn": "a"}\n', mtime=0)[:-9], "damaged after line "),
        ("a.jsonl.gz", b'{"eng_Latn": "a"}\n', "damaged after line 0"),
        ("a.jsonl.xz", b'{"eng_Latn": "a"}\n', "damaged after line 0"),
        ("a.jsonl.xz", lzma.compress(b'{"eng_Latn": "a"}\n')[:-9], "damaged after line "),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=message) as caught:
        list(read_translations(tmp_path / name))
    assert str(tmp_path / name) in caught.value.message and caught.value.hint
