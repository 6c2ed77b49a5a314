"""Batches of concepts: complete, independent of threads and processes, with helpful errors."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.models.interface import Batch
from lcm_cli.schema import parse
from lcm_cli.training.data.batches import ConceptData
from lcm_cli.training.data.index import DocumentIndex
from lcm_cli.training.data.packing import Piece, cut_evenly, pack
from lcm_cli.training.data_options import DataOptions, DataSet, as_data_set
from lcm_cli.training.parallel import Share, deal

DIM = 4
BATCHES = "lcm_cli.training.data.batches"
SENTENCES = {"End of text.": -1.0, "Go.": -2.0, "Short:": -3.0}

Rows = list[dict[str, Any]]


def encode(sentences: Sequence[str]) -> torch.Tensor:
    return torch.tensor([[SENTENCES[text]] * DIM for text in sentences])


def concepts(number: int, length: int) -> np.ndarray:
    """Concepts that encode the number of their document and of their sentence in it."""
    places = np.arange(length)
    return np.stack([np.full(length, number), places, places % 2, places % 3], 1).astype(np.float16)


def table(rows: Rows, width: int = DIM, **options: Any) -> pa.Table:
    vectors = pa.list_(pa.list_(pa.float16(), width))
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        if name.endswith("concepts"):
            lists = [value if value is None else [list(v) for v in value] for value in values]
            columns[name] = pa.array(lists, vectors)
        else:
            columns[name] = pa.array(values)
    return pa.table(columns)


def plain(lengths: Sequence[int], first: int = 0, **more: Any) -> Rows:
    return [
        {"id": str(first + i), "concepts": concepts(first + i, length), **more}
        for i, length in enumerate(lengths)
    ]


def write(path: Path, rows: Rows, group: int = 3) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(rows), path, row_group_size=group)
    return str(path)


def open_data(train: Any, **more: Any) -> ConceptData:
    options = {key: more.pop(key) for key in list(more) if key in FIELDS}
    train = (train,) if isinstance(train, (str, DataSet)) else tuple(train)
    settings = {"dim": DIM, "max_length": 64, "seed": 0, "encode": encode} | more
    return ConceptData(DataOptions(train, **options), **settings)


FIELDS = {field.name for field in dataclasses.fields(DataOptions)}


def rows_of(batch: Batch) -> list[list[list[float]]]:
    """Return the documents or pieces in a batch, without padding."""
    found = []
    for row, length in enumerate(batch.lengths_B.tolist()):
        x = batch.concepts_BSD[row, :length]
        if batch.segments_BS is None:
            found.append(x.tolist())
            continue
        segments = batch.segments_BS[row, :length]
        found += [x[segments == number].tolist() for number in segments.unique().tolist()]
    return found


def seen(data: ConceptData, numbers: Sequence[int]) -> Counter[tuple[int, int]]:
    """Count how often each (document, sentence) occurs."""
    pairs: Counter[tuple[int, int]] = Counter()
    for number in numbers:
        for row in rows_of(data.batch(number)):
            pairs.update((int(x[0]), int(x[1])) for x in row if x[0] >= 0)
    return pairs


def same(a: Batch, b: Batch) -> bool:
    parts = [
        (getattr(a, field.name), getattr(b, field.name))
        for field in dataclasses.fields(Batch)
        if field.name != "columns"
    ]
    return all((x is None and y is None) or torch.equal(x, y) for x, y in parts)


def part_of(batch: Batch, number: int, count: int) -> Batch:
    """Return one of `count` micro-batches."""
    return batch.rows(deal(batch.lengths_B.tolist(), count)[number])


LENGTHS = [5, 1, 9, 30, 2, 7, 3, 3, 12, 4, 41, 6, 8, 1]


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return write(tmp_path / "a.parquet", plain(LENGTHS))


@pytest.mark.parametrize("packing", [False, True])
def test_an_epoch_has_every_concept_once(corpus: str, packing: bool) -> None:
    with open_data(corpus, packing=packing, wrap=10, batch_concepts=20) as data:
        assert (data.documents, data.concepts) == (14, sum(LENGTHS) + 14)
        count = data.batches_per_epoch
        everything = {(n, s): 1 for n, length in enumerate(LENGTHS) for s in range(length)}
        for epoch in range(2):
            assert seen(data, range(epoch * count, (epoch + 1) * count)) == everything
        assert not same(data.batch(0), data.batch(count))
        assert [data.epoch(number) for number in (0, count - 1, count)] == [0, 0, 1]


def test_packed_rows_longer_than_a_batch(corpus: str) -> None:
    """A batch has at least one whole row, however small batch_concepts is."""
    with open_data(corpus, packing=True, wrap=40, batch_concepts=10) as data:
        found = seen(data, range(data.batches_per_epoch))
        assert sum(found.values()) == sum(LENGTHS)


def test_documents_end_with_the_end_and_pieces_do_not(corpus: str) -> None:
    with open_data(corpus, wrap=10, prefix=("Go.",)) as data:
        rows = [r for n in range(data.batches_per_epoch) for r in rows_of(data.batch(n))]
    firsts = [row for row in rows if row[0][0] == -2]
    lasts = [row for row in rows if row[-1][0] == -1]
    assert len(firsts) == len(lasts) == len(LENGTHS)
    assert sum(x[0] < 0 for row in rows for x in row) == 2 * len(LENGTHS)
    pieces = [
        row for row in rows if any(x[0] == 10 for x in row)
    ]  # of the document of 41 sentences
    assert sorted(map(len, pieces)) == [8, 8, 9, 9, 9]
    assert min(map(len, rows)) == 3  # so no piece consists of the end alone


def test_the_same_numbers_whatever_the_workers_and_the_order(corpus: str) -> None:
    with open_data(corpus, batch_concepts=20, workers=1) as data:
        expected = [data.batch(number) for number in range(30)]
    with open_data(corpus, batch_concepts=20, workers=4) as data:
        for number in [*range(17, 30), 3, 0, 29, *range(5)]:
            assert same(data.batch(number), expected[number])
    with open_data(corpus, batch_concepts=20, seed=1) as data:
        assert not all(same(data.batch(number), expected[number]) for number in range(3))


def test_shuffle_buffers_smaller_than_the_data(
    corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{BATCHES}.BUFFER_BYTES", 0)
    monkeypatch.setattr(f"{BATCHES}.BUFFER_BATCHES", 2)
    with open_data(corpus, batch_concepts=20, wrap=16) as data:
        assert len(data._epoch(0)) > 2
        everything = {(n, s): 1 for n, length in enumerate(LENGTHS) for s in range(length)}
        assert seen(data, range(data.batches_per_epoch)) == everything
        expected = [data.batch(number) for number in range(25)]
    with open_data(corpus, batch_concepts=20, wrap=16, workers=3) as data:
        assert same(data.batch(24), expected[24]) and same(data.batch(7), expected[7])


def test_batches_are_about_as_large_as_asked_for(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 500).tolist()
    path = write(tmp_path / "a.parquet", plain(lengths), group=50)
    with open_data(path, batch_concepts=200) as data:
        batches = [data.batch(number) for number in range(data.batches_per_epoch)]
    sizes = [int(batch.lengths_B.sum()) for batch in batches]
    assert max(sizes) <= 250 and min(sizes) >= 150
    padded = sum(batch.concepts_BSD[..., 0].numel() for batch in batches)
    assert padded <= 1.1 * sum(sizes)  # documents of similar length share a batch


@pytest.mark.parametrize("weight", [2.0, 0.5, 1.5])
def test_weights_are_how_often_a_document_comes(tmp_path: Path, weight: float) -> None:
    a = write(tmp_path / "a.parquet", plain([3] * 10))
    b = write(tmp_path / "b.parquet", plain([3] * 10, first=100))
    with open_data([a, f"{b}:{weight}"], batch_concepts=10) as data:
        numbers = range(next(n for n in range(1000) if data.epoch(n) == 2))
        counts = seen(data, numbers)
    assert [counts[n, 0] for n in range(10)] == [2] * 10
    assert [counts[n, 0] for n in range(100, 110)] == [2 * weight] * 10


def pairs(first: int = 50) -> Rows:
    lengths = [(5, 2), (20, 1), (3, 3)]
    return [
        {
            "id": str(first + i),
            "concepts": concepts(first + i, source),
            "target_concepts": concepts(first + i + 500, target),
        }
        for i, (source, target) in enumerate(lengths)
    ]


def test_a_target_follows_the_source_and_its_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pairs())
    entry = DataSet(path, task="summarize")
    with open_data(entry, prompts={"summarize": "Short:"}, max_length=12, packing=True) as data:
        assert data.cut_sources == 1 and "; 1 sources lose their end" in data.summary
        batch = data.batch(0)
    assert batch.sources_B is not None and batch.segments_BS is None
    found = {}
    for row, source in zip(rows_of(batch), batch.sources_B.tolist(), strict=True):
        learned = [int(x[0]) for x in row[source:]]
        found[int(row[0][0])] = ([int(x[0]) for x in row[:source]], learned)
    assert found == {
        50: ([50] * 5 + [-3], [550] * 2 + [-1]),
        51: ([51] * 9 + [-3], [551, -1]),
        52: ([52] * 3 + [-3], [552] * 3 + [-1]),
    }
    rows = {int(row[0][0]): row for row in rows_of(batch)}
    assert [x[1] for x in rows[51][:9]] == list(range(9))  # the source's beginning was kept


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("size", "parts"), [(1, 1), (1, 3), (2, 4), (5, 5)])
def test_a_process_makes_its_rows_of_the_batch(
    tmp_path: Path, size: int, parts: int, packing: bool
) -> None:
    path = write(tmp_path / "a.parquet", [*pairs(), *plain(LENGTHS)], group=2)
    settings = {"batch_concepts": 40, "wrap": 16, "packing": packing}
    with open_data(path, **settings) as data:
        batches = [data.batch(number) for number in range(8)]
    assert any(len(batch.lengths_B) < parts for batch in batches) or parts < 5
    for rank in range(size):
        share = Share(rank, size, parts)
        with open_data(path, **settings) as data:
            for number, batch in enumerate(batches):
                found = data.micro_batches(number, share)
                assert found.lengths_B.tolist() == batch.lengths_B.tolist()
                wanted = [part_of(batch, part, parts) for part in share.numbers]
                assert len(found.own) == len(wanted) == parts // size
                assert all(map(same, found.own, wanted))


def test_a_process_has_the_tokens_of_its_rows(tmp_path: Path) -> None:
    rows = [row | {"lang": "eng_Latn"} for row in plain(LENGTHS)]
    for row in rows:
        row["sentences"] = [f"{row['id']}.{place}" for place in range(len(row["concepts"]))]

    def tokenize(sentences: Sequence[str], language: str) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in sentences]

    path = write(tmp_path / "a.parquet", rows, group=2)
    for rank in range(5):
        with open_data(path, batch_concepts=40, wrap=16, tokenize=tokenize) as data:
            for number in range(4):
                (part,) = data.micro_batches(number, Share(rank, 5, 5)).own
                wanted = part_of(data.batch(number), rank, 5)
                assert [[x.tolist() for x in row] for row in part.tokens or ()] == [
                    [x.tolist() for x in row] for row in wanted.tokens or ()
                ]
                assert part.tokens is not None and len(part.tokens) == len(part.lengths_B)


def test_a_process_keeps_what_its_rows_need(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = DocumentIndex.read
    monkeypatch.setattr(
        DocumentIndex,
        "read",
        lambda self, group, dim: read.append(group) or whole(self, group, dim),
    )
    kept = groups = 0
    for rank in range(7):
        with open_data(corpus, batch_concepts=40, suffix=()) as data:
            data.micro_batches(0, Share(rank, 7, 7))
            buffer = data._load_ahead(0, 0, Share(rank, 7, 7)).result()
        kept += sum(len(each.flat) for lists in buffer.groups.values() for each in lists)
        groups += len(buffer.groups)
    assert kept == sum(LENGTHS)  # each concept in one process
    assert (
        groups < 7 * 5 and len(read) < 2 * 7 * 5
    )  # two buffers, one per epoch, of five groups each


def counted_reads(path: str, share: Share, **options: Any) -> tuple[list[Batch], int, int]:
    """Return a process's micro-batches of an epoch, the row groups it reads, and all of them."""
    with pytest.MonkeyPatch.context() as patch, open_data(path, **options) as data:
        count, groups = data.batches_per_epoch, len(data._train[0].index.groups)
        read: list[int] = []
        whole = DocumentIndex.read
        patch.setattr(
            DocumentIndex,
            "read",
            lambda self, group, dim: read.append(group) or whole(self, group, dim),
        )
        buffers = range(len(data._epoch(0)))
        for number in buffers:
            data._load_ahead(0, number, share).result()
        total = len(read)
        batches = [part for n in range(count) for part in data.micro_batches(n, share).own]
    return batches, total, groups


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_a_process_reads_its_own_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    monkeypatch.setattr(f"{BATCHES}.BUFFER_BYTES", 0)
    monkeypatch.setattr(f"{BATCHES}.BUFFER_BATCHES", 3)
    monkeypatch.setattr(f"{BATCHES}.LEAST_ROWS", 4)
    lengths = np.random.default_rng(0).integers(2, 14, 1200).tolist()
    path = write(tmp_path / "a.parquet", plain(lengths), group=25)  # 48 row groups
    options = {"batch_concepts": 600, "wrap": 16, "packing": packing, "suffix": ()}
    expected, _, _ = counted_reads(path, Share(0, 1, 8), **options)
    found = Counter((int(x[0]), int(x[1])) for b in expected for row in rows_of(b) for x in row)
    assert found == {(n, s): 1 for n, length in enumerate(lengths) for s in range(length)}
    for size in (2, 4, 8):
        total = 0
        for rank in range(size):
            own, read, groups = counted_reads(path, Share(rank, size, 8), **options)
            total += read
            # Each is one of eight: number 8 n + m is micro-batch m of batch n.
            wanted = [b for number, b in enumerate(expected) if number % size == rank]
            assert all(map(same, own, wanted)) and len(own) == len(wanted)
        assert total <= 1.3 * groups
    assert counted_reads(path, Share(0, 8, 8), readers=1, **options)[1] >= 0.9 * groups
    # In a number of processes that does not divide that of readers, each reads more.
    assert 0.3 * groups < counted_reads(path, Share(0, 3, 9), **options)[1]


