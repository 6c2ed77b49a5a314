"""Sample files of each format: translations into themselves, and into capitals."""

import io
import re
import shutil
import subprocess
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import docx
import polib
import pysubs2
import pytest
from markdown_it import MarkdownIt
from translating import read_whole, translated

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "formats"
COLUMN = {".csv": "text", ".tsv": "text", ".json": "text", ".jsonl": "text"}
# Files that are already in the normal form that a translation has.
NORMAL = [
    "notes.md",
    "table.csv",
    "table.tsv",
    "rows.json",
    "rows.jsonl",
    "letter.txt",
    "latin1.html",
]


def same(name):
    path = SAMPLES / name
    return path.read_bytes(), translated(path, column=COLUMN.get(path.suffix))


def capitals(name, **options):
    path = SAMPLES / name
    return translated(path, str.upper, column=COLUMN.get(path.suffix), **options).decode()


@pytest.mark.parametrize("name", NORMAL)
def test_a_file_in_normal_form_is_the_same_to_the_byte(name):
    before, after = same(name)
    assert after == before


@pytest.mark.parametrize("name", ["readme.md", "page.html", "film.srt", "film.vtt", "tool.po"])
def test_a_translation_is_in_normal_form(name, tmp_path):
    _, once = same(name)
    path = tmp_path / name
    path.write_bytes(once)
    if name != "tool.po":  # which is complete now
        assert translated(path) == once


def test_markdown_renders_the_same():
    before, after = same("readme.md")
    pages = [
        " ".join(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text).split())
        for text in (before.decode(), after.decode())
    ]
    assert pages[0] == pages[1]


class _Events(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.found = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, attrs))

    def handle_endtag(self, tag):
        self.found.append(("close", tag))

    def handle_comment(self, data):
        self.found.append(("comment", data))

    def handle_data(self, data):
        words = data.replace("\u00ad", "").replace("\u200b", "")
        if self.found and self.found[-1][0] == "data":
            words = self.found.pop()[1] + words
        if words.strip():
            self.found.append(("data", words))


def events(data):
    """Return the events of a page, with white space collapsed."""
    return [
        (kind, " ".join(rest.split())) if kind == "data" else (kind, rest)
        for kind, rest in _Events(data.decode()).found
    ]


def test_html_has_the_same_events():
    before, after = same("page.html")
    assert events(after) == events(before)


@pytest.mark.parametrize("name", ["film.srt", "film.vtt"])
def test_subtitles_have_the_same_events(name):
    before, after = (
        [
            (event.start, event.end, " ".join(event.text.replace("\\N", " ").split()))
            for event in pysubs2.SSAFile.from_string(data.decode("utf-8-sig"), name[-3:]).events
        ]
        for data in same(name)
    )
    assert before == after


def test_subtitles_keep_all_but_the_text():
    before, after = (SAMPLES / "film.srt").read_bytes(), capitals("film.srt").encode()
    assert after.startswith(b"\xef\xbb\xbf1\r\n") and after.count(b"\n") == after.count(b"\r\n")
    frames = [
        re.findall(rb"^(?:\d+|[\d:,]+ --> .*)\r?$", data, re.MULTILINE) for data in (before, after)
    ]
    assert frames[0] == frames[1]
    assert "{\\an8}- WHO IS THAT?\r\n- NOBODY." in after.decode()
    assert "<i>HELLO THERE, MY FRIEND.</i>" in after.decode()


def test_markdown_keeps_code_and_addresses():
    before, after = (SAMPLES / "readme.md").read_text(), capitals("readme.md")
    fences = re.compile(r"```.*?```|~~~.*?~~~|^---\n.*?^---\n|^    \S.*$", re.DOTALL | re.MULTILINE)
    assert [f for f in fences.findall(before) if f[0] != " "] == [
        f for f in fences.findall(after) if f[0] != " "
    ]
    for syntax in (r"\]\([^)]*\)", r"(?<!`)`[^`\n]+`(?!`)", r"https?://\S+\w", r"^\[\w+\]: .*$"):
        found = [sorted(re.findall(syntax, text, re.MULTILINE)) for text in (before, after)]
        assert set(found[0]) <= set(found[1])
    assert "> [!NOTE]\n> USEFUL" in after
    assert "- [ ] AN OPEN TASK\n- [x] A DONE TASK" in after
    assert "[![CI](https://ci.example/badge.svg)](https://ci.example/x)\n" not in after
    assert after.split("\n")[5].startswith("# THE QUICK TOOL [![CI](https://ci.example/badge.svg)]")


