"""Writing: every format round-trips, and a writer that fails leaves no trace."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcm_cli.documents import (
    Document,
    SpaceInfo,
    as_written,
    check_target,
    describe,
    open_writer,
    read,
    read_concepts,
    to_json,
)
from lcm_cli.documents.dataset import read_manifest
from lcm_cli.documents.writing import GROUP_BYTES
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError

INFO = SpaceInfo("small", "0123456789abcdef", 4)
FORMATS = ["a.parquet", "a.arrow", "a.jsonl", "a.safetensors", "folder"]


def document(id="x", rows=2, value=0.5, **more):
    return Document(id, concepts=np.full((rows, 4), value, np.float32), **more)


def write(path, *docs, **options):
    with open_writer(str(path), INFO, **options) as writer:
        for each in docs:
            writer.write(each)
    return str(path)


def loaded(path):
    return list(read_concepts([str(path)])[1])


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != ".lock")


# --- round trips

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@st.composite
def documents(draw, dtype):
    rows = draw(st.integers(1, 5))
    size = rows * 4 * np.dtype(dtype).itemsize
    values = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype)
    values = np.where(np.isfinite(values), values, values.dtype.type(-0.0))
    has_sentences = draw(st.booleans())
    return Document(
        id=draw(texts),
        lang=draw(st.sampled_from(["", "eng_Latn", "zho_Hans"])),
        sentences=[draw(texts) for _ in range(rows)] if has_sentences else [],
        paragraphs=draw(st.sampled_from([[], sorted(range(rows))])),
        concepts=values.reshape(rows, 4),
        split=draw(st.sampled_from(["", "train"])),
    )


@st.composite
def with_targets(draw, dtype):
    doc, target = draw(documents(dtype)), draw(st.none() | documents(dtype))
    if target is not None:  # formats store these fields for the document only
        target.id, target.lang, target.split, target.paragraphs = doc.id, doc.lang, "", []
    doc.target = target
    return doc


def same(a, b):
    for key in ("id", "lang", "sentences", "paragraphs", "split"):
        assert getattr(a, key) == getattr(b, key)
    assert (a.target is None) == (b.target is None)
    if a.target is not None:
        same(a.target, b.target)
    assert a.concepts.dtype == b.concepts.dtype
    # Compared as bytes, so that -0.0 differs from 0.0.
    assert a.concepts.tobytes() == b.concepts.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_round_trip(tmp_path_factory, name, dtype, data):
    path = tmp_path_factory.mktemp("round") / name
    most = 1 if name.endswith("safetensors") else 4
    docs = data.draw(st.lists(with_targets(dtype), min_size=1, max_size=most))
    write(path, *docs, dtype=dtype, shard_bytes=60)
    info, found = read_concepts([str(path)])
    assert info == INFO
    for a, b in zip(docs, found, strict=True):
        same(a, b)
        assert b.space == INFO


@settings(max_examples=15, deadline=None)
@given(docs=st.lists(with_targets("float16"), min_size=1, max_size=4))
def test_round_trip_of_a_stream(docs):
    stream = io.BytesIO()
    with open_writer("-", INFO, stdout=stream) as writer:
        for each in docs:
            writer.write(each)
    _, found = read_concepts(["-"], stdin=io.BytesIO(stream.getvalue()))
    for a, b in zip(docs, found, strict=True):
        same(a, b)


@settings(max_examples=25, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t")))
def test_round_trip_of_text(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    path.write_text(json.dumps({"text": "T" + text}) + "\n", encoding="utf-8")
    assert next(read([str(path)])).text == "T" + text
    path.with_suffix(".txt").write_bytes(("T" + text).encode())
    assert next(read([str(path.with_suffix(".txt"))])).text == "T" + text


def test_json_has_the_shortest_numbers():
    doc = as_written(document(value=0.1, sentences=["a", "b"]), INFO, "float16")
    assert to_json(doc) == {
        "id": "x",
        "sentences": ["a", "b"],
        "space": "small",
        "fingerprint": "0123456789abcdef",
        "dtype": "float16",
        "concepts": [[0.1] * 4] * 2,
    }
    assert to_json(Document("x", lang="eng_Latn", text="T.")) == {
        "id": "x",
        "lang": "eng_Latn",
        "text": "T.",
    }
    assert "concepts" not in to_json(doc, concepts=False)


def test_files_record_their_space(tmp_path):
    write(tmp_path / "a.parquet", document(), dtype="float32")
    schema = pq.read_schema(tmp_path / "a.parquet")
    about = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    about.pop("lcm.version")
    assert about == {
        "lcm.space": "small",
        "lcm.fingerprint": "0123456789abcdef",
        "lcm.dim": "4",
        "lcm.dtype": "float32",
    }
    assert schema.field("concepts").type == pa.list_(pa.list_(pa.float32(), 4))


@pytest.mark.slow
def test_row_groups_are_of_bounded_size(tmp_path):
    path, dim = tmp_path / "a.parquet", 4096
    rows = GROUP_BYTES // (2 * dim) * 2 // 3  # so that two documents, as float16, fill a group
    with open_writer(str(path), SpaceInfo("wide", "f", dim)) as writer:
        for id in "01234":
            writer.write(Document(id, concepts=np.full((rows, dim), 0.5, np.float16)))
    metadata = pq.ParquetFile(path).metadata
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [2, 2, 1]
    assert [d.id for d in loaded(path)] == list("01234")


# --- refusals


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Document("x"), "has no concepts"),
        (document(rows=0), "has no concepts"),
        (document(value=np.nan), "NaN"),
        (document(value=np.inf), "infinite"),
        (document(value=70000.0), "range of float16"),
        (document(sentences=["a"]), "1 sentences and 2 concepts"),
        (document(paragraphs=[1]), "paragraph numbers"),
        (document(sentences=["a", "b\ud800"]), "surrogate"),
        (Document("x", concepts=np.ones((2, 5), np.float32)), "5 dimensions"),
    ],
)
@pytest.mark.parametrize("name", FORMATS)
def test_concepts_that_no_reader_would_accept_are_not_written(tmp_path, name, bad, message):
    with pytest.raises(IntegrityError, match=message):
        write(tmp_path / name, bad)
    assert [path for path in files_in(tmp_path) if path != "folder"] == []


def test_too_large_for_float16_names_the_flag(tmp_path):
    with pytest.raises(IntegrityError) as error:
        write(tmp_path / "a.parquet", document(value=1e5))
    assert "--dtype float32" in error.value.hint
    write(tmp_path / "a.parquet", document(value=1e5), dtype="float32")


def test_safetensors_holds_one_document(tmp_path):
    with pytest.raises(UsageError, match=r"one document, and 'y' is the second"):
        write(tmp_path / "a.safetensors", document("x"), document("y"))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("name", FORMATS)
def test_no_documents_to_write(tmp_path, name):
    with pytest.raises(UsageError, match="no documents"):
        write(tmp_path / name)
    assert [path for path in files_in(tmp_path) if path != "folder"] == []


@pytest.mark.parametrize("name", ["a.npy", "a.txt", "a.parquet.gz"])
def test_unknown_suffix(tmp_path, name):
    with pytest.raises(UsageError, match="unknown suffix"):
        write(tmp_path / name, document())
    with pytest.raises(UsageError, match="unknown suffix"):
        check_target(str(tmp_path / name))


@pytest.mark.parametrize("name", FORMATS)
def test_an_existing_target_needs_force(tmp_path, name):
    path = write(tmp_path / name, document("old"))
    for attempt in (lambda: write(path, document("new")), lambda: check_target(path)):
        with pytest.raises(UsageError, match="exists already") as error:
            attempt()
        assert "--force" in error.value.hint
    assert [d.id for d in loaded(path)] == ["old"]
    check_target(path, force=True)
    write(path, document("new"), force=True)
    assert [d.id for d in loaded(path)] == ["new"]


def test_the_folders_above_a_data_set_are_created(tmp_path):
    path = tmp_path / "data" / "train"
    check_target(str(path))
    assert not path.parent.exists()
    assert [d.id for d in loaded(write(path, document("a")))] == ["a"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "folder"])
def test_missing_folder(tmp_path, name):
    for attempt in (lambda p: write(p, document()), check_target):
        with pytest.raises(NotFoundError, match="no such folder"):
            attempt(str(tmp_path / "no" / name))


def test_only_a_data_set_can_be_extended(tmp_path):
    with pytest.raises(UsageError, match="cannot be extended"):
        write(tmp_path / "a.parquet", document(), extend=True)


def test_a_file_without_suffix_is_not_a_data_set(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        check_target(str(tmp_path / "a"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # noqa: PTH110
def test_a_device_is_not_a_data_set(tmp_path):
    for attempt in (lambda p: write(p, document()), check_target):
        with pytest.raises(UsageError, match="/dev/full is not a folder"):
            attempt("/dev/full")
    (tmp_path / "a").write_text("x")
    for below in ("a/b", "a/b/c"):
        with pytest.raises(UsageError, match="a is not a folder"):
            write(tmp_path / below, document())


def test_no_binary_on_a_terminal():
    main, side = os.openpty()
    terminal = os.fdopen(side, "wb", buffering=0)
    with terminal, pytest.raises(UsageError, match="terminal"):
        write("-", document(), stdout=terminal)
    os.close(main)


# --- failures while writing


@pytest.mark.parametrize("name", FORMATS)
def test_an_error_leaves_no_trace(tmp_path, name):
    old = write(tmp_path / name, document("old"))
    before = files_in(tmp_path)
    with pytest.raises(RuntimeError), open_writer(old, INFO, force=True, shard_bytes=20) as writer:
        writer.write(document("new"))
        raise RuntimeError
    assert files_in(tmp_path) == before
    assert [d.id for d in loaded(old)] == ["old"]


def test_an_interrupted_stream_has_no_end_of_stream_marker():
    stream = io.BytesIO()
    with pytest.raises(RuntimeError), open_writer("-", INFO, stdout=stream) as writer:
        writer.write(document())
        raise RuntimeError
    problems = []
    _, found = read_concepts(["-"], stdin=io.BytesIO(stream.getvalue()), on_error=problems.append)
    assert len(list(found)) == 1
    assert "cut off after 1 documents" in problems[0].message


PREFIX = """
    import os, sys, resource, signal
    import numpy as np
    from lcm_cli.documents import Document, SpaceInfo, open_writer
    from lcm_cli.errors import LcmError
    info = SpaceInfo("small", "0123456789abcdef", 4)
    rng = np.random.default_rng(0)
    def document(id, rows=2000):
        return Document(id, concepts=rng.standard_normal((rows, 4)).astype(np.float32))
    target = sys.argv[1]
