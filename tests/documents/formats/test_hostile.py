"""Damaged and malicious files end in an error or a result, at once and in little memory."""

import io
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from translating import read_whole, translated

from lcm_cli.documents.formats import html, markdown, subtitles, tables
from lcm_cli.errors import IntegrityError, LcmError

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "formats"
SIZE = 200_000
UNITS = [
    *("<", "[", "*", "`", "-->", " ", "\\", "_a", "![", "<!--", "<a ", "<a x='", "&", "$a", "~~a "),
    *("a\n", "> ", "- ", "<div>", "<b>", "<b>a", "</b>", "[a](", "[a][", "|a", "<![CDATA[", "{\\"),
]
READERS = {
    "markdown": markdown.read,
    "html": html.read,
    "srt": lambda text: subtitles.read(f"1\n00:00:01,000 --> 00:00:02,000\nx{text}", ".srt"),
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", list(READERS))
@pytest.mark.parametrize("unit", UNITS)
def test_repeated_syntax_takes_linear_time(reader, unit):
    start = time.process_time()
    try:
        READERS[reader](unit * (SIZE // len(unit)))
    except IntegrityError as error:
        assert "--format text" in error.hint
    assert time.process_time() - start < 20  # a quadratic reader needs minutes


@pytest.mark.parametrize(
    "text", ["\n".join("  " * n + "- a" for n in range(400)), "> " * 10_000 + "a"]
)
def test_deep_nesting(text):
    markdown.read(text)


@pytest.mark.parametrize("text", ["WEBVTT\n", "A text.\n\nIt goes on.", "00:00:01,000 -> 2"])
@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_subtitles_without_times(tmp_path, text, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text(text)
    with pytest.raises(IntegrityError, match="has no subtitles: no line such as") as caught:
        read_whole(path)
    assert "--format text" in caught.value.hint


def test_deep_json():
    deep = "[" * 100_000
    with pytest.raises(IntegrityError):
        tables.read(deep, "a.json", "json", ".json", "text")


def packed(**members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/") + ".xml", content)
    return data.getvalue()


def test_a_zip_bomb(tmp_path):
    path = tmp_path / "bomb.docx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", "<a/>")
        with archive.open("word/media/a.png", "w") as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(IntegrityError, match="unpacks from"):
        read_whole(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize("name", ["report.docx", "book.epub"])
def test_a_wrong_checksum_is_found_before_the_translation(tmp_path, name):
    data = bytearray((SAMPLES / name).read_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = archive.infolist()[-1]
    data[member.header_offset + 30 + len(member.filename) + 5] ^= 0xFF
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="is damaged"):
        read_whole(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["report.docx", "book.epub", "page.pdf"])
def test_a_file_that_was_cut_off(tmp_path, name, share):
    data = (SAMPLES / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(LcmError):
        read_whole(path)


def test_xml_entities_are_not_expanded(tmp_path):
    path = tmp_path / "a.docx"
    lines = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    xml = f'<!DOCTYPE a [<!ENTITY e0 "ha">{lines}<!ENTITY f SYSTEM "file:///etc/passwd">]>'
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = "<w:body><w:p><w:r><w:t>Hello. &e11;&f;</w:t></w:r></w:p></w:body>"
    path.write_bytes(
        packed(word__document=f'{xml}<w:document xmlns:w="{space}">{body}</w:document>')
    )
    try:
        document = read_whole(path)
    except IntegrityError:
        return
    assert "root:" not in document.text and len(document.text) < 100


def test_a_catalog_that_names_a_file(tmp_path):
    secret = tmp_path / "secret.po"
    secret.write_text('msgid "secret"\nmsgstr ""\n')
    path = tmp_path / "a.po"
    path.write_text(str(secret))
    with pytest.raises(LcmError, match="not a message catalog"):
        read_whole(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b'text\n"a"b\n', "the quotes in line 2"),
        ("a.csv", b'text\n"a\n', "the quotes in line 2"),
        ("a.json", b'[{"text": 1}]', "row 1: 'text' is int"),
        ("a.json", b'[{"text": "a"]', "not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n[]', "line 2 is not an object"),
        ("a.docx", packed(word__other="<a/>"), "not a Word document"),
        ("a.docx", packed(word__document="<a>"), "damaged"),
        ("a.docx", b"PK\x03\x04", "not a Word document"),
        ("a.po", b"nonsense", "not a message catalog"),
        ("a.srt", b"\xff\xfe1\x00", "UTF-16"),
    ],
)
def test_errors(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    column = "text" if name[2:] in ("csv", "json", "jsonl") else None
    with pytest.raises(LcmError, match=message):
        translated(path, column=column)


def test_tables_need_a_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text,text\n1,a,b\n")
    with pytest.raises(LcmError, match="with the columns id, text, text"):
        read_whole(path)
    with pytest.raises(LcmError, match="no column 'body'"):
        read_whole(path, "body")
    with pytest.raises(LcmError, match="more than one column 'text'"):
        read_whole(path, "text")
