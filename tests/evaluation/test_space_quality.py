"""The scores of a space, against values computed by hand."""

import numpy as np
import pytest

from lcm_cli.evaluation.space_quality import chrf, evaluate_space, xsim
from lcm_cli.space import load_space


def test_xsim_counts_nearest_counterparts_both_ways():
    a = np.eye(6, dtype=np.float32)
    assert xsim(a, a) == 100
    swapped = a[[1, 0, 2, 3, 4, 5]]
    assert xsim(a, swapped) == pytest.approx(100 * 4 / 6)
    assert xsim(a, np.roll(a, 1, axis=0)) == 0


def test_chrf_of_equal_and_of_foreign_text():
    assert chrf(["The cat sleeps."], ["The cat sleeps."]) == 100
    assert chrf(["xyz"], ["The cat sleeps."]) == 0


@pytest.mark.slow
def test_noise_lowers_the_score_and_the_same_seed_repeats_it():
    space = load_space("tiny", device="cpu")
    lines = [
        {"eng_Latn": "The cat sleeps.", "deu_Latn": "Die Katze schläft."},
        {"eng_Latn": "Tom is at home today.", "deu_Latn": "Tom ist heute zu Hause."},
        {"eng_Latn": "I do not know what to do.", "deu_Latn": "Ich weiß nicht, was ich tun soll."},
        {"eng_Latn": "Where is the river?"},
    ]
    calm = evaluate_space(space, lines, noise=0.0)
    loud = evaluate_space(space, lines, noise=3.0)
    assert calm.noisy == calm.autoencoding and set(calm.translation) == {
        "eng_Latn-deu_Latn",
        "deu_Latn-eng_Latn",
    }
    assert loud.means()["noisy"] < calm.means()["noisy"]
    assert loud == evaluate_space(space, lines, noise=3.0)