"""


def run(script, *args, **options):
    code = textwrap.dedent(PREFIX) + textwrap.dedent(script)
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_killed_half_way(tmp_path, name):
    old = write(tmp_path / name, document("old"))
    script = """
        with open_writer(target, info, force=True, shard_bytes=10_000) as writer:
            writer.write(document("new"))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(script, old).returncode == -signal.SIGKILL
    assert [d.id for d in loaded(old)] == ["old"]
    if name == "folder":
        # A complete shard, but the manifest does not list it.
        assert (tmp_path / "folder" / "part-00001.parquet").exists()
    else:
        assert [p for p in files_in(tmp_path) if not p.startswith(".")] == [name]
        assert [d.id for d in loaded(tmp_path)] == ["old"]
    write(old, document("new"), force=True)
    assert [d.id for d in loaded(old)] == ["new"]


@pytest.mark.parametrize("name", FORMATS)
def test_full_disk(tmp_path, name):
    old = write(tmp_path / name, document("old"))
    before = files_in(tmp_path)
    script = """
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        try:
            with open_writer(target, info, force=True, shard_bytes=10_000) as writer:
                writer.write(document("new", rows=9000))
        except LcmError as error:
            print(type(error).__name__, error.message)
    """
    done = run(script, old)
    assert done.stdout.startswith(f"LcmError cannot write {old}"), done.stdout + done.stderr
    assert files_in(tmp_path) == before
    assert [d.id for d in loaded(old)] == ["old"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # noqa: PTH110
def test_full_disk_behind_standard_output():
    script = """
        try:
            with open_writer("-", info) as writer:
                writer.write(document("new"))
        except LcmError as error:
            print(error.message, file=sys.stderr)
            os._exit(error.exit_code)
    """
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        code = textwrap.dedent(PREFIX) + textwrap.dedent(script)
        done = subprocess.run(
            [sys.executable, "-c", code, "-"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "no space left while writing stdout\n")


def test_the_reader_closes_the_pipe():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb", buffering=0) as pipe, pytest.raises(BrokenPipeError):
        write("-", document(), stdout=pipe)


def test_two_processes_write_the_same_file(tmp_path):
    script = """
        with open_writer(target, info, force=True) as writer:
            writer.write(document(sys.argv[2], rows=5000))
            print("ready", flush=True)
            sys.stdin.readline()
    """
    code = textwrap.dedent(PREFIX) + textwrap.dedent(script)
    path = tmp_path / "a.parquet"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), id],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for id in "ab"
    ]  # fmt: skip
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.communicate("\n")
    assert [process.returncode for process in processes] == [0, 0]
    (found,) = loaded(path)
    assert found.id in "ab"
    assert len(found.concepts) == 5000
    assert files_in(tmp_path) == ["a.parquet"]


