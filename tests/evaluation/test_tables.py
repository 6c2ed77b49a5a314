"""Tables from records, against means computed by hand."""

import pytest

from lcm_cli.evaluation import tables
from lcm_cli.evaluation.resume import Work


def record(system, row, scores, lang="eng_Latn", to="", **more):
    base = {"task": "summarize", "system": system, "row": row, "lang": lang, "to": to or lang}
    return base | {"prediction": ["The cat."], "target": []} | more | {"scores": scores}


RECORDS = [
    record("a", 1, {"rougeL": 10}),
    record("a", 2, {"rougeL": 20}),
    record("a", 3, {"rougeL": 60, "ovl3": 1}, lang="deu_Latn"),
    record("b", 1, {"rougeL": 5}),
    record("b", 3, {}, lang="deu_Latn"),
]


def value(found, **wanted):
    (one,) = [r for r in found if wanted.items() <= r.items()]
    return one


def test_means_by_language_and_over_all_texts():
    found = tables.results(RECORDS)
    english = value(found, system="a", lang="eng_Latn", metric="rougeL")
    assert english["value"] == 15 and english["count"] == 2
    assert 10 <= english["low"] <= 15 <= english["high"] <= 20
    assert value(found, system="a", lang="all", metric="rougeL")["value"] == 30
    only = value(found, system="a", lang="deu_Latn", metric="ovl3")
    assert (only["value"], only["low"], only["count"]) == (1, None, 1)


def test_chrf_and_bleu_are_computed_over_a_corpus():
    same = {"target": ["The cat."]}
    records = [record("a", n, {"chrf": 100}, **same) for n in (1, 2)]
    records.append(record("a", 3, {"chrf": 0}, lang="deu_Latn", target=["xyz"]))
    found = tables.results(records)
    assert value(found, lang="eng_Latn", metric="chrf")["value"] == pytest.approx(100)
    assert value(found, lang="deu_Latn", metric="chrf")["value"] < 1
    # The mean over the languages, not over the texts.
    assert value(found, lang="all", metric="chrf")["value"] == pytest.approx(50, abs=0.5)


def test_systems_are_compared_on_texts_with_both_scores():
    records = [record(s, n, {"rougeL": n + (s == "a")}) for s in "ab" for n in range(6)]
    records += [record("a", 9, {"rougeL": 99})]
    (test,) = tables.tests(records)
    assert (test["left"], test["right"], test["count"]) == ("a", "b", 6)
    assert test["difference"] == 1 and test["p"] == 2 / 2**6 == test["p_holm"]


def test_published_numbers_have_their_source():
    cards = tables.published(["summarize"])
    assert "2412.08821" in cards["source"] and cards["note"].startswith("published")
    (card,) = [
        c for c in cards["rows"] if (c["system"], c["data"]) == ("Two-Tower-7B-IT", "CNN/DailyMail")
    ]
    assert card["values"]["rougeL"] == 36.47 and card["table"] == "Table 10"
    known = {measure.name for measure in tables.MEASURES}
    every = tables.published(["next-concept", "roundtrip", "summarize", "expand", "translate"])
    assert all(set(card["values"]) <= known for card in every["rows"])
    assert {card["task"] for card in cards["rows"]} == {"summarize"}


def test_the_printed_table_marks_published_numbers():
    found = tables.results(RECORDS)
    ((title, columns, rows),) = tables.printed(found, tables.published(["summarize"]))
    assert "published, under other test conditions" in title
    assert columns[:3] == ["system", "language", "texts"] and "R-L" in columns
    assert rows[0][0] == "a" and rows[-1][0].endswith("*")


def test_results_are_stored_by_content_and_survive_a_torn_line(tmp_path):
    path = tmp_path / "work"
    first = Work(path)
    assert first.remember(["a", 1], lambda: {"x": [1.5]}) == {"x": [1.5]}
    first.remember("b", lambda: 2)
    with path.open("a") as file:
        file.write('["cafe", {"torn')
    again = Work(path)
    assert again.resumed == 2
    assert again.remember(["a", 1], lambda: pytest.fail("computed again")) == {"x": [1.5]}
    again.remember("c", lambda: 3)
    assert Work(path).resumed == 3
