"""Translations with characters that are syntax in a format, which its readers show as they are."""

import csv
import html
import io
import json
from html.parser import HTMLParser

import pysubs2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.footnote import footnote_plugin

from lcm_cli.documents.formats import html as html_format
from lcm_cli.documents.formats import markdown, plain, subtitles, tables

SYNTAX = "ab1é .,*_[]<>&|#`~$!()\\-+=:{}%^\"';/"
texts = st.text(SYNTAX, min_size=1, max_size=25).map(lambda text: " ".join(text.split()))
texts = texts.filter(bool)


def render(skeleton, text):
    """Return the file whose only passage is replaced by `text`."""
    (passage,) = skeleton.passages
    return skeleton.render([[(passage.text, text)]], "eng_Latn").decode()


def shown(children):
    """Return the text of inline tokens, which must be nothing but text."""
    assert {child.type for child in children} <= {"text", "text_special"}, children
    return "".join(child.content for child in children)


def parser():
    made = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return made.use(dollarmath_plugin, allow_digits=False, double_inline=True).use(footnote_plugin)


@pytest.mark.parametrize("around", ["{}", "- {}", "> {}", "# {}", "1. {}", "a\n\n{}\n\nb"])
@settings(max_examples=60, deadline=None)
@given(text=texts)
@example(text="1. a")
@example(text="- a")
@example(text="+")
@example(text="# a")
@example(text="a #")
@example(text="***")
@example(text="===")
@example(text="| a | b |")
@example(text="[a]: b")
@example(text="a\\")
@example(text="[^1]: a")
@example(text=": a")
def test_markdown(around, text):
    word = "placeholder"
    skeleton = markdown.read(around.format(word))
    found = [passage for passage in skeleton.passages if passage.text == word]
    assert len(found) == 1
    pairs = [[(p.text, text if p.text == word else p.text)] for p in skeleton.passages]
    done = skeleton.render(pairs, "eng_Latn").decode()
    before, after = parser().parse(around.format(word)), parser().parse(done)
    assert [token.type for token in after] == [token.type for token in before], done
    contents = [shown(token.children) for token in after if token.type == "inline"]
    assert text in contents


@settings(max_examples=100, deadline=None)
@given(text=texts)
@example(text="a|b")
@example(text="a\\|b")
@example(text="\\")
def test_markdown_cells(text):
    source = "|a|b|\n|-|-|\n|1|placeholder|\n"
    skeleton = markdown.read(source)
    pairs = [[(p.text, text if p.text == "placeholder" else p.text)] for p in skeleton.passages]
    tokens = parser().parse(skeleton.render(pairs, "eng_Latn").decode())
    cells = [token for token in tokens if token.type == "inline"]
    assert [shown(cell.children) for cell in cells] == ["a", "b", "1", text]


class _Text(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_comment(self, data):
        self.tags.append(("comment", data))

    def handle_data(self, data):
        self.text += data


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_html(text):
    done = _Text(render(html_format.read("<p><b>placeholder</b>"), text))
    assert (done.tags, done.text) == ([("p", []), ("b", [])], text)


@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
@settings(max_examples=50, deadline=None)
@given(text=texts)
@example(text="1 --> 2")
def test_subtitles(suffix, text):
    head = "WEBVTT\n\n" if suffix == ".vtt" else "1\n"
    cues = "00:00:01.000 --> 00:00:02.000\nPlaceholder.\n\n2\n00:00:03.000 --> 00:00:04.000\nend\n"
    source = head + (cues if suffix == ".vtt" else cues.replace(".000", ",000"))
    skeleton = subtitles.read(source, suffix)
    pairs = [[(p.text, text if p.text == "Placeholder." else p.text)] for p in skeleton.passages]
    done = skeleton.render(pairs, "eng_Latn").decode()
    lines = done.split("\n")
    start = next(n for n, line in enumerate(lines) if "00:00:01" in line)
    (body, *_) = "\n".join(lines[start + 1 :]).split("\n\n")
    words = " ".join(body.split())
    assert (html.unescape(words) if suffix == ".vtt" else words) == (
        text if suffix == ".vtt" else text.replace("-->", "->")
    )
    events = pysubs2.SSAFile.from_string(done, format_=suffix[1:]).events
    assert [(event.start, event.end) for event in events] == [(1000, 2000), (3000, 4000)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@settings(max_examples=50, deadline=None)
@given(text=texts, others=st.lists(st.text(SYNTAX + "\n", max_size=8), min_size=2, max_size=2))
def test_csv(delimiter, text, others):
    rows = [["x", "text", "y"], [others[0], "placeholder", others[1]]]
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    suffix = ".tsv" if delimiter == "\t" else ".csv"
    done = render(tables.read(out.getvalue(), "a", suffix.removeprefix("."), suffix, "text"), text)
    again = list(csv.reader(io.StringIO(done, newline=""), delimiter=delimiter))
    assert again == [rows[0], [others[0], text, others[1]]]


@settings(max_examples=50, deadline=None)
@given(text=texts, other=st.text(max_size=8))
def test_json(text, other):
    record = {"a": other, "text": "placeholder", "b": {"text": [other, 1.5, None]}}
    source = json.dumps([record])
    done = render(tables.read(source, "a", "json", ".json", "text"), text)
    assert json.loads(done) == [record | {"text": text}]


@settings(max_examples=50, deadline=None)
@given(text=texts)
def test_plain_text(text):
    assert render(plain.read("\n  - placeholder\n"), text) == f"\n  - {text}\n"


def test_code_in_html_is_not_translated():
    alone = "<p><code>make test</code></p>"
    assert html_format.read(alone).passages == []
    page = html_format.read(f"{alone}<p>Run <kbd>a &lt; b</kbd> as <i translate=no>Bob</i>.</p>")
    (passage,) = page.passages
    done = page.spliced([[(passage.text, "Lance.")]], "fra_Latn")
    assert done.startswith(f"{alone}<p>Lance")
    assert "<kbd>a &lt; b</kbd>" in done and "<i translate=no>Bob</i>" in done