def test_markdown_dialects():
    text = capitals("notes.md")
    assert text.startswith('+++\ntitle = "toml"\n+++\n')
    assert '!!! note "Title"\n    TEXT OF THE NOTE.' in text
    assert "::: warning\nTEXT IN THE CONTAINER.\n:::" in text
    assert "TERM\n: ITS DEFINITION." in text
    assert "[WHOLE REF][Whole Ref]" in text  # or the reference would have no definition
    assert "https://e.com/x*y*z_a" in text


def test_html_keeps_scripts_and_names():
    before, after = (SAMPLES / "page.html").read_text(), capitals("page.html")
    kept = re.compile(
        r"<(script|style|pre|textarea|select|svg|math)\b.*?</\1>|<!--.*?-->", re.DOTALL
    )
    assert [m[0] for m in kept.finditer(before)] == [m[0] for m in kept.finditer(after)]
    assert '<p translate="no">Do not translate.</p>' in after
    assert '<a href="/b?x=1&amp;y=2">ABOUT US</a>' in after
    assert "<span translate=no>Foo <b>Bar</b></span>" in after
    assert "<p>- A DASH ITEM</p><p>1. FIRST</p><p>A) APPLE PIE</p><p>— HELLO, HE SAID.</p>" in after


def test_html_in_another_encoding():
    assert translated(SAMPLES / "latin1.html", str.upper) == (
        (SAMPLES / "latin1.html").read_bytes()
        .replace(b"Caf\xe9", b"CAF\xc9")
        .replace(b"Ein sch\xf6ner Tag in Z\xfcrich.", b"EIN SCH\xd6NER TAG IN Z\xdcRICH.")
    )  # fmt: skip
    greek = translated(SAMPLES / "latin1.html", lambda sentence: "α")
    assert b"<p>&#945;</p>" in greek
    assert not read_whole(SAMPLES / "latin1.html").skeleton.is_text  # nor is it fit for a terminal


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {
            info.filename: (archive.read(info), info.compress_type) for info in archive.infolist()
        }


def test_word_documents_have_the_same_paragraphs():
    before, after = map(members, same("report.docx"))
    assert list(before) == list(after)
    assert [name for name in before if before[name] != after[name]] == ["word/document.xml"]
    texts = [
        [paragraph.text for paragraph in docx.Document(io.BytesIO(data)).paragraphs]
        for data in same("report.docx")
    ]
    # python-docx leaves insertions out, which a translation accepts.
    texts[0][texts[0].index("Inserted: ")] += "new words"
    assert texts[0] == texts[1]


def test_word_documents_keep_their_parts():
    document = docx.Document(io.BytesIO(translated(SAMPLES / "report.docx", str.upper)))
    texts = [paragraph.text for paragraph in document.paragraphs]
    assert "NAME:\tANNA\nNEXT LINE & <MORE>" in texts
    assert "SEE OUR SITE FOR MORE (our site)." in texts
    assert "THE DOG SLEEPS." in texts
    assert [[cell.text for cell in row.cells] for row in document.tables[0].rows] == [
        ["MONTH", "BOATS"],
        ["MARCH\nSECOND PARAGRAPH IN A CELL.", "12"],
    ]
    assert document.sections[0].header.paragraphs[0].text == "ANNUAL HEADER"
    xml = document.element.xml
    assert xml.count("w:footnoteReference") == xml.count(" PAGE ") == 1
    assert ">May 5<" in xml and ">old<" in xml  # a field, and a deletion
    assert [p.style.name for p in document.paragraphs if p.text == "FIRST ITEM"] == ["List Bullet"]


def test_emphasis_in_word_documents_moves_with_its_words():
    def change(sentence):
        return sentence.replace("in the spring", "SPRING").replace("The ", "THE ")

    document = docx.Document(io.BytesIO(translated(SAMPLES / "report.docx", change)))
    (paragraph,) = (p for p in document.paragraphs if p.text.startswith("We sold"))
    assert [(run.text, run.bold, run.italic) for run in paragraph.runs] == [
        ("We sold ", None, None),
        ("forty boats", True, None),
        (" SPRING. THE ", None, None),
        ("weather", True, True),
        (" was good.", None, None),
    ]