# --- data sets


def test_shards_and_manifest(tmp_path):
    docs = [document(str(i), rows=i + 1) for i in range(5)]
    write(tmp_path / "set", *docs, shard_bytes=40)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["kind"] == "dataset"
    assert manifest["space"] == {"name": "small", "fingerprint": "0123456789abcdef", "dim": 4}
    assert (manifest["dtype"], manifest["documents"], manifest["concepts"]) == ("float16", 5, 15)
    assert [s["documents"] for s in manifest["shards"]] == [3, 2]
    assert [s["file"] for s in manifest["shards"]] == [f"part-0000{i}.parquet" for i in range(2)]
    assert [d.id for d in loaded(tmp_path / "set")] == list("01234")


def test_extending(tmp_path):
    path = write(tmp_path / "set", document("a"))
    write(path, document("b"), extend=True)
    assert [d.id for d in loaded(path)] == ["a", "b"]
    assert read_manifest(tmp_path / "set").documents == 2
    with pytest.raises(UsageError, match="holds float16"):
        write(path, document("c"), dtype="float32", extend=True)
    with pytest.raises(IntegrityError), open_writer(path, SpaceInfo("o", "f", 4), extend=True):
        pass
    assert [d.id for d in loaded(path)] == ["a", "b"]


def test_replacing_keeps_the_old_until_the_new_is_complete(tmp_path):
    path = write(tmp_path / "set", document("a"), document("b"), shard_bytes=1)
    with open_writer(path, INFO, force=True, shard_bytes=1) as writer:
        writer.write(document("c"))
        assert [d.id for d in loaded(path)] == ["a", "b"]
    assert [d.id for d in loaded(path)] == ["c"]
    assert files_in(tmp_path / "set") == ["manifest.json", "part-00002.parquet"]