def test_readers_have_similar_shares(tmp_path: Path) -> None:
    """Even of a single row group; and batches are hardly padded more than those of one reader."""
    lengths = np.random.default_rng(0).integers(2, 9, 4000).tolist()
    path = write(tmp_path / "a.parquet", plain(lengths), group=5000)
    padding = {}
    for readers in (1, 8):
        options = {"batch_concepts": 2600, "wrap": 10, "readers": readers}
        own, _, _ = counted_reads(path, Share(0, 1, 8), **options)
        sizes = np.array([int(batch.lengths_B.sum()) for batch in own]).reshape(-1, 8)
        assert sizes.max() <= 1.3 * sizes.mean()
        with open_data(path, **options) as data:
            whole = [data.batch(number) for number in range(data.batches_per_epoch)]
        padding[readers] = sum(b.concepts_BSD[..., 0].numel() for b in whole) / sizes.sum()
    assert padding[8] <= padding[1] + 0.1


def test_fewer_readers_for_few_rows(corpus: str) -> None:
    """A batch has at least 32 of the longest rows from each reader, or 4 packed ones."""
    for packing, least in ((False, 32), (True, 4)):
        for rows, readers in ((1, 1), (1.9, 1), (2, 2), (7.9, 4), (8, 8), (100, 8)):
            settings = {"wrap": 12, "packing": packing, "suffix": ()}
            with open_data(corpus, batch_concepts=int(rows * least * 12), **settings) as data:
                assert data._readers == readers