def test_books_are_the_same_to_the_byte():
    before, after = map(members, same("book.epub"))
    assert list(before.items()) == list(after.items())


def test_books_keep_the_order_of_reading():
    document = read_whole(SAMPLES / "book.epub")
    texts = [passage.text for passage in document.passages]
    assert texts.index("It rained.") < texts.index("The sun came out.") < texts.index("Contents")
    changed = members(translated(SAMPLES / "book.epub", str.upper))
    assert next(iter(changed)) == "mimetype" and changed["mimetype"][1] == zipfile.ZIP_STORED
    assert b"<text>THE FIRST DAY</text></navLabel><content src=" in changed["OEBPS/toc.ncx"][0]
    assert b"<dc:title>The book" in changed["OEBPS/book.opf"][0]


def test_pages_of_a_pdf_become_markdown():
    document = read_whole(SAMPLES / "page.pdf")
    text = translated(SAMPLES / "page.pdf").decode()
    assert document.skeleton.suffix == ".md"
    assert text.startswith("## The lighthouse\n\nThe old lighthouse stands at the end of the long")
    assert "\n\nShe liked tea.\n\nShe had two cats.\n\n" in text
    assert "efficient" in text and "first-rate" in text
    assert r"\[brackets\]" in text
    assert {passage.place for passage in document.passages} == {"page 1"}


def test_catalogs_are_filled():
    (catalog,) = (polib.pofile(capitals("tool.po", lang="eng_Latn")),)
    found = {entry.msgid: entry for entry in catalog}
    assert found["Done already"].msgstr == "Fertig" and not found["Done already"].fuzzy
    assert found["New text here"].msgstr == "NEW TEXT HERE"
    plural = found["%d file removed"].msgstr_plural
    assert plural == {0: "%D FILE REMOVED (%d)", 1: "%D FILES REMOVED (%d)"}
    usage = found[
        'Usage: tool [OPTION]...\nCopy the files. Then leave.\n\n  -a   all "quoted" files\n'
    ]
    assert usage.msgstr == usage.msgid.upper() and usage.fuzzy
    assert found["%"].msgstr == ""
    assert catalog.metadata["Language"] == "en"
    assert found["&Open…"].msgctxt == "menu"


@pytest.mark.skipif(shutil.which("msgfmt") is None, reason="gettext is not installed")
def test_msgfmt_accepts_a_catalog(tmp_path):
    path = tmp_path / "new.po"
    path.write_bytes(same("tool.po")[1])
    subprocess.run(["msgfmt", "-c", "-o", tmp_path / "new.mo", path], check=True)


def test_a_column_of_a_table():
    text = translated(SAMPLES / "table.csv", str.upper, column="text").decode()
    assert text.split("\r\n") == [
        '\ufeffid;"text";note',
        '1;"HE SAID ""HI"". TWO LINES',
        'HERE.";x',
        '2;PLAIN TEXT, WITH COMMA;"q"',
        "",
        "3;;",
        '4;"- ONE\n- TWO\n\nNEW PARA. SECOND.";"a;b"',
        '5;FIVE INCH 5" PIPE;',
        "6;LAST",
    ]


def test_two_equal_keys_of_an_object():
    text = capitals("rows.json")
    assert '{"text": "First", "text": "SECOND / ONE.", "l": ["text", "x"]}' in text
    assert '"sub": {"text": "no"}' in text and "1.50" in text


def test_plain_text_is_wrapped_as_before():
    assert capitals("letter.txt") == (SAMPLES / "letter.txt").read_text().upper()


def test_a_link_whose_words_are_not_found_stands_before_the_final_mark(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("Read [the book](book.md)!\n", encoding="utf-8")

    def to_french(sentence: str) -> str:
        return "Lisez-le\u202f!" if "book" in sentence else sentence

    found = translated(tmp_path / "a.md", to_french).decode()
    assert found == "Lisez-le ([the book](book.md))\u202f!\n"
