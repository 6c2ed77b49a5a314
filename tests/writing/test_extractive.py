"""Extractive selection: chosen sentences, their order, and unusual documents."""

import itertools

import numpy as np
import pytest

from lcm_cli.writing.extractive import opening_weights, rank_sentences, select


def _cosine_with_centroid(concepts: np.ndarray, chosen: list[int]) -> float:
    units = concepts / np.linalg.norm(concepts, axis=1, keepdims=True)
    total, centroid = units[chosen].sum(axis=0), units.sum(axis=0)
    return float(total @ centroid / np.linalg.norm(total) / np.linalg.norm(centroid))


def test_first_choice_is_the_most_central_and_each_next_the_best_addition() -> None:
    concepts = np.random.default_rng(1).normal(size=(12, 8)) + 0.5
    ranking = list(rank_sentences(concepts))
    assert sorted(ranking) == list(range(12))
    for count in range(1, 5):
        others = set(range(12)) - set(ranking[: count - 1])
        best = max(
            others, key=lambda i: _cosine_with_centroid(concepts, [*ranking[: count - 1], i])
        )
        assert ranking[count - 1] == best


def test_two_topics_are_both_covered() -> None:
    topics = np.repeat(np.eye(2, 16), [6, 5], axis=0)
    concepts = topics + 0.1 * np.random.default_rng(0).normal(size=topics.shape)
    assert {i >= 6 for i in select(concepts, 2)} == {False, True}


def test_comes_close_to_the_best_of_all_selections() -> None:
    concepts = np.random.default_rng(3).normal(size=(10, 6)) + 0.3
    every = itertools.combinations(range(10), 3)
    best = max(_cosine_with_centroid(concepts, list(chosen)) for chosen in every)
    assert _cosine_with_centroid(concepts, select(concepts, 3)) > 0.95 * best


def test_source_order_and_longer_contains_shorter() -> None:
    concepts = np.random.default_rng(2).normal(size=(20, 8))
    for count in range(20):
        chosen = select(concepts, count)
        assert chosen == sorted(chosen)
        assert len(chosen) == count
        assert set(chosen) < set(select(concepts, count + 1))


def test_length_of_concepts_does_not_count() -> None:
    concepts = np.random.default_rng(4).normal(size=(9, 5))
    scaled = concepts * np.linspace(0.1, 40, 9)[:, None]
    assert list(rank_sentences(concepts)) == list(rank_sentences(scaled))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_duplicates_come_last(dtype: type) -> None:
    rows = np.random.default_rng(5).normal(size=(4, 6)) + 1
    concepts = np.concatenate([rows[:1]] * 5 + [rows]).astype(dtype)
    ranking = list(rank_sentences(concepts))
    assert sum(i in (0, 1, 2, 3, 4, 5) for i in ranking[:4]) == 1
    assert ranking[4:] == sorted(ranking[4:])
    assert sorted(ranking) == list(range(9))


def test_sentences_without_direction_or_weight_come_last() -> None:
    concepts = np.random.default_rng(6).normal(size=(5, 4)) + 1
    concepts[1] = 0
    weights = [1, 1, 1, 0, 1]
    assert list(rank_sentences(concepts, weights))[3:] == [1, 3]


def test_weights_shift_the_centre() -> None:
    concepts = np.array([[1, 0.1], [1, 0], [0.9, 0.2], [0, 1]])
    assert select(concepts, 1) != [3]
    assert select(concepts, 1, [1, 1, 1, 50]) == [3]


@pytest.mark.parametrize(
    ("concepts", "count", "expected"),
    [
        (np.zeros((0, 4)), 3, []),
        (np.ones((1, 4)), 3, [0]),
        (np.ones((3, 4)), 0, []),
        (np.ones((3, 4)), 2, [0, 1]),
        (np.zeros((3, 4)), 2, [0, 1]),
        (np.array([[1.0, 0], [-1, 0]]), 5, [0, 1]),  # they cancel out: no centroid
        (np.array([[1.0, 0], [-1, 0]]), 1, [0]),
    ],
)
def test_small_and_odd_documents(concepts: np.ndarray, count: int, expected: list[int]) -> None:
    assert select(concepts, count) == expected


def test_deterministic_and_leaves_its_input_alone() -> None:
    concepts = np.random.default_rng(7).normal(size=(50, 8)).astype(np.float32)
    before = concepts.copy()
    assert select(concepts, 7) == select(concepts.copy(order="F"), 7)
    assert np.array_equal(concepts, before)


def test_the_opening_counts_more() -> None:
    weights = opening_weights(40)
    assert weights[0] == 4
    assert all(earlier > later for earlier, later in itertools.pairwise(weights))
    assert weights[20] < 1.05
    assert opening_weights(0).shape == (0,)
