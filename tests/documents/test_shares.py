"""Shares of the documents of a run."""

import json
from pathlib import Path
from random import Random

import pytest

from lcm_cli.documents import read
from lcm_cli.documents.shares import Share, deal
from lcm_cli.documents.sources import expand_paths


def lines(chance: Random, count: int) -> bytes:
    """Return JSON Lines with blank lines and both kinds of line ends; the last may lack its end."""
    parts = []
    for _ in range(count):
        text = "Où est la poule ? " * chance.randrange(1, 9)
        end = chance.choice(["\n", "\r\n", "\n\n", "\n \n"])
        parts.append(json.dumps({"text": text}, ensure_ascii=False) + end)
    return "".join(parts).encode().removesuffix(chance.choice([b"\n", b""]))


@pytest.mark.parametrize("seed", range(20))
def test_the_shares_together_are_all_documents_in_order(tmp_path: Path, seed: int) -> None:
    chance = Random(seed)
    for number in range(chance.randrange(1, 6)):
        if chance.random() < 0.5:
            (tmp_path / f"{number}.txt").write_text("A hen. " * chance.randrange(1, 99))
        else:
            (tmp_path / f"{number}.jsonl").write_bytes(lines(chance, chance.randrange(1, 30)))
    paths = [str(tmp_path)]
    whole = [(each.id, each.origin, each.text) for each in read(paths)]
    count = chance.randrange(1, 12)
    shares = [
        [(each.id, each.origin, each.text) for each in read(paths, share=Share(index, count))]
        for index in range(count)
    ]
    assert [each for share in shares for each in share] == whole


def test_shares_have_about_the_same_size(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "A hen."}\n' * 1000)
    counts = [len(list(read([str(tmp_path)], share=Share(index, 7)))) for index in range(7)]
    assert sum(counts) == 1000 and max(counts) - min(counts) <= 1


def test_a_whole_file_has_no_span(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "A hen."}\n')
    sources = list(expand_paths([str(tmp_path)], lambda error: None))
    assert deal(sources, Share(1, 4)) == [sources[1]]
    assert deal(sources, Share(0, 1)) == sources


def test_blocks_before_a_share_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcm_cli.documents.text.BLOCK_BYTES", 7)
    (tmp_path / "a.jsonl").write_text('{"text": "A hen."}\n\n' * 50)
    ids = [each.id for n in range(3) for each in read([str(tmp_path)], share=Share(n, 3))]
    assert ids == [each.id for each in read([str(tmp_path)])]