def test_a_target_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pairs())
    with open_data(path, max_length=4) as data:
        assert data.documents == 2
        assert data.left_out["with too long a target"] == 1


def test_pairs_and_plain_documents_share_batches(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [*pairs(), *plain([4, 2, 3])])
    with open_data(path, packing=True, wrap=16) as data:
        (batch,) = [data.batch(number) for number in range(data.batches_per_epoch)]
    assert batch.sources_B is not None and batch.segments_BS is not None
    learned = batch.learned(first=1)
    for row in range(len(batch.lengths_B)):
        source = int(batch.sources_B[row])
        parts = batch.segments_BS[row].unique().tolist()
        assert (source > 0) == (int(batch.concepts_BSD[row, 0, 0]) >= 50)
        assert source == 0 or set(parts) <= {0, -1}
        assert int(learned[row, : max(source, 1)].sum()) == 0


def test_filters_and_limits(tmp_path: Path) -> None:
    rows = [
        row | {"lang": lang, "stars": stars}
        for row, lang, stars in zip(
            plain([5, 2, 9, 1, 30, 4]),
            ["fra", "eng", "fra", "fra", "fra", None],
            [1, 2, 3, 4, 5, 6],
            strict=True,
        )
    ]
    path = write(tmp_path / "a.parquet", rows)
    chosen = open_data(path, filter='lang == "fra" and stars < 5', min_sentences=2)
    with chosen as data:
        assert {n for n, _ in seen(data, [0])} == {0, 2}
        assert data.left_out["that the filter excludes"] == 3
        assert data.left_out["with too few sentences"] == 1
        ends = "without 3 that the filter excludes, 1 with too few sentences"
        assert data.summary == f"2 documents, 16 concepts an epoch; {ends}"
    with open_data(path, max_sentences=5, filter="len(concepts) != 2") as data:
        assert {n for n, _ in seen(data, [0])} == {0, 3, 5}
    with pytest.raises(IntegrityError, match="excludes all 6"):
        open_data(path, filter="stars > 99")
    with pytest.raises(IntegrityError, match=r"no document is left.*6 with too few"):
        open_data(path, min_sentences=40)


