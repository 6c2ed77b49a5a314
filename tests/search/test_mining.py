"""Mining by margin."""

import numpy as np
import pytest

from lcm_cli.evaluation.space_quality import xsim
from lcm_cli.search import exact, mining
from lcm_cli.search.margin import ratio_margin
from lcm_cli.search.mining import Pair, mine
from lcm_cli.space.similarity import unit_length

Piles = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def piles() -> Piles:
    """60 translations among 40 and 30 sentences without one; the second pile is reversed."""
    rng = np.random.default_rng(3)
    shared = rng.standard_normal((60, 32))
    x = np.concatenate([shared, rng.standard_normal((40, 32))])
    y = np.concatenate(
        [shared + 0.3 * rng.standard_normal((60, 32)), rng.standard_normal((30, 32))]
    )
    return x.astype(np.float32), y[::-1].astype(np.float32)


def test_the_translations_are_found(piles: Piles) -> None:
    pairs = mine(*piles, threshold=1.5)
    assert {(pair.x, pair.y) for pair in pairs} == {(i, 89 - i) for i in range(60)}
    scores = [pair.score for pair in pairs]
    assert scores == sorted(scores, reverse=True) and scores[-1] >= 1.5


def test_scores_are_the_margins_of_the_full_matrix(piles: Piles) -> None:
    x, y = (unit_length(pile.astype(np.float64)) for pile in piles)
    cosines = x @ y.T
    near_x = np.sort(cosines, axis=1)[:, -4:].mean(axis=1)
    near_y = np.sort(cosines, axis=0)[-4:].mean(axis=0)
    margins = cosines / ((near_x[:, None] + near_y[None]) / 2)
    for pair in mine(*piles, threshold=0):
        assert pair.score == pytest.approx(margins[pair.x, pair.y], rel=1e-5)


def test_no_sentence_is_paired_twice(piles: Piles) -> None:
    pairs = mine(*piles, threshold=0)
    assert len({pair.x for pair in pairs}) == len({pair.y for pair in pairs}) == len(pairs)
    assert len(pairs) > 60  # without a threshold, wrong ones as well


def test_the_blocks_do_not_matter(piles: Piles, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mine(*piles, threshold=0)
    monkeypatch.setattr(exact, "STEP", 16)
    monkeypatch.setattr(mining, "STEP", 7)
    seen: list[int] = []
    assert mine(*piles, threshold=0, progress=seen.append) == whole
    assert sum(seen) == len(piles[0]) + len(piles[1]) and len(seen) > 20


def test_equal_sentences_count_once(piles: Piles) -> None:
    x, y = piles
    repeated = np.concatenate([x, x[:5], x[:5]])
    assert mine(repeated, y) == mine(x, y)


def test_piles_of_one_sentence() -> None:
    one = np.ones((1, 8), dtype=np.float32)
    assert mine(one, one, threshold=0.9) == [Pair(pytest.approx(1.0), 0, 0)]
    assert mine(one, -one, threshold=0.9) == []


def test_an_empty_pile(piles: Piles) -> None:
    assert mine(piles[0], piles[1][:0]) == mine(piles[0][:0], piles[1]) == []


def test_the_margin_without_similar_neighbours_is_0() -> None:
    margins = ratio_margin(np.array([0.5, -0.1, 0.3]), np.array([0.4, -0.1, 0.0]), np.zeros(3))
    assert margins.tolist() == [2.5, 0, 0]


def test_xsim_has_the_same_margin(piles: Piles) -> None:
    x, y = piles[0][:60], piles[1][::-1][:60]
    found = mine(x, y, threshold=0)
    assert xsim(x, y) == 100
    assert {(pair.x, pair.y) for pair in found} == {(i, i) for i in range(60)}
