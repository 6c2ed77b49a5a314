"""Language detection: the right language, or an error that asks for it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lcm_cli.errors import NotFoundError, UsageError
from lcm_cli.text.detect import detect, load_identifier, script_of
from lcm_cli.text.languages import SONAR

TINY = ("eng_Latn", "deu_Latn", "fra_Latn", "spa_Latn", "nld_Latn")
FEW = Path(__file__).parent.parent / "data" / "flores200_few.jsonl"
ROWS = [json.loads(line) for line in FEW.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["lang"])
def test_texts_in_many_languages(row):
    assert detect(" ".join(row["sentences"]), SONAR) == row["lang"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The cat sleeps.", "eng_Latn"),
        ("Die Katze schläft.", "deu_Latn"),
        ("Le chat dort.", "fra_Latn"),
        ("De kat slaapt.", "nld_Latn"),
        ("El niño come pan.", "spa_Latn"),
        ("THE CAT SLEEPS IN THE HOUSE.", "eng_Latn"),
    ],
)
def test_short_sentences_in_a_language_of_the_space(text, code):
    assert detect(text, TINY) == code


@pytest.mark.parametrize(
    "text",
    [
        "Tom",
        "Taxi hotel radio",
        "OK! http://example.com 3.14",
        # Serbian in Latin script and Breton, neither of which SONAR has
        "Ovo je kratak tekst na srpskom jeziku, a pisan je latinicom.",
        "Ur c'hazh a gousk war ar gwele bras en ti.",
    ],
)
@pytest.mark.parametrize("within", [TINY, SONAR], ids=["tiny", "sonar"])
def test_an_uncertain_language_is_an_error(text, within):
    with pytest.raises(UsageError) as caught:
        detect(text, within)
    assert caught.value.exit_code == 2
    assert "is uncertain" in caught.value.message
    assert "--from" in caught.value.hint and "perhaps" in caught.value.hint


@pytest.mark.parametrize("text", ["", "   \n", "123 456 -- 7!", "🙂🙂"])
def test_no_words(text):
    with pytest.raises(UsageError, match="no words"):
        detect(text, SONAR)


def test_a_language_missing_from_the_space():
    with pytest.raises(NotFoundError) as caught:
        detect("猫は寝ています。", TINY, "tiny")
    assert caught.value.message == (
        "the text seems to be Japanese, but space tiny has no Japanese (jpn_Jpan)"
    )
    assert "--space sonar has Japanese" in caught.value.hint and "--from" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "script"),
    [
        *(("a b c д", "Latn"), ("Это ok", "Cyrl"), ("ଓଡ଼ିଆ", "Orya"), ("ᱥᱟᱱᱛᱟᱲᱤ", "Olck")),
        *(
            ("猫は寝ています", "Jpan"),
            ("カタカナ", "Jpan"),
            ("她说汉语", "Hans"),
            ("她說漢語", "Hant"),
        ),
        *(("中文里的一个の字很少见也没有关系", "Hans"), ("", ""), ("12", "")),
    ],
)
def test_script_of(text, script):
    assert script_of(text) == script


def test_only_the_start_of_a_long_text_is_examined():
    assert detect("This is a long text. " * 500_000, TINY) == "eng_Latn"


def test_libraries_are_imported_only_when_needed():
    code = "import sys; from lcm_cli.text import detect, languages, segment;"
    code += "languages.find_language('fr');"
    code += "print(*{'py3langid', 'numpy', 'torch', 'sentencex', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.slow
def test_the_unpacked_tables_give_the_same_numbers(cache):
    """They are kept in the cache folder; a damaged or unwritable copy is not used."""
    load = load_identifier.__wrapped__
    packed = load()
    (folder,) = (cache / "langid").iterdir()
    mapped = load()
    assert isinstance(mapped.tk_nextmove, memoryview)
    assert not isinstance(packed.tk_nextmove, memoryview)
    for text in ("The cat sleeps.", "", *(row["sentences"][0] for row in ROWS)):
        assert mapped.rank(text) == packed.rank(text)
    (folder / "tk_row.npy").write_bytes(b"damaged")
    assert load().rank("The cat sleeps.") == packed.rank("The cat sleeps.")
    assert isinstance(load().tk_nextmove, memoryview)  # repaired
    shutil.rmtree(cache)
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("not a folder")
    assert load().rank("The cat sleeps.") == packed.rank("The cat sleeps.")
