"""Reading examples in every format: columns by name, broken rows by number."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.evaluation.examples import choose_columns, read_examples, swapped

LANGUAGES = ("eng_Latn", "deu_Latn", "fra_Latn")
ARTICLE = {"id": "a", "lang": "en", "article": "The cat sleeps. It is late.", "highlights": "Late."}


def read(path, **options):
    return read_examples(str(path), LANGUAGES, "tiny", **options)


def write(path, *rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_json_lines_are_recognized_by_their_columns(tmp_path):
    (example,) = read(write(tmp_path / "a.jsonl", ARTICLE))
    assert (example.number, example.id, example.lang, example.target_lang) == (
        1,
        "a",
        "eng_Latn",
        "eng_Latn",
    )
    assert example.source == ("The cat sleeps.", "It is late.") and example.target == ("Late.",)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_give_the_same_examples(tmp_path, kind):
    lines = read(write(tmp_path / "a.jsonl", ARTICLE, ARTICLE | {"id": "b"}))
    table = pa.Table.from_pylist([ARTICLE, ARTICLE | {"id": "b"}])
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    assert read(path) == lines


def test_a_wrong_column_lists_the_columns(tmp_path):
    path = write(tmp_path / "a.jsonl", ARTICLE)
    with pytest.raises(UsageError, match="no column 'artikle'") as caught:
        read(path, source_column="artikle")
    assert "did you mean article" in caught.value.hint
    assert "id, lang, article, highlights" in caught.value.hint
    with pytest.raises(UsageError, match="no column 'gold'"):
        read(path, target_column="gold")
    with pytest.raises(UsageError, match="recognized") as caught:
        read(write(tmp_path / "b.jsonl", {"body": "One."}))
    assert "--source-column" in caught.value.hint and "body" in caught.value.hint


def test_columns_may_be_named(tmp_path):
    record = {"lang": "en", "text": "Not this.", "body": "This.", "short": "Short."}
    (example,) = read(
        write(tmp_path / "a.jsonl", record), source_column="body", target_column="short"
    )
    assert example.source == ("This.",) and example.target == ("Short.",)


def test_the_source_is_not_taken_for_its_own_reference():
    columns = choose_columns(["summary", "text"], "summary", "", "f")
    assert columns.target == ""
    assert choose_columns(["id", "target", "title", "sentences"], "", "", "f").target == "target"


def test_broken_rows_are_reported_with_their_number_and_the_rest_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps(ARTICLE)
    rows = [good, "{broken", "[1]", '{"article": 3}', '{"lang": "en", "article": " "}', "", good]
    rows.append('{"lang": "xx-no", "article": "One."}')
    path.write_text("\n".join(rows), encoding="utf-8")
    errors: list[LcmError] = []
    found = read(path, on_error=errors.append)
    assert [example.number for example in found] == [1, 7]
    numbers = [error.message.split("row ")[1].split()[0].strip(":") for error in errors]
    assert numbers == ["2", "3", "4", "5", "8"]
    with pytest.raises(IntegrityError, match="row 2"):
        read(path)
    assert len(read(path, on_error=errors.append, limit=1)) == 1


def test_a_line_in_another_encoding_is_one_broken_row(tmp_path):
    path = write(tmp_path / "a.jsonl", ARTICLE, ARTICLE)
    path.write_bytes(path.read_bytes() + b'{"article": "Caf\xe9"}\n' + json.dumps(ARTICLE).encode())
    errors: list[LcmError] = []
    assert [example.number for example in read(path, on_error=errors.append)] == [1, 2, 4]
    assert ["line 3 is not UTF-8" in error.message for error in errors] == [True]


def test_languages_side_by_side(tmp_path):
    record = {"deu_Latn": "Die Katze schläft.", "fra_Latn": "Le chat dort.", "swh_Latn": "Paka."}
    (example,) = read(write(tmp_path / "a.jsonl", record))
    assert example.lang == "deu_Latn" and example.source == ("Die Katze schläft.",)
    # The space cannot encode Swahili.
    assert example.parallel == {"deu_Latn": "Die Katze schläft.", "fra_Latn": "Le chat dort."}


def test_examples_without_reference_and_swapped(tmp_path):
    path = write(tmp_path / "a.jsonl", ARTICLE | {"highlights": None}, ARTICLE)
    first, second = read(path)
    assert first.target == () and swapped(first) is None
    turned = swapped(second)
    assert turned and turned.source == ("Late.",) and turned.target == second.source


def test_missing_damaged_and_foreign_files(tmp_path):
    with pytest.raises(NotFoundError):
        read(tmp_path / "missing.jsonl")
    text = tmp_path / "a.txt"
    text.write_text("One. Two.")
    with pytest.raises(UsageError, match="not a table"):
        read(text)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(IntegrityError, match="damaged"):
        read(tmp_path / "cut.parquet")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(IntegrityError):
        read(tmp_path / "empty.jsonl")