def test_killed_before_the_manifest(tmp_path):
    script = """
        with open_writer(target, info, shard_bytes=10) as writer:
            writer.write(document("a"))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "set"
    run(script, path)
    with pytest.raises(IntegrityError, match="cut off") as error:
        read([str(path)])
    assert "--force" in error.value.hint
    with pytest.raises(UsageError, match="cut off"):
        write(path, document())
    write(path, document("b"), force=True)
    assert [d.id for d in loaded(path)] == ["b"]


def test_one_writer_at_a_time(tmp_path):
    path = str(tmp_path / "set")
    with open_writer(path, INFO) as writer:
        writer.write(document("a"))
        with pytest.raises(LcmError, match="being written"), open_writer(path, INFO):
            pass
    assert [d.id for d in loaded(path)] == ["a"]


def test_a_folder_with_foreign_files_is_refused(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"photo\.png"):
        write(tmp_path, document(), force=True)
    assert files_in(tmp_path) == ["photo.png"]


def test_data_sets_below_a_folder(tmp_path):
    write(tmp_path / "one", document("a"))
    write(tmp_path / "two", document("b"))
    assert [d.id for d in loaded(tmp_path)] == ["a", "b"]
    assert [d.id for d in loaded(tmp_path / "*")] == ["a", "b"]


def test_damaged_data_sets(tmp_path):
    path = tmp_path / "set"
    write(path, document("a"), document("b"), shard_bytes=1)
    shard = path / "part-00001.parquet"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match=r"part-00001\.parquet has \d+ bytes"):
        loaded(path)
    shard.unlink()
    with pytest.raises(IntegrityError, match=r"lacks part-00001\.parquet"):
        loaded(path)
    shard.write_bytes(data)
    manifest = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(manifest.replace('"dtype"', '"dtypo"'))
    with pytest.raises(IntegrityError, match="unknown key 'dtypo'"):
        loaded(path)
    (path / "manifest.json").write_text(manifest.replace('"version": 1', '"version": 9'))
    with pytest.raises(IntegrityError, match="version 9"):
        loaded(path)
    (path / "manifest.json").write_text(manifest[:50])
    with pytest.raises(IntegrityError, match="not valid JSON"):
        loaded(path)


def test_describing_a_data_set(tmp_path):
    path = tmp_path / "set"
    write(path, document("a"), document("b"), shard_bytes=1)
    (path / "part-00007.parquet").write_bytes((path / "part-00000.parquet").read_bytes())
    report = describe(str(path))
    assert (report["kind"], report["shards"], report["documents"]) == ("dataset", 2, 2)
    assert report["unlisted"] == ["part-00007.parquet"]
    assert report["problems"] == []
    manifest = (path / "manifest.json").read_text().replace('"sha256": "', '"sha256": "0')
    (path / "manifest.json").write_text(manifest.replace('"documents": 2', '"documents": 3'))
    report = describe(str(path))
    assert report["problem_count"] == 3  # two checksums, one count


# --- data sets that are resumed after they were stopped

RESUMABLE = """
    options = {"shard_bytes": int(sys.argv[2]), "save_seconds": float(sys.argv[3])}
    with open_writer(target, info, run={"inputs": ["a", 7]}, **options) as writer:
        print(writer.done, writer.last, flush=True)
        for number in range(writer.done, 300):
            rng = np.random.default_rng(number)
            concepts = rng.standard_normal((number % 7 + 1, 4)).astype(np.float32)
            writer.write(Document(str(number), concepts=concepts))
            if number % 3 == 0:
                writer.save()
            print(number, flush=True)
