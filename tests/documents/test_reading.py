"""Reading from files, folders, globs and pipes, in every format, intact and broken."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcm_cli import documents
from lcm_cli.documents import Document, SpaceInfo, open_writer, read, read_concepts
from lcm_cli.documents.arrow import read_parquet
from lcm_cli.documents.kinds import Source
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError

INFO = SpaceInfo("small", "0123456789abcdef", 4)


def concepts(rows=2, width=4, dtype=np.float32):
    return np.arange(rows * width, dtype=dtype).reshape(rows, width) / 8


def write(path, *docs, info=INFO, **options):
    with open_writer(str(path), info, **options) as writer:
        for document in docs:
            writer.write(document)
    return str(path)


def caught(paths, stdin=b"", load=read):
    """Read everything and return the error that it raises."""
    with pytest.raises(LcmError) as error:
        result = load([str(path) for path in paths], stdin=io.BytesIO(stdin))
        list(result[1] if isinstance(result, tuple) else result)
    return error.value


def ids(*paths, stdin=b""):
    return [document.id for document in read([str(p) for p in paths], stdin=io.BytesIO(stdin))]


# --- paths


def test_text_file(tmp_path):
    file = tmp_path / "story.txt"
    file.write_bytes(b"One.\nTwo.")
    (document,) = read([str(file)])
    assert (document.id, document.text, document.origin) == ("story.txt", "One.\nTwo.", str(file))
    assert (document.sentences, document.concepts, document.lang) == ([], None, "")


@pytest.mark.parametrize(
    "data", [b"\xef\xbb\xbfOne.\r\nTwo.\r\n", b"One.\rTwo.\r", b"One.\nTwo.\n"]
)
def test_byte_order_marks_and_line_ends_do_not_matter(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    assert next(read([str(tmp_path / "a.txt")])).text == "One.\nTwo.\n"


def test_folder_is_read_in_order_and_without_hidden_files(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.md", ".hidden.txt", ".git/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("Text.")
    assert ids(tmp_path) == ["a.txt", "b.txt", "sub/c.md"]


def test_links_in_a_folder_are_followed_once(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("Text.")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "b.txt").symlink_to(tmp_path / "out" / "a.txt")
    assert ids(tmp_path / "in") == ["b.txt", "link/a.txt"]


def test_links_to_nowhere_and_pipes_in_a_folder(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere")
    assert isinstance(caught([tmp_path]), NotFoundError)
    os.mkfifo(tmp_path / "pipe")
    error = caught([tmp_path])
    assert "2 of 2 files" in error.message
    assert "pipe is not a regular file" in error.message


def test_glob(tmp_path):
    for name in ("a.txt", "b.txt", "c.md", "sub/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("Text.")
    assert ids(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert ids(tmp_path / "**/*.txt") == ["a.txt", "b.txt", "sub/a.txt"]
    assert isinstance(caught([tmp_path / "*.xyz"]), NotFoundError)


def test_a_name_may_look_like_a_glob(tmp_path):
    (tmp_path / "a[1].txt").write_text("Text.")
    assert ids(tmp_path / "a[1].txt") == ["a[1].txt"]


def test_standard_input_is_text_json_lines_or_tables():
    assert next(read(["-"], stdin=io.BytesIO(b"Short."))).text == "Short."
    assert next(read([], stdin=io.BytesIO(b"Short."))).id == "stdin"
    line = b'{"id": 7, "text": "T."}\n'
    assert ids("-", stdin=line) == ["7"]
    stream = io.BytesIO()
    write("-", Document("x", sentences=["a"], concepts=concepts(1)), stdout=stream)
    assert ids("-", stdin=stream.getvalue()) == ["x"]


def test_standard_input_can_hold_formats_that_need_seeking(tmp_path):
    for name in ("a.parquet", "a.safetensors"):
        document = Document("x", sentences=["a", "b"], concepts=concepts())
        path = write(tmp_path / name, document, dtype="float32")
        data = (tmp_path / name).read_bytes()
        info, found = read_concepts(["-"], stdin=io.BytesIO(data))
        assert info == INFO
        assert np.array_equal(next(found).concepts, concepts())
        assert ids(path) == ["x"]


def test_standard_input_only_once():
    assert isinstance(caught(["-", "-"]), UsageError)


def test_named_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b'{"text": "T."}\n'))
    writer.start()
    (document,) = read([str(pipe)])
    writer.join()
    assert (document.id, document.text) == ("pipe:1", "T.")


def test_a_name_that_is_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"Text.")
    assert ids(os.fsdecode(path)) == ["caf\ufffd.txt"]


def test_missing_file_offers_the_nearest(tmp_path):
    (tmp_path / "story.txt").write_text("Text.")
    error = caught([tmp_path / "storry.txt"])
    assert isinstance(error, NotFoundError)
    assert f"did you mean {tmp_path / 'story.txt'}" in error.hint
    assert "no folder" in caught([tmp_path / "nowhere" / "a.txt"]).message
    assert caught([tmp_path / "else"]).hint == f"see: ls {tmp_path}"
    for name in ("else", "nowhere/a.txt"):
        assert caught([name]).hint == f"paths are relative to the current folder, {Path.cwd()}"


def test_missing_file_is_found_before_anything_is_read(tmp_path):
    with pytest.raises(NotFoundError):
        read([str(tmp_path / "no.txt")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    (tmp_path / "a.txt").write_text("Text.")
    (tmp_path / "a.txt").chmod(0)
    assert isinstance(caught([tmp_path / "a.txt"]), UsageError)


def test_empty_folder(tmp_path):
    assert "no documents" in caught([tmp_path]).message


# --- files that are not documents


def test_foreign_files_in_a_folder_are_listed_together(tmp_path):
    (tmp_path / "a.txt").write_text("Text.")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "c.bin").write_bytes(bytes(range(16)) * 9)
    error = caught([tmp_path])
    assert "2 of 3 files" in error.message
    assert "b.png is a PNG image" in error.message
    assert "c.bin is binary data" in error.message
    problems = []
    assert [d.id for d in read([str(tmp_path)], on_error=problems.append)] == ["a.txt"]
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("data", "what", "hint"),
    [
        (b"%PDF-1.7", "cannot be read as PDF", "copy it again"),
        (b"{\\rtf1 a}", "an RTF document", ".docx"),
        (b"\x1f\x8b\x08\x00", "gzip", "gunzip"),
        (b"PK\x03\x04abc", "office", ".docx"),
        (b"\x00\x01\x02\x03" * 30, "binary", ""),
    ],
)
def test_foreign_file(tmp_path, data, what, hint):
    (tmp_path / "x").write_bytes(data)
    error = caught([tmp_path / "x"])
    assert isinstance(error, IntegrityError)
    assert what in error.message
    assert hint in error.hint


@pytest.mark.parametrize("name", ["a.parquet", "a.safetensors", "a.arrow", "a.txt", "a.jsonl"])
def test_empty_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    error = caught([tmp_path / name])
    assert isinstance(error, IntegrityError)
    assert f"{name} is empty" in error.message


def test_nothing_but_white_space(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert "a.jsonl has no documents" in caught([tmp_path / "a.jsonl"]).message
    (tmp_path / "a.txt").write_text(" \n\n")
    assert "no text" in caught([tmp_path / "a.txt"]).message
    assert "stdin is empty" in caught(["-"]).message


@pytest.mark.parametrize("name", ["a.parquet", "a.safetensors", "a.arrow"])
def test_text_under_a_binary_name(tmp_path, name):
    (tmp_path / name).write_text("This is a story.")
    assert "despite its name" in caught([tmp_path / name]).message


def test_content_counts_more_than_the_name(tmp_path):
    write(tmp_path / "a.parquet", Document("x", sentences=["a"], concepts=concepts(1)))
    (tmp_path / "a.parquet").rename(tmp_path / "a.txt")
    assert ids(tmp_path / "a.txt") == ["x"]


# --- encodings

GERMAN = "Die Katze schläft. Die Straße ist groß, und es ist schön.\n"
RUSSIAN = "Кошка спит на окне. Собака лежит у двери и ждёт хозяина.\n"
JAPANESE = "猫は窓のそばで眠っています。犬はドアの前で待っています。\n"
CHINESE = "猫在窗边睡觉，它不想起来。狗在门口等着的是主人，有人来了。\n"
KOREAN = "고양이가 창가에서 자고 있습니다. 개는 문 앞에서 기다립니다.\n"


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        (GERMAN, "cp1252", "CP1252"),
        (RUSSIAN, "cp1251", "CP1251"),
        (RUSSIAN, "koi8_r", "KOI8-R"),
        (JAPANESE, "shift_jis", "SHIFT_JIS"),
        (JAPANESE, "euc_jp", "EUC-JP"),
        (CHINESE, "gb18030", "GB18030"),
        (CHINESE.replace("来", "來"), "big5hkscs", "BIG5"),
        (KOREAN, "euc_kr", "EUC-KR"),
        (GERMAN, "utf-16", "UTF-16"),
        (GERMAN, "utf-16-le", "UTF-16LE"),
        (GERMAN, "utf-16-be", "UTF-16BE"),
        (GERMAN, "utf-32", "UTF-32"),
    ],
)
def test_another_encoding_is_named(tmp_path, text, codec, name):
    file = tmp_path / "a b.txt"
    file.write_bytes(text.encode(codec, "replace"))
    error = caught([file])
    assert isinstance(error, IntegrityError)
    assert f"probably {name}" in error.message + " "
    assert f"iconv -f {name} -t UTF-8 '{file}' > NEW" in error.hint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Ein schöner Tag.\nÜber ".encode() + b"\xe9 alles.", "for 1 byte, at byte 24 (line 2)"),
        (
            b"\xef\xbb\xbf\xe9\xe8 " + "schöne Tür".encode(),
            "for 2 bytes, the first at byte 3 (line 1)",
        ),
        (
            GERMAN.encode() + b"\n" + GERMAN.encode("cp1252"),
            "for 4 bytes, the first at byte 77 (line 3)",
        ),
        (
            GERMAN.encode() + GERMAN.encode("cp1252") * 20,
            "for 80 bytes, the first at byte 76 (line 2)",
        ),
        (JAPANESE.encode() + b"\xff\xfe", "for 2 bytes, the first at byte 85 (line 2)"),
        (RUSSIAN.encode() * 9 + b"\x80" + RUSSIAN.encode(), "for 1 byte, at byte 909 (line 10)"),
    ],
)
def test_utf8_with_bad_bytes_is_not_another_encoding(tmp_path, data, message):
    (tmp_path / "a b.txt").write_bytes(data)
    error = caught([tmp_path / "a b.txt"])
    assert isinstance(error, IntegrityError)
    assert f"a b.txt is UTF-8 except {message}" in error.message
    assert f"iconv -f UTF-8 -t UTF-8 -c '{tmp_path / 'a b.txt'}' > NEW" in error.hint


def test_a_line_with_a_bad_byte_is_a_bad_line(tmp_path):
    good, bad = '{"text": "schön"}\n'.encode(), b'{"text": "caf\xe9"}\n'
    (tmp_path / "a.jsonl").write_bytes(good + bad + good)
    problems = []
    assert len(list(read([str(tmp_path / "a.jsonl")], on_error=problems.append))) == 2
    (problem,) = problems
    assert problem.message.endswith("a.jsonl line 2 is UTF-8 except for 1 byte, at byte 32")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\r\n", "only white space"),
        (b"\xef\xbb\xbf", "only white space"),
        ("\u3000\n\u00a0".encode(), "only white space"),
    ],
)
def test_a_file_without_content(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    error = caught([tmp_path / name])
    assert error.message.startswith(f"{tmp_path / name} ")
    assert error.message.endswith(message)
    assert error.hint == "check the command that wrote it"


def test_the_offset_of_the_bad_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9 noir")
    assert "at byte 6" in caught([tmp_path / "a.txt"]).message
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "caf\xe9 noir"}\n')
    assert "b.jsonl line 2 is not UTF-8 at byte 28;" in caught([tmp_path / "b.jsonl"]).message


def test_text_cut_off_inside_a_character(tmp_path):
    (tmp_path / "a.txt").write_bytes("Ein schöner Tag ist schö".encode()[:-1])
    error = caught([tmp_path / "a.txt"])
    assert "in the middle" in error.message
    assert "cut off" in error.hint


def test_nul_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"A long enough text to be one.\x00 And more.")
    assert "NUL byte at offset 29" in caught([tmp_path / "a.txt"]).message


def test_hint_for_standard_input_is_a_pipe():
    assert caught(["-"], b"caf\xe9 noir").hint == "convert it: iconv -f CP1252 -t UTF-8"


# --- JSON Lines


def lines(tmp_path, *records):
    path = tmp_path / "a.jsonl"
    text = (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records)
    path.write_text("\n".join(text), encoding="utf-8")
    return path


def test_json_lines(tmp_path):
    path = lines(
        tmp_path,
        {"id": "a", "text": "Un. Deux.", "lang": "fra_Latn", "url": "ignored"},
        "",
        {"sentences": ["One.", "Two."], "paragraphs": [0, 1], "id": None, "lang": None},
        {"id": "a", "text": "Same id."},
    )
    first, second, third = read([str(path)])
    assert (first.id, first.text, first.lang) == ("a", "Un. Deux.", "fra_Latn")
    assert (second.id, second.sentences) == ("a.jsonl:3", ["One.", "Two."])
    assert second.paragraphs == [0, 1]
    assert third.origin == f"{path} line 4"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{oops}", "line 2 is not valid JSON"),
        ("[1]", "line 2 is list, not an object"),
        ({"title": "x"}, "neither 'text' nor 'sentences'; it has title"),
        ({"text": 5}, "'text' is 5, not a string"),
        ({"sentences": ["a", 1]}, "'sentences' is ['a', 1], not a list of strings"),
        ({"sentences": "a"}, "not a list of strings"),
        ({"text": "T", "id": True}, "'id' is True"),
        ({"text": "T", "lang": ["fra"]}, "'lang' is ['fra'], not a string"),
        ({"text": " "}, "line 2 has no text"),
        ({"sentences": []}, "line 2 has no text"),
        ({"sentences": ["a", "b"], "paragraphs": [0]}, "2 sentences and 1 paragraph numbers"),
        ('{"text": "a\\ud800b"}', "half of a surrogate pair (\\ud800) at character 1"),
        ('{"text": "a\\u0000b"}', "a NUL at character 1"),
        ("[" * 100_000, "line 2 is not valid JSON"),
    ],
)
def test_bad_line(tmp_path, record, message):
    path = lines(tmp_path, {"text": "Good."}, record, {"text": "Good too."})
    error = caught([path])
    assert isinstance(error, IntegrityError)
    assert message in error.message
    problems = []
    found = read([str(path)], on_error=problems.append)
    assert [document.text for document in found] == ["Good.", "Good too."]
    assert [problem.message for problem in problems] == [error.message]


def test_spread_out_json_gets_the_command_that_helps(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "T."}, indent=1))
    assert "jq -c" in caught([tmp_path / "a.json"]).hint


RECORDS = [{"id": i, "text": "Ein schöner Tag."} for i in range(9)]


@pytest.mark.parametrize(
    ("text", "what", "convert"),
    [
        (json.dumps(RECORDS, indent=1), "is a JSON array", "'.[]'"),
        (json.dumps(RECORDS), "is a JSON array", "'.[]'"),
        (json.dumps(RECORDS).replace("}, ", "},\n"), "is a JSON array", "'.[]'"),
        ("\n[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n", "is a JSON array", "'.[]'"),
        ('\ufeff[\r\n  "One.",\r\n  "Two."\r\n]\r\n', "is a JSON array", "'.[]'"),
        ('["One.", "Two."]\n', "is a JSON array", "'.[] | {text: .}'"),
        ("[]", "is a JSON array", "'.[]'"),
        (json.dumps(RECORDS[0], indent=2), "is JSON spread over several lines", "."),
        (
            "\n".join(json.dumps(r, indent=4) for r in RECORDS),
            "is JSON spread over several lines",
            ".",
        ),
        ('{"id": "a",\n "text": "One."}\n', "is JSON spread over several lines", "."),
        ('{ "id": "a"\n, "text": "One."\n}\n', "is JSON spread over several lines", "."),
        ('{"sentences": [\n"One.",\n"Two."]}\n', "is JSON spread over several lines", "."),
    ],
)
def test_json_in_another_layout_is_one_error(tmp_path, text, what, convert):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    problems = []
    assert list(read([str(path)], on_error=problems.append)) == []
    (problem,) = problems
    assert problem.message.startswith(f"{path} {what}, not JSON Lines")
    assert problem.hint == f"convert it: jq -c {convert} {path} > NEW.jsonl".replace("'", '"')
    assert isinstance(problem, IntegrityError)


def test_a_json_array_on_standard_input():
    error = caught(["-"], json.dumps(RECORDS, indent=1).encode())
    assert error.message.startswith("stdin is a JSON array, not JSON Lines")
    assert error.hint == 'convert it: jq -c ".[]"'
    (document,) = read(["-"], stdin=io.BytesIO(b'[1] A note. ["One."]'))
    assert document.text.startswith("[1] A note.")


@pytest.mark.parametrize(
    "text",
    [
        '{"text": "cut of\n{"text": "Two."}\n',
        '{"text": "One."},\n{"text": "Two."}\n',
        '["a"]\n{"text": "Two."}\n',
        "{oops}\n" + '{"text": "Two."}\n',
    ],
)
def test_a_bad_first_line_is_only_that(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)
    problems = []
    assert len(list(read([str(tmp_path / "a.jsonl")], on_error=problems.append))) == 1
    assert [problem.message.partition(" line ")[2][:4] for problem in problems] == ["1 is"]


def test_json_lines_are_taken_as_they_come():
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as stdin, os.fdopen(write_end, "wb", buffering=0) as pipe:
        pipe.write(b'{"text": "One."}\n')
        found = read(["-"], stdin=stdin)
        assert next(found).text == "One."  # the pipe is still open
        pipe.write(b'{"text": "Two."}\n')
        assert next(found).text == "Two."


# --- tables


def official(path, embeddings, sentences=(["a", "b"],), kind=None):
    """Write a Parquet file as the official LCM code does."""
    kind = kind or pa.list_(pa.list_(pa.float16(), 4))
    table = {
        "title": ["t"] * len(sentences),
        "text_sentences": pa.array(sentences, pa.list_(pa.string())),
        "text_sentences_sonar_emb": pa.array(embeddings, kind),
    }
    pq.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.list_(pa.float16(), 4)),
        pa.list_(pa.list_(pa.float32(), 4)),
        pa.list_(pa.list_(pa.float32())),
        pa.large_list(pa.large_list(pa.float64())),
    ],
    ids=str,
)
def test_official_columns(tmp_path, kind):
    vectors = concepts().astype(np.float16).tolist()
    path = official(tmp_path / "o.parquet", [vectors], kind=kind)
    info, found = read_concepts([str(path)])
    (document,) = found
    assert info == SpaceInfo("", "", 4)
    assert document.sentences == ["a", "b"]
    assert np.array_equal(document.concepts, concepts())
    assert document.concepts.dtype in (np.float16, np.float32)
    assert document.concepts.flags.writeable
    assert [d.sentences for d in read([str(path)])] == [["a", "b"]]


def test_plain_text_column(tmp_path):
    pq.write_table(pa.table({"id": [3, 4], "text": ["A.", "B."]}), tmp_path / "t.parquet")
    assert [(d.id, d.text) for d in read([str(tmp_path / "t.parquet")])] == [
        ("3", "A."),
        ("4", "B."),
    ]


def test_unknown_columns(tmp_path):
    pq.write_table(pa.table({"body": ["A."], "n": [1]}), tmp_path / "t.parquet")
    assert "it has body, n" in caught([tmp_path / "t.parquet"]).message
    pq.write_table(pa.table({"sentences": [[1, 2]]}), tmp_path / "t.parquet")
    assert "list<element: int64>" in caught([tmp_path / "t.parquet"]).message


def test_concepts_without_text(tmp_path):
    path = write(tmp_path / "a.parquet", Document("x", concepts=concepts()))
    _, found = read_concepts([path])
    assert next(found).sentences == []
    assert "lcm decode" in caught([path]).hint
    pq.write_table(pq.read_table(path).select(["id", "concepts"]), tmp_path / "b.parquet")
    error = caught([tmp_path / "b.parquet"])
    assert "concepts and no text" in error.message
    assert "lcm decode" in error.hint


GOOD = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("row", "sentences", "message"),
    [
        (None, ["a", "b"], "has no concepts"),
        (GOOD[:1], ["a", "b"], "2 sentences and 1 concepts"),
        (GOOD, [], "0 sentences and 2 concepts"),
        ([GOOD[0], None], ["a", "b"], "1 of its 2 concepts are missing"),
        ([GOOD[0], [1.0, None, 3.0, 4.0]], ["a", "b"], "1 values in its concepts are null"),
        ([GOOD[0], [1.0, 2.0]], ["a", "b"], "several widths: [2, 4]"),
        ([[1.0, 2.0], [3.0, 4.0]], ["a", "b"], "have 2 dimensions, but those before it have 4"),
        ([GOOD[0], [float("nan")] * 4], ["a", "b"], "the first is concept 1"),
        ([[float("inf")] * 4, GOOD[0]], ["a", "b"], "the first is concept 0"),
        ([], [], "has no concepts"),
        (GOOD, ["a", None], "sentence 1 is missing"),
    ],
)
def test_bad_rows_are_reported_and_never_dropped_silently(tmp_path, row, sentences, message):
    kind = pa.list_(pa.list_(pa.float32()))
    texts = [["a", "b"], sentences, ["a", "b"]]
    path = official(tmp_path / "o.parquet", [GOOD, row, GOOD], texts, kind)
    error = caught([path], load=read_concepts)
    assert isinstance(error, IntegrityError)
    assert message in error.message
    assert f"{path} row 1" in error.message
    assert error.hint
    problems = []
    _, found = read_concepts([str(path)], on_error=problems.append)
    assert [document.id for document in found] == ["o.parquet:0", "o.parquet:2"]
    assert [problem.message for problem in problems] == [error.message]


def test_damaged_concepts_do_not_keep_the_text_from_being_read(tmp_path):
    path = official(tmp_path / "o.parquet", [[GOOD[0], [float("nan")] * 4]])
    assert [document.sentences for document in read([str(path)])] == [["a", "b"]]


def test_text_is_not_concepts(tmp_path):
    (tmp_path / "a.txt").write_text("Text.")
    error = caught([tmp_path / "a.txt"], load=read_concepts)
    assert isinstance(error, UsageError)
    assert "lcm embed" in error.hint
    assert "no concepts" in caught(["-"], b'{"sentences": ["a"]}', load=read_concepts).message


def test_tables_without_rows(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "t.parquet")
    assert "no documents" in caught([tmp_path / "t.parquet"]).message
    assert "no documents" in caught([tmp_path / "t.parquet"], load=read_concepts).message


def test_metadata_and_columns_must_agree(tmp_path):
    path = write(tmp_path / "a.parquet", Document("x", concepts=concepts()))
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"lcm.dim": "5"}), path)
    assert "its file says 5" in caught([path], load=read_concepts).message
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"lcm.dim": "x"}), path)
    assert "lcm.dim = 'x'" in caught([path], load=read_concepts).message


def test_two_spaces_at_once(tmp_path):
    a = write(tmp_path / "a.parquet", Document("x", concepts=concepts()))
    other = SpaceInfo("other", "fedc", 4)
    b = write(tmp_path / "b.arrow", Document("y", concepts=concepts()), info=other)
    error = caught([a, b], load=read_concepts)
    assert isinstance(error, IntegrityError)
    assert "the space other" in error.message
    assert "the space small" in error.message


# --- files cut off


@pytest.mark.parametrize("name", ["a.parquet", "a.safetensors", "a.arrow"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_cut_off(tmp_path, name, part):
    document = Document("x", sentences=["a"] * 99, concepts=concepts(99))
    path = tmp_path / name
    write(path, document)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    error = caught([path], load=read_concepts)
    assert isinstance(error, IntegrityError)
    assert name in error.message
    piped = caught(["-"], path.read_bytes(), load=read_concepts)
    assert isinstance(piped, IntegrityError)


def test_stream_cut_off_between_two_documents():
    stream = io.BytesIO()
    write("-", *(Document(str(i), concepts=concepts()) for i in range(3)), stdout=stream)
    cut = stream.getvalue()[:-8]  # all but the end mark
    problems = []
    _, found = read_concepts(["-"], stdin=io.BytesIO(cut), on_error=problems.append)
    assert len(list(found)) == 3
    assert "cut off after 3 documents" in problems[0].message


def test_a_flipped_bit_in_a_parquet_file_is_detected(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, Document("x", sentences=["a"] * 99, concepts=concepts(99)))
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {c.path_in_schema: c for c in map(group.column, range(group.num_columns))}
    chunk = columns["concepts.list.element.list.element"]
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    assert isinstance(caught([path], load=read_concepts), IntegrityError)


def test_arrow_files_are_read_like_streams(tmp_path):
    stream = io.BytesIO()
    write("-", Document("x", concepts=concepts()), stdout=stream)
    table = pa.ipc.open_stream(stream.getvalue()).read_all()
    with (
        pa.OSFile(str(tmp_path / "a.feather"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as to,
    ):
        to.write_table(table)
    info, found = read_concepts([str(tmp_path / "a.feather")])
    assert (info, next(found).id) == (INFO, "x")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
            "no tensor 'concepts'",
        ),
        ({"concepts": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "F32 [1]"),
        ({"concepts": {"dtype": "I32", "shape": [1, 1], "data_offsets": [0, 4]}}, "I32"),
        (
            {
                "__metadata__": {"sentences": "oops"},
                "concepts": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
            },
            "not valid JSON",
        ),
        (
            {
                "__metadata__": {"sentences": '["a", "b"]'},
                "concepts": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
            },
            "2 sentences and 1 concepts",
        ),
    ],
)
def test_safetensors_that_are_not_a_document(tmp_path, entries, message):
    header = json.dumps(entries).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "a.safetensors").write_bytes(data)
    error = caught([tmp_path / "a.safetensors"], load=read_concepts)
    assert isinstance(error, IntegrityError)
    assert message in error.message


# --- large and slow inputs


def test_a_large_row_group_is_read_in_parts(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    docs = [Document(str(i), concepts=concepts(50)) for i in range(40)]
    write(path, *docs)
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=40)
    sizes = []
    iter_batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, size, **options: sizes.append(size) or iter_batches(self, size, **options),
    )
    with path.open("rb") as file:
        source = Source(str(path), path.name, path)
        found = list(read_parquet(file, source, concepts=True, batch_bytes=2000))
    assert [document.id for document in found] == [str(i) for i in range(40)]
    assert sizes[0] < 20


def test_concepts_are_taken_from_a_pipe_as_they_come():
    script = (
        "import sys, time, numpy as np\n"
        "from lcm_cli.documents import *\n"
        "with open_writer('-', SpaceInfo('s', 'f', 4)) as writer:\n"
        "    for name in 'ab':\n"
        "        writer.write(Document(name, concepts=np.ones((1, 4), np.float32)))\n"
        "        sys.stdin.readline()\n"  # continue only when told to
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        _, found = read_concepts(["-"], stdin=process.stdout)
        assert next(found).id == "a"
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert next(found).id == "b"
        process.stdin.write(b"\n")
        process.stdin.close()
        assert next(found, None) is None
    assert process.returncode == 0


# --- spaces


def test_check_space():
    documents.check_space(None, INFO)
    documents.check_space(INFO, SpaceInfo("same weights", INFO.fingerprint, 4))
    documents.check_space(SpaceInfo("", "", 4), INFO)
    with pytest.raises(IntegrityError, match="dimensions"):
        documents.check_space(SpaceInfo("", "", 5), INFO)
    with pytest.raises(IntegrityError, match=r"space small .*0123456789ab.* tiny") as error:
        documents.check_space(INFO, SpaceInfo("tiny", "ffff", 4))
    assert "--space small" in error.value.hint
    with pytest.raises(IntegrityError) as error:
        documents.check_space(INFO, SpaceInfo("small", "ffff", 4))
    assert error.value.hint.startswith("embed the text again")


def test_importing_is_cheap():
    script = (
        "import sys, io\n"
        "from lcm_cli.documents import read, check_target\n"
        "list(read(['-'], stdin=io.BytesIO(b'Text.')))\n"
        "print(sorted({'numpy', 'pyarrow', 'torch', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