def test_splits(tmp_path: Path) -> None:
    rows = [*plain([2, 3], split="train"), *plain([4], first=2, split="dev")]
    path = write(tmp_path / "a.parquet", rows)
    with open_data(f"{path}=train", validation=(f"{path}=dev",)) as data:
        assert {n for n, _ in seen(data, [0])} == {0, 1}
        (batch,) = data.validation()
        assert rows_of(batch)[0][0][0] == 2
    with pytest.raises(NotFoundError, match="no split 'test'; its splits: dev, train"):
        open_data(f"{path}=test")


def test_folders_named_after_splits(tmp_path: Path) -> None:
    for number, name in enumerate(["train", "dev"]):
        write(tmp_path / "wiki" / f"split={name}" / "0.parquet", plain([3], first=number))
    with open_data(f"{tmp_path}/wiki/=dev") as data:
        assert {n for n, _ in seen(data, [0])} == {1}
    with open_data(f"{tmp_path}/wiki", filter='split == "train"') as data:
        assert {n for n, _ in seen(data, [0])} == {0}
    with open_data(f"{tmp_path}/wiki/split=dev") as data:  # an existing folder is taken whole
        assert {n for n, _ in seen(data, [0])} == {1}
    with pytest.raises(NotFoundError, match="its splits: dev, train"):
        open_data(f"{tmp_path}/wiki=test")


