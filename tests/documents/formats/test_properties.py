"""Generated documents: translations change the text of the passages, and nothing else."""

import csv
import io
import json
import re

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from translating import translate

from lcm_cli.documents import Document
from lcm_cli.documents.formats import html as html_format
from lcm_cli.documents.formats import markdown, plain, subtitles, tables

# Shrinking takes minutes, and the failing examples are small.
FEW = settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate])
words = st.text("abcdefgé", min_size=1, max_size=7)
sentence = st.lists(words, min_size=1, max_size=6).map(lambda found: " ".join(found).title() + ".")


def backwards(text):
    return " ".join(reversed(text.split()))


def apply(skeleton, change):
    if not skeleton.passages:
        return skeleton.render([], "eng_Latn").decode()
    document = Document("d", text="-", passages=tuple(skeleton.passages), skeleton=skeleton)
    return translate(document, change).decode()


# Markdown: blocks of inline elements

plain_words = st.lists(words, min_size=1, max_size=3).map(" ".join)
inline = st.one_of(
    plain_words,
    plain_words.map("*{}*".format),
    plain_words.map("**{}**".format),
    plain_words.map("`{}`".format),
    plain_words.map("[{}](http://x.y/a_b)".format),
    plain_words.map("![{}](i.png)".format),
    plain_words.map("[![{}](i.png)](http://x.y)".format),
    plain_words.map("<kbd>{}</kbd>".format),
    st.just("<br>"),
    st.just("https://x.y/z_w?a=b&c"),
)
line = st.lists(inline, min_size=1, max_size=5).map(lambda parts: "Start " + " ".join(parts) + ".")
block = st.one_of(
    line,
    line.map("## {}".format),
    st.lists(line, min_size=1, max_size=3).map(lambda lines: "\n".join(f"- {x}" for x in lines)),
    st.lists(line, min_size=1, max_size=2).map(lambda lines: "\n".join(f"> {x}" for x in lines)),
    line.map("1. {}\n   - b\n\n   para".format),
    line.map("| a | b |\n|---|---|\n| {} | c |".format),
    plain_words.map("```\n{}\n```".format),
    plain_words.map("    {}".format),
    plain_words.map("<div class='a'>\n{}\n</div>".format),
    st.just("---"),
)
blocks = st.lists(block, min_size=1, max_size=5).map(lambda found: "\n\n".join(found) + "\n")


def parsed(source):
    return MarkdownIt("commonmark").enable("table").parse(source)


def rendered(source):
    return " ".join(MarkdownIt("commonmark").enable("table").render(source).split())


@FEW
@given(blocks)
def test_markdown_renders_the_same(source):
    assert rendered(apply(markdown.read(source), str)) == rendered(source)


@FEW
@given(blocks)
def test_markdown_is_its_own_translation_afterwards(source):
    once = apply(markdown.read(source), str)
    assert apply(markdown.read(once), str) == once


@pytest.mark.parametrize("change", [str.upper, backwards])
@FEW
@example(source="1. Start ![a](i.png) <kbd>b</kbd>.\n   - c\n\n   para\n")  # it moves to the start
@given(source=blocks)
def test_markdown_keeps_structure_code_and_addresses(change, source):
    done = apply(markdown.read(source), change)
    before, after = parsed(source), parsed(done)
    assert [token.type for token in before] == [token.type for token in after], done
    for kind in ("fence", "code_block"):
        assert [t.content for t in before if t.type == kind] == [
            t.content for t in after if t.type == kind
        ]

    def kept(tokens):
        children = [child for token in tokens for child in token.children or []]
        return sorted(
            [str(c.attrs) for c in children if c.type in ("link_open", "image")]
            + [c.content for c in children if c.type in ("code_inline", "html_inline")]
        )

    assert kept(before) == kept(after), done


# HTML

attribute = st.sampled_from(["", " class=x", ' id="a b"', " title='it\"s &amp;'"])
html_text = st.lists(st.sampled_from(["a", "b c", "&amp;", "&lt;", "d"]), min_size=1, max_size=4)
html_inline = st.recursive(
    html_text.map(" ".join),
    lambda inner: st.tuples(
        st.sampled_from(["b", "i", "code", "span"]),
        attribute,
        st.lists(inner, min_size=1, max_size=3),
    ).map(lambda t: f"<{t[0]}{t[1]}>{' '.join(t[2])}</{t[0]}>"),
    max_leaves=5,
)
html_block = st.recursive(
    st.one_of(
        st.lists(html_inline, max_size=4).map(" ".join),
        st.sampled_from(["<br>", "<hr/>", "<!-- c <p> -->", "<img src=a>", "<pre> x  y </pre>"]),
        st.just("<script>if (a < b) '<p>'</script>"),
    ),
    lambda inner: st.tuples(
        st.sampled_from(["p", "div", "li", "td", "h1"]), attribute, st.lists(inner, max_size=3)
    ).map(lambda t: f"<{t[0]}{t[1]}>{''.join(t[2])}</{t[0]}>"),
    max_leaves=8,
)
pages = st.lists(html_block, min_size=1, max_size=4).map("\n".join)


