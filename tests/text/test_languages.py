"""The language table and its lookup."""

import gc
import importlib.util
import weakref
from contextlib import suppress
from pathlib import Path

import pytest

from lcm_cli.errors import NotFoundError
from lcm_cli.hub.cards import space_languages, spaces_with
from lcm_cli.text import languages
from lcm_cli.text.languages import SONAR, find_language, fold, language, search_languages

TINY = ("eng_Latn", "deu_Latn", "fra_Latn", "spa_Latn", "nld_Latn")


@pytest.mark.parametrize(
    "query",
    [
        *("fr", "fra", "fre", "fra_Latn", "fra-Latn", "French", "français", "fr-CA", "FR_ca"),
        *("FRANCAIS", " french ", "fr-Latn", "fr-Latn-CA", "fra_latn", "fr-CA-1990"),
    ],
)
def test_one_language_named_in_many_ways(query):
    assert find_language(query).code == "fra_Latn"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        # macrolanguages
        *(("zh", "zho_Hans"), ("ar", "arb_Arab"), ("sr", "srp_Cyrl"), ("no", "nob_Latn")),
        *(("fa", "pes_Arab"), ("sw", "swh_Latn"), ("ms", "zsm_Latn"), ("uz", "uzn_Latn")),
        *(("ps", "pbt_Arab"), ("or", "ory_Orya"), ("az", "azj_Latn"), ("lv", "lvs_Latn")),
        *(("mn", "khk_Cyrl"), ("ne", "npi_Deva"), ("et", "est_Latn"), ("yi", "ydd_Hebr")),
        *(("sq", "als_Latn"), ("mg", "plt_Latn"), ("om", "gaz_Latn"), ("qu", "quy_Latn")),
        # scripts and regions
        *(("zh-TW", "zho_Hant"), ("zh_CN", "zho_Hans"), ("zh-Hant", "zho_Hant")),
        *(("zh-Hant-HK", "zho_Hant"), ("pt-BR", "por_Latn"), ("es-419", "spa_Latn")),
        *(("fa-AF", "prs_Arab"), ("ko-Kore", "kor_Hang"), ("zh-yue", "yue_Hant")),
        *(("kas_Deva", "kas_Deva"), ("ks", "kas_Arab"), ("ace", "ace_Latn")),
        # names
        *(("Chinese", "zho_Hans"), ("Arabic", "arb_Arab"), ("Greek", "ell_Grek")),
        *(("Greek, Modern (1453-)", "ell_Grek"), ("Chinese (Traditional)", "zho_Hant")),
        *(("chinese_simplified", "zho_Hans"), ("日本語", "jpn_Jpan"), ("हिंदी", "hin_Deva")),
        *(("Māori", "mri_Latn"), ("maori", "mri_Latn"), ("Taizzi Adeni Arabic", "acq_Arab")),
        *(("norsk", "nob_Latn"), ("turkce", "tur_Latn"), ("Ελληνικα", "ell_Grek")),
        # retired codes, and those of FLORES+
        *(("iw", "heb_Hebr"), ("chi", "zho_Hans"), ("fil_Latn", "tgl_Latn")),
        *(("sat_Olck", "sat_Beng"), ("cmn_Hans", "zho_Hans"), ("apc_Arab_sout3123", "ajp_Arab")),
    ],
)
def test_the_usual_meaning(query, code):
    assert find_language(query).code == code


@pytest.mark.parametrize(
    ("query", "near"),
    [
        ("frx", "French (fra_Latn)"),
        ("fr,de", ""),  # not French as spoken in Germany
        ("Germn", "German (deu_Latn)"),
        ("sr-Latn", "Serbian (srp_Cyrl)"),
        ("arb_Latn", "Standard Arabic (arb_Arab)"),
        ("fra_Cyrl", "French (fra_Latn)"),
    ],
)
def test_an_unknown_language_suggests_the_closest(query, near):
    with pytest.raises(NotFoundError) as caught:
        find_language(query)
    assert caught.value.exit_code == 3
    assert repr(query) in caught.value.message
    assert near in caught.value.hint and "lcm languages" in caught.value.hint


@pytest.mark.parametrize(
    "query", ["", " ", "-", "???", "xx-YY", "a" * 1000, "fr_" * 50, "fr-Latn-Cyrl"]
)
def test_nonsense_is_unknown(query):
    with pytest.raises(NotFoundError):
        find_language(query)
    assert not query or not search_languages(query)