def test_official_files(tmp_path: Path) -> None:
    lists = [[v.tolist() for v in concepts(number, 3).astype(float)] for number in range(4)]
    columns = {
        "text_sentences": pa.array([["a", "b", "c"]] * 4),
        "text_sentences_sonar_emb": pa.array(lists, pa.list_(pa.list_(pa.float64()))),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with open_data(str(tmp_path / "a.parquet"), filter="len(sentences) == 3") as data:
        assert len(seen(data, [0])) == 12
    renamed = pa.table(columns).rename_columns(["words", "prompt_emb"])
    pq.write_table(
        renamed.append_column("answer_emb", columns["text_sentences_sonar_emb"]),
        tmp_path / "b.parquet",
    )
    entry = DataSet(str(tmp_path / "b.parquet"), concepts="prompt_emb", target="answer_emb")
    with open_data(entry) as data:
        batch = data.batch(0)
        assert batch.sources_B is not None and batch.sources_B.tolist() == [3] * 4


def test_data_sets_of_lcm(tmp_path: Path) -> None:
    info = SpaceInfo("small", "0123456789abcdef", DIM)
    with open_writer(str(tmp_path / "set"), info, shard_bytes=60) as writer:
        for number in range(6):
            words = [f"{i}" for i in range(4)]
            writer.write(Document(str(number), sentences=words, concepts=concepts(number, 4)))
    (tmp_path / "set" / "part-00099.parquet").write_bytes(b"what a killed writer left")
    with open_data(str(tmp_path / "set")) as data:
        assert data.space == info
        assert len(data._train[0].index.groups) > 1
        assert len(seen(data, range(data.batches_per_epoch))) == 24
    other = SpaceInfo("other", "fedcba9876543210", DIM)
    with open_writer(str(tmp_path / "b.parquet"), other) as writer:
        writer.write(Document("x", concepts=concepts(0, 2)))
    with pytest.raises(IntegrityError, match="some concepts are of small"):
        open_data([str(tmp_path / "set"), str(tmp_path / "b.parquet")])


def test_validation_is_always_the_same(corpus: str) -> None:
    with open_data(corpus, validation=(corpus,), packing=True, batch_concepts=30) as data:
        first, again = data.validation(), data.validation()
        assert len(first) > 2
        assert all(same(a, b) for a, b in zip(first, again, strict=True))
        assert all(batch.segments_BS is None for batch in first)
        documents = {int(row[0][0]) for batch in first for row in rows_of(batch)}
        assert documents == set(range(14))
        few = {int(row[0][0]) for batch in data.validation(5) for row in rows_of(batch)}
        assert len(few) == 5 and max(few) > 10
        assert data.validation(0) == []
    with open_data(corpus) as data:
        assert data.validation() == []


def broken(change: Callable[[Rows], None], path: Path) -> str:
    rows = plain([3, 3, 3, 3, 3])
    change(rows)
    return write(path / "a.parquet", rows, group=2)


def put(row: int, value: float) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[row]["concepts"][1, 2] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(3, np.nan), r"a\.parquet row 3 has a concept with NaN .* number 1 of concepts"),
        (put(4, np.inf), r"a\.parquet row 4 has a concept with NaN or infinite"),
        (lambda rows: rows[2].update(concepts=None), r"a\.parquet row 2 has no concepts"),
        (lambda rows: rows[1].update(concepts=[]), r"a\.parquet row 1 has no concepts"),
        (
            lambda rows: [row.update(sentences=["x"] * 4) for row in rows],
            r"a\.parquet row 0 has 4 sentences and 3 concepts",
        ),
    ],
)  # fmt: skip
def test_broken_documents_are_named(
    change: Callable[[Rows], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError, match=message), open_data(broken(change, tmp_path)) as data:
        for number in range(data.batches_per_epoch):
            data.batch(number)


def test_other_widths(tmp_path: Path, corpus: str) -> None:
    with pytest.raises(IntegrityError, match="have 4 dimensions, the model's 5"):
        open_data(corpus, dim=5, suffix=())
    lists = pa.array([[[1.0] * 4, [1.0] * 4], [[1.0] * 4, [1.0] * 3]])
    pq.write_table(pa.table({"concepts": lists}), tmp_path / "b.parquet")
    with (
        pytest.raises(IntegrityError, match=r"row 1 has a concept that does not have 4 dim"),
        open_data(str(tmp_path / "b.parquet")) as data,
    ):
        data.batch(0)


def test_paths_without_usable_data(tmp_path: Path, corpus: str) -> None:
    text = tmp_path / "a.txt"
    text.write_text("Once upon a time.")
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "words.parquet")
    cut_off = tmp_path / "cut_evenly.parquet"
    cut_off.write_bytes(Path(corpus).read_bytes()[:-40])
    cases: list[tuple[str, type[LcmError], str]] = [
        (str(text), UsageError, "is not Parquet"),
        (str(tmp_path / "nosuch"), NotFoundError, "nosuch"),
        (str(tmp_path / "words.parquet"), IntegrityError, "no column of concepts; it has words"),
        (str(cut_off), IntegrityError, "damaged or cut off"),
    ]
    for path, kind, message in cases:
        with pytest.raises(kind, match=message):
            open_data(path)
    with pytest.raises(NotFoundError) as missing:
        open_data(str(tmp_path / "no" / "folder"))
    assert f"lcm embed TEXT -o {tmp_path / 'no' / 'folder'}" in missing.value.hint


