"""Metrics against values computed by hand, and against the libraries that define them."""

import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from lcm_cli.evaluation import metrics
from lcm_cli.text.words import words

CAT = "The cat sat on the mat."


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Don't STOP, Zoë!", ["don", "t", "stop", "zoë"]),
        ("Straße", ["strasse"]),
        ("我喜欢猫。", ["我", "喜", "欢", "猫"]),
        ("猫cat2匹", ["猫", "cat2", "匹"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("กินข้าว", ["กิ", "น", "ข้", "า", "ว"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("... 😀 !", []),
    ],
)
def test_words_of_any_script(text, wanted):
    assert words(text) == wanted


@given(st.text())
def test_words_are_never_empty(text):
    assert all(word and not word.isspace() for word in words(text))


def test_rouge_by_hand():
    scores = metrics.rouge(["the cat sat"], ["the cat ran off"], "eng_Latn")
    # Two of the three words are among the four of the target; one of two bigrams among three.
    assert scores["rouge1"] == pytest.approx(100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert scores["rouge2"] == pytest.approx(100 * 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert scores["rougeL"] == scores["rouge1"]


def test_rouge_of_english_equals_rouge_score():
    prediction, target = ["A cat sat.", "It slept on mats."], ["The cat slept.", "A mat lay there."]
    ours = metrics.rouge(prediction, target, "eng_Latn")
    theirs = RougeScorer(metrics.ROUGE).score("\n".join(target), "\n".join(prediction))
    assert ours == {name: pytest.approx(100 * theirs[name].fmeasure) for name in metrics.ROUGE}


def test_rouge_counts_letters_that_the_english_tokenizer_drops():
    assert metrics.rouge(["Über Öl"], ["über öl"], "deu_Latn")["rougeL"] == 100
    assert metrics.rouge(["我喜欢狗"], ["我喜欢猫"], "zho_Hans")["rouge1"] == pytest.approx(75)
    # A text without words cannot be a reference; an empty prediction scores 0.
    assert math.isnan(metrics.rouge(["a"], ["..."], "deu_Latn")["rouge1"])
    assert math.isnan(metrics.rouge(["a"], ["我"], "eng_Latn")["rouge1"])
    assert set(metrics.rouge([], ["the cat"], "eng_Latn").values()) == {0}


def test_rouge_lsum_compares_sentences():
    swapped = metrics.rouge(
        ["the dog ran", "the cat sat"], ["the cat sat", "the dog ran"], "deu_Latn"
    )
    assert swapped["rougeLsum"] == 100 and swapped["rougeL"] < 100


def test_chrf_and_bleu_equal_sacrebleu():
    predictions, targets = ["The cat sat on a mat.", "Rain fell."], [CAT, "It rained all day."]
    assert metrics.chrf(predictions, targets) == sacrebleu.corpus_chrf(predictions, [targets]).score
    theirs = sacrebleu.corpus_bleu(predictions, [targets]).score
    assert metrics.bleu(predictions, targets, "eng_Latn") == theirs
    found = metrics.corpus_scores(predictions, targets, "eng_Latn", samples=50)
    assert found["bleu"][0] == theirs
    assert found["chrf"][1] <= found["chrf"][0] <= found["chrf"][2]
    assert metrics.corpus_scores(predictions, targets, "eng_Latn", samples=50) == found
    assert metrics.sentence_chrf(CAT, CAT) == 100
    assert math.isnan(metrics.sentence_chrf(CAT, "")) and math.isnan(metrics.chrf([], []))


def test_bleu_is_tokenized_by_script_and_its_signature_says_so():
    same = "我喜欢红色的猫"
    assert metrics.bleu([same], [same], "zho_Hans") == pytest.approx(100)
    assert "tok:zh" in metrics.signatures("zho_Hans")["bleu"]
    assert "tok:char" in metrics.signatures("jpn_Jpan")["bleu"]
    assert "tok:13a" in metrics.signatures("fra_Latn")["bleu"]
    assert (
        "chrF2" in metrics.signatures("fra_Latn")["chrf"]
        or "nc:6" in metrics.signatures("fra_Latn")["chrf"]
    )


def test_overlap_counts_distinct_trigrams_of_the_source():
    # the cat sat, cat sat on, sat on the, on the mat: the prediction has the first two.
    assert metrics.overlap("The cat sat on it", CAT) == 2 / 4
    assert metrics.overlap("", CAT) == 0
    assert math.isnan(metrics.overlap(CAT, "Two words"))


def test_repetition_is_the_share_of_fourgrams_seen_before():
    # a b c d a b c d: five fourgrams, the last equals the first.
    assert metrics.repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert metrics.repetition(CAT) == 0
    assert math.isnan(metrics.repetition("too short"))


def test_overlap_and_repetition_of_the_official_code_count_characters():
    # aba has a b a ab ba aba, five of them distinct; abc has a b c ab bc abc.
    assert metrics.repetition_lcm("aba") == pytest.approx(6 / 5 - 1)
    assert metrics.overlap_lcm("aba", "abc") == pytest.approx(3 / 6)
    assert metrics.overlap_lcm("", "abc") == 0 and metrics.repetition_lcm("") == -1
    assert metrics.repetition_lcm(20 * "ab") > 1


def test_word_ratio():
    assert metrics.word_ratio("One two", "One two three four") == 0.5
    assert metrics.word_ratio("", CAT) == 0
    assert math.isnan(metrics.word_ratio(CAT, "..."))


def test_language_match():
    within = ["eng_Latn", "deu_Latn", "fra_Latn"]
    german = "Der kleine Hund läuft durch den großen Wald nach Hause."
    assert metrics.language_match(german, "deu_Latn", within) == 1
    assert metrics.language_match(german, "fra_Latn", within) == 0
    assert metrics.language_match("...", "deu_Latn", within) == 0


def test_source_coverage_is_the_largest_cosine_of_each_source_sentence():
    source = np.array([[1.0, 0], [0, 2], [1, 1]])
    assert metrics.source_coverage(source, source) == pytest.approx(1)
    only = metrics.source_coverage(np.array([[3.0, 0]]), source)
    assert only == pytest.approx((1 + 0 + math.sqrt(0.5)) / 3)
    assert metrics.source_coverage(np.zeros((0, 2)), source) == 0
    assert math.isnan(metrics.source_coverage(source, np.zeros((0, 2))))


def test_citation_precision_is_the_share_of_citations_of_the_nearest_sentence():
    source = np.array([[1.0, 0], [0, 2], [2, 0]])
    said = np.array([[5.0, 0.1], [1, 0.9]])
    # Sentences 0 and 2 of the source have the same direction, so either may be cited.
    assert metrics.citation_precision(said, source, [0, 0]) == 1
    assert metrics.citation_precision(said, source, [2, 1]) == 0.5
    assert math.isnan(metrics.citation_precision(np.zeros((0, 2)), source, []))


def test_local_coherence_compares_sentences_two_apart():
    concepts = np.array([[1.0, 0], [9, 9], [1, 0], [0, 1]])
    assert metrics.local_coherence(concepts) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert math.isnan(metrics.local_coherence(concepts[:2]))