"""


@pytest.mark.parametrize(
    ("shard_bytes", "seconds"),
    [
        pytest.param(400, 60, marks=pytest.mark.slow),
        pytest.param(1 << 20, 0, marks=pytest.mark.slow),
        pytest.param(2000, 0.002, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_it_can_be_resumed(tmp_path, shard_bytes, seconds):
    """No document is lost or repeated; the data set equals that of a run that was never stopped."""
    whole, often = tmp_path / "whole", tmp_path / "often"
    assert run(RESUMABLE, whole, shard_bytes, 60).returncode == 0  # too short a run to save
    code = textwrap.dedent(PREFIX) + textwrap.dedent(RESUMABLE)
    done, rng = [], np.random.default_rng(1)
    for kill_after in (*rng.integers(1, 70, 5), None):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(often), str(shard_bytes), str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        done.append(int(process.stdout.readline().split()[0]))
        if kill_after is not None:
            for _ in range(kill_after):
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.005))  # to hit any point between two documents
            process.kill()
        process.communicate()
        assert process.returncode == (0 if kill_after is None else -signal.SIGKILL)
    assert done == sorted(done) and done[-1] > 0
    assert read_manifest(often) == read_manifest(whole)  # names, sizes and sha256 of the shards
    assert files_in(often) == files_in(whole)
    assert [d.id for d in loaded(often)] == [str(number) for number in range(300)]


def test_saved_documents_are_restored_completely(tmp_path):
    """Targets, plans and scores too: the shard equals that of a run that was never stopped."""
    docs = [
        document("a", sentences=["A.", "B."], paragraphs=[0, 1], lang="eng_Latn", split="train",
                 target=document("", 1, sentences=["T."], fragility=np.float32([-0.25])),
                 plans=document("", 2, sentences=["P.", "Q."]),
                 fragility=np.float32([-0.5, -1 / 3])),
        document("b", 3, 1 / 3),
        document("c", 1, target=document("", 2)),
        document("d", 2, sentences=["C.", "D."], fragility=np.float32([0, -1])),
    ]  # fmt: skip
    whole, often = tmp_path / "whole", tmp_path / "often"
    write(whole, *docs, dtype="float32")
    options = dict(dtype="float32", run={"a": 1}, save_seconds=0.0)
    for stop in range(len(docs)):
        with (
            contextlib.suppress(RuntimeError),
            open_writer(str(often), INFO, **options) as writer,
        ):
            assert (writer.done, writer.open, writer.last) == (stop, stop, "abc"[:stop][-1:])
            writer.write(docs[stop])
            writer.save()
            assert len(list(often.glob(".saved-*"))) == stop + 1
            raise RuntimeError
    with open_writer(str(often), INFO, **options) as writer:
        assert writer.done == len(docs)
    assert files_in(often) == files_in(whole) == ["manifest.json", "part-00000.parquet"]
    assert read_manifest(often) == read_manifest(whole)


def test_a_saved_file_that_changed(tmp_path):
    path = tmp_path / "set"
    options = {"run": {"a": 1}, "save_seconds": 0.0}
    with contextlib.suppress(RuntimeError), open_writer(str(path), INFO, **options) as writer:
        writer.write(document("a"))
        writer.save()
        raise RuntimeError
    saved = path / ".saved-00000.parquet"
    saved.write_bytes(bytes(saved.stat().st_size))
    with pytest.raises(IntegrityError, match="damaged"):
        write_run(path, document("a"))
    saved.unlink()
    with pytest.raises(IntegrityError, match="is missing or has changed"):
        write_run(path, document("a"))
    assert write_run(path, document("a"), force=True) == 0


def test_a_single_file_is_not_saved_in_parts(tmp_path):
    with open_writer(str(tmp_path / "a.parquet"), INFO, run={"a": 1}) as writer:
        writer.write(document("a"))
        writer.save()
        assert files_in(tmp_path) == [p.name for p in tmp_path.glob(".a.parquet.*")]


def write_run(path, *docs, stop=None, run=None, **options):
    """Write up to document `stop`, then fail; return how many were written before."""
    with (
        contextlib.suppress(RuntimeError),
        open_writer(str(path), INFO, shard_bytes=1, run=run or {"a": 1}, **options) as writer,
    ):
        for number, doc in enumerate(docs):
            if number == stop:
                raise RuntimeError
            if number >= writer.done:
                writer.write(doc)
        return writer.done
    return None


def test_partial_files_are_removed_when_killed_before_the_first_shard(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    (path / ".part-00000.parquet.abc.part").write_bytes(b"half")
    assert write_run(path, document("a")) == 0
    assert not list(path.glob(".*.part"))


def test_the_same_run_resumes_after_an_error(tmp_path):
    docs = [document(id) for id in "abc"]
    path = tmp_path / "set"
    write_run(path, *docs, stop=2)
    with pytest.raises(IntegrityError, match="was cut off"):
        loaded(path)
    check_target(str(path))
    assert write_run(path, *docs) == 2
    assert [d.id for d in loaded(path)] == ["a", "b", "c"]
    assert files_in(path) == ["manifest.json", *(f"part-0000{i}.parquet" for i in range(3))]
    with pytest.raises(UsageError, match="exists already"):
        write_run(path, *docs)


def test_another_run_does_not_resume(tmp_path):
    docs = [document(id) for id in "abc"]
    path = tmp_path / "set"
    write_run(path, *docs, stop=2)
    for more in ({"run": {"a": 2}}, {"dtype": "float32"}):
        with pytest.raises(UsageError, match="unfinished data set made from other documents"):
            write_run(path, *docs, **more)
    with pytest.raises(UsageError, match="cut off"):
        write(path, *docs)
    assert write_run(path, *docs, force=True, run={"a": 2}) == 0
    assert [d.id for d in loaded(path)] == ["a", "b", "c"]


def test_replacing_resumes_too_and_keeps_the_old_meanwhile(tmp_path):
    path = tmp_path / "set"
    write_run(path, document("old"))
    docs = [document(id) for id in "abc"]
    write_run(path, *docs, stop=2, force=True)
    assert [d.id for d in loaded(path)] == ["old"]
    assert write_run(path, *docs) == 2  # without force: the first call had it
    assert [d.id for d in loaded(path)] == ["a", "b", "c"]


def test_a_shard_of_an_unfinished_data_set_that_changed(tmp_path):
    docs = [document(id) for id in "abc"]
    write_run(tmp_path / "set", *docs, stop=2)
    (tmp_path / "set" / "part-00001.parquet").write_bytes(b"short")
    with pytest.raises(IntegrityError, match="is missing or has changed"):
        write_run(tmp_path / "set", *docs)


def test_killed_between_the_manifest_and_the_end(tmp_path):
    docs = [document(id) for id in "ab"]
    path = tmp_path / "set"
    write_run(path, *docs, stop=1)
    journal = (path / ".unfinished.json").read_text()
    write_run(path, *docs)
    (path / ".unfinished.json").write_text(journal)  # it is removed after the manifest is written
    assert write_run(path, *docs) == 1
    assert [d.id for d in loaded(path)] == ["a", "b"]