def test_sentences_need_a_space(corpus: str) -> None:
    with pytest.raises(UsageError, match=r"without a space, 'End of text\.'"):
        open_data(corpus, encode=None)
    with open_data(corpus, encode=None, suffix=()) as data:
        assert data.concepts == sum(LENGTHS)
    with pytest.raises(IntegrityError, match="have 4 dimensions, the model's 5"):
        open_data(corpus, dim=5)
    with pytest.raises(IntegrityError, match="no prompt for the task 'expand'"):
        open_data(DataSet(corpus, task="expand"), prompts={"summarize": "Short:"})


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("wiki/=train:4", DataSet("wiki/", "train", 4)),
        ("wiki", DataSet("wiki")),
        ("wiki:0.5", DataSet("wiki", weight=0.5)),
        ("a=b/c=dev", DataSet("a=b/c", "dev")),
        ("a=b/c", DataSet("a=b/c")),
        ("C:\\data\\x=dev:2", DataSet("C:\\data\\x", "dev", 2)),
        ("wiki/*.parquet=train", DataSet("wiki/*.parquet", "train")),
        ("wiki:abc", DataSet("wiki:abc")),
    ],
)
def test_the_grammar_of_entries(entry: str, expected: DataSet) -> None:
    assert as_data_set(entry) == expected