def tags(source):
    return re.findall(r"<!--.*?-->|<[^>]+>", source)


def html_texts(source):
    return " ".join(re.sub(r"<[^>]+>", "\0", source).split())


@FEW
@given(pages)
def test_html_is_the_same_but_for_white_space(source):
    done = apply(html_format.read(source), str)
    assert tags(done) == tags(source)
    assert html_texts(done) == html_texts(source)


@FEW
@given(pages)
def test_html_keeps_its_blocks_and_links(source):
    done = apply(html_format.read(source), str.upper)
    emphasis = re.compile(r"</?(?:b|i|span)\b")
    before, after = (
        [tag for tag in tags(text) if not emphasis.match(tag)] for text in (source, done)
    )
    blocks = re.compile(r"</?(?:p|div|li|td|h1|pre|script|hr|br)\b")
    assert sorted(before) == sorted(after)
    assert [t for t in before if blocks.match(t)] == [t for t in after if blocks.match(t)]


# Subtitles

cue_text = st.lists(
    st.one_of(sentence, words, words.map("<i>{}</i>".format), words.map("- {}".format)),
    min_size=1, max_size=3,
).map("\n".join)  # fmt: skip
cues = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(1, 3000), cue_text), min_size=1, max_size=6
)


def clock(ms):
    return f"{ms // 3600000:02}:{ms // 60000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"


@pytest.mark.parametrize("change", [str, str.upper, backwards])
@FEW
@given(found=cues)
def test_subtitles_keep_times_and_words(change, found):
    parts, now = [], 0
    for number, (wait, length, text) in enumerate(found, start=1):
        start, now = now + wait, now + wait + length
        parts.append(f"{number}\n{clock(start)} --> {clock(now)}\n{text}\n")
    source = "\n".join(parts)
    done = apply(subtitles.read(source, ".srt"), change)
    frame = re.compile(r"^\d+$|^.*-->.*$", re.MULTILINE)
    assert frame.findall(done) == frame.findall(source)

    def all_words(text):
        return re.findall(r"[a-zé]+", re.sub(r"</?i>", "", frame.sub("", text)).lower())

    if change is not backwards:
        assert all_words(done) == all_words(source)
    assert sorted(all_words(done)) == sorted(all_words(source))
    assert done.count("\n\n") == source.count("\n\n")


# Tables

cell = st.text("ab \n\",;|é'", max_size=8)
rows = st.lists(st.lists(cell, min_size=3, max_size=3), min_size=1, max_size=4)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@FEW
@given(rows=rows, quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_csv_cells(end, delimiter, rows, quoting):
    out = io.StringIO()
    made = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting)
    made.writerows([["a", "text", "c"], *rows])
    source = out.getvalue()
    skeleton = tables.read(source, "x", "tsv" if delimiter == "\t" else "csv", ".csv", "text")
    changed = apply(skeleton, str.upper)
    again = list(csv.reader(io.StringIO(changed, newline=""), delimiter=delimiter))
    assert [[row[0], row[2]] for row in again[1:]] == [[row[0], row[2]] for row in rows]
    for old, new in zip(rows, again[1:], strict=True):
        assert "".join(new[1].split()) == "".join(old[1].upper().split())


keys = st.text('ab"\\é{}[]:,', max_size=4)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), keys),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)
records = st.lists(
    st.tuples(st.dictionaries(keys, values, max_size=3), sentence), min_size=1, max_size=4
).map(lambda found: [record | {"text": text} for record, text in found])


@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@FEW
@given(records=records, indent=st.sampled_from([None, 1, "\t"]))
def test_json_values(suffix, ascii, records, indent):
    if suffix == ".json":
        source = json.dumps(records, ensure_ascii=ascii, indent=indent)
    else:
        source = "\n".join(json.dumps(each, ensure_ascii=ascii) for each in records)
    skeleton = tables.read(source, "x", suffix.removeprefix("."), suffix, "text")
    assert apply(skeleton, str) == source
    done = apply(skeleton, str.upper)
    found = json.loads(done) if suffix == ".json" else [*map(json.loads, done.split("\n"))]
    assert found == [each | {"text": each["text"].upper()} for each in records]


# Plain text

prose = st.lists(
    st.one_of(
        sentence,
        sentence.map("- {}".format),
        sentence.map("  * {}".format),
        sentence.map("# {}".format),
        st.sampled_from(["", "", "* * *", "Head\n===="]),
    ),
    min_size=1, max_size=10,
).map("\n".join)  # fmt: skip


@FEW
@given(prose)
def test_plain_text_keeps_its_skeleton(source):
    skeleton = plain.read(source)
    if skeleton.passages:  # rules alone are not text
        assert apply(skeleton, str.upper).split() == source.upper().split()
