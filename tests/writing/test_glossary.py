"""Glossaries."""

from pathlib import Path

import pytest

from lcm_cli.errors import IntegrityError
from lcm_cli.writing.glossary import Glossary, Term, occurs, read_glossary

LANGUAGES = ("eng_Latn", "deu_Latn", "fra_Latn")


def read(tmp_path: Path, text: str) -> Glossary:
    path = tmp_path / "terms.tsv"
    path.write_bytes(text.encode())
    return read_glossary(path, LANGUAGES, "small")


@pytest.mark.parametrize(
    "text",
    [
        "hound\tchien\tfr\nsea dog\tSeebär\n",
        "\ufeffhound\tchien\tFrench\r\n\r\nsea dog\tSeebär\t\r\n",
        "hound,chien,fra\nsea dog,Seebär,\nhound,chien,fra\n",
        'term;translation;lang\nhound;chien;fra_Latn\n"sea dog";Seebär\n',
        "Language\tTarget\tSource\nfr\tchien\thound\n\tSeebär\tsea dog",
    ],
)
def test_reads_tsv_and_csv(tmp_path: Path, text: str) -> None:
    expected = (Term("hound", "chien", "fra_Latn"), Term("sea dog", "Seebär"))
    assert read(tmp_path, text).terms == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hound\tchien\n\nhen\n", "line 3 does not have 2 or 3 columns: 'hen'"),
        ("hound\tchien\n\tpoule\n", "line 2 has an empty term: ' | poule'"),
        ("hound\t\n", "line 1 has an empty translation: 'hound | '"),
        ("a\tb\tfr\td", "line 1 does not have 2 or 3 columns"),
        ("a\tb\tfr\na\tb\nA\tc\n", "line 3 translates 'A' as 'c', an earlier line as 'b'"),
        ("a\tb\tzulu\n", "line 1: space small has no Zulu"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        read(tmp_path, text)
    assert f"terms.tsv {message}" in str(caught.value)


def test_an_empty_file_has_no_terms(tmp_path: Path) -> None:
    assert read(tmp_path, "\n").terms == ()


def test_terms_are_whole_words_in_any_case() -> None:
    glossary = Glossary((Term("hound", "chien", "fra_Latn"), Term("Sea  dog", "Seebär")))
    terms = glossary.found("The HOUND and a sea\u00a0dog.", "eng_Latn", "fra_Latn")
    assert [term.term for term in terms] == ["hound", "Sea  dog"]
    assert [t.term for t in glossary.found("The hound.", "eng_Latn", "deu_Latn")] == []
    assert glossary.found("Greyhounds.", "eng_Latn", "fra_Latn") == []


def test_words_are_not_separated_in_chinese() -> None:
    assert occurs("猫", "小猫睡觉。", "zho_Hans")
    assert not occurs("cat", "concatenate", "eng_Latn")
    assert occurs("C++", "Use C++.", "eng_Latn")