def test_options_from_a_recipe() -> None:
    data = {"train": ["a:2", {"path": "b", "task": "summarize", "weight": 3}], "suffix": []}
    options = parse(DataOptions, data, "r.toml")
    assert options.train == ("a:2", DataSet("b", weight=3.0, task="summarize"))
    assert options.suffix == ()
    for wrong, message in [
        ({"train": []}, "train names no data"),
        ({"train": ["a"], "batch_concept": 3}, "unknown key 'batch_concept'"),
        ({"train": ["a"], "wrap": 1}, "wrap = 1 must be at least 2"),
        ({"train": ["a"], "readers": 0}, "readers = 0 must be at least 1"),
        ({"train": [{"path": "a", "weight": 0}]}, "weight 0.0 must be above 0"),
        ({"train": ["a"], "min_sentences": 3, "max_sentences": 2}, "is less than"),
    ]:
        with pytest.raises(IntegrityError, match=message):
            parse(DataOptions, wrong, "r.toml")
    with pytest.raises(IntegrityError, match="must be above 0"):
        as_data_set("a:0")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 50))
def test_cut(sizes: list[int], parts: int) -> None:
    runs = cut_evenly(np.array(sizes), parts)
    assert np.concatenate(runs).tolist() == list(range(len(sizes)))
    assert len(runs) == min(parts, len(sizes))
    assert all(len(run) for run in runs)
    if parts <= len(sizes):
        mean = sum(sizes) / parts
        assert max(sum(sizes[i] for i in run) for run in runs[:1]) <= mean + max(sizes)


@given(st.lists(st.integers(1, 16), max_size=40))
def test_pack(lengths: list[int]) -> None:
    pieces = [Piece((0, 0), number, 0, length) for number, length in enumerate(lengths)]
    pieces.append(Piece((0, 0), 99, 0, 30, source=5))
    rows = pack(pieces, 16)
    assert sorted(piece.document for row in rows for piece in row) == [*range(len(lengths)), 99]
    assert all(sum(piece.length for piece in row) <= 16 or row == [pieces[-1]] for row in rows)
    assert len(rows) - 1 <= 2 * sum(lengths) / 16 + 1


def test_a_context_of_one_concept(tmp_path):
    path = write(tmp_path / "a.parquet", plain([3, 4]))
    with pytest.raises(IntegrityError, match="leaves nothing to predict"):
        open_data(path, max_length=1)