@pytest.mark.parametrize(
    ("query", "codes"),
    [
        ("Kurdish", ("ckb_Arab", "kmr_Latn")),
        ("Sotho", ("nso_Latn", "sot_Latn")),
        ("sh", ("bos_Latn", "hrv_Latn", "srp_Cyrl")),
    ],
)
def test_an_ambiguous_name_names_them_all(query, codes):
    with pytest.raises(NotFoundError) as caught:
        find_language(query)
    assert all(code in caught.value.message for code in codes)
    # ... unless the space has only one of them
    assert find_language(query, [codes[1], "eng_Latn"]).code == codes[1]


def test_a_language_missing_from_the_space():
    assert find_language("French", TINY).code == "fra_Latn"
    with pytest.raises(NotFoundError) as caught:
        find_language("ja", TINY, "tiny")
    assert caught.value.message == "space tiny has no Japanese (jpn_Jpan)"
    assert "Dutch (nld_Latn)" in caught.value.hint
    assert "--space sonar has Japanese" in caught.value.hint


def test_the_script_that_the_space_has_is_preferred():
    assert find_language("zh", ["zho_Hant", "eng_Latn"]).code == "zho_Hant"
    assert find_language("zh", ["zho_Hant", "zho_Hans"]).code == "zho_Hans"
    with pytest.raises(NotFoundError):
        find_language("zho_Hans", ["zho_Hant"])


def test_the_languages_are_those_of_sonar_in_its_order():
    sonar = importlib.util.find_spec("sonar")  # located without importing it, which takes seconds
    if sonar is None or not sonar.submodule_search_locations:
        pytest.skip("sonar-space is not installed")
    card = Path(sonar.submodule_search_locations[0], "cards", "text_sonar_basic_encoder.yaml")
    lines = map(str.strip, card.read_text("utf-8").splitlines())
    assert tuple(line[2:] for line in lines if line.startswith("- ")) == SONAR


def test_the_table_is_complete():
    assert len(SONAR) == len(set(SONAR)) == 202
    every = [language(code) for code in SONAR]
    assert all(one.name and one.autonym and one.script_name for one in every)
    assert all(len(one.iso639_1) in (0, 2) and len(one.iso639_3) == 3 for one in every)
    assert len({one.name for one in every}) == 202
    two_letters = [one.iso639_1 for one in every if one.iso639_1]
    assert len(two_letters) - len(set(two_letters)) == 3  # Chinese, Kashmiri, Kanuri


def test_every_name_leads_to_its_language():
    for one in map(language, SONAR):
        for name in filter(None, (one.code, one.name, one.iso639_3, one.iso639_1)):
            assert find_language(name).iso639_3 == one.iso639_3, name


def test_the_ambiguous_names():
    several = {
        key
        for key, codes in languages._index().items()
        if len({language(code).iso639_3 for code in codes}) > 1
    }
    assert several == {
        *("sh", "hbs", "serbo croatian", "kurdish", "gaelic", "sotho", "berber", "creole"),
        "levantine arabic",
    }


def test_fold():
    assert fold("Māori ") == "maori" and fold("Fɔngbè") == "fongbe"
    assert fold("İngilizce") == "ingilizce" and fold("zh_TW") == "zh tw"
    assert fold("मराठी") != fold("मराठ")  # vowel signs count as letters


class Query(str):
    """A text whose end can be seen."""


@pytest.mark.parametrize("look_up", [find_language, search_languages])
def test_queries_are_not_kept(look_up):
    """A server would otherwise fill its memory with them."""
    query = Query("no such language " * 10)
    alive = weakref.ref(query)
    with suppress(NotFoundError):
        look_up(query)
    del query
    gc.collect()
    assert alive() is None


def test_search():
    assert [one.code for one in search_languages("kurdish")] == ["ckb_Arab", "kmr_Latn"]
    assert search_languages("fr")[0].code == "fra_Latn"
    assert len(search_languages("")) == 202
    assert {one.script for one in search_languages("Devanagari")} == {"Deva"}
    assert search_languages("zh-TW")[0].code == "zho_Hant"


def test_spaces():
    assert set(TINY) <= set(space_languages()["tiny"])
    assert space_languages()["sonar"] == SONAR
    assert {"tiny", "sonar"} <= set(spaces_with("fra_Latn"))
    assert "tiny" not in spaces_with("ace_Arab")
