"""Exact search, compared with the full matrix product."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcm_cli.errors import IntegrityError
from lcm_cli.search import exact
from lcm_cli.search.exact import Nearest, rescored
from lcm_cli.space.similarity import unit_length


def full_product(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and positions of the `k` nearest, equal ones by position."""
    unit = unit_length(queries.astype(np.float64))
    scores = (unit[:, None] * vectors.astype(np.float64)[None]).sum(axis=2)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 200),
    block=st.integers(1, 220),
    queries=st.integers(1, 5),
    k=st.integers(1, 12),
    width=st.sampled_from((3, 16, 33)),
    halves=st.booleans(),
    step=st.sampled_from((8, 64, 65_536)),
    seed=st.integers(0, 1000),
)
def test_equals_the_full_product(
    count: int,
    block: int,
    queries: int,
    k: int,
    width: int,
    halves: bool,
    step: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit_length(rng.standard_normal((count, width)).astype(np.float32))
    vectors[rng.integers(count, size=count // 3)] = vectors[0]  # ties
    vectors = vectors.astype(np.float16 if halves else np.float32)
    asked = rng.standard_normal((queries, width)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "STEP", step)
        patch.setattr(exact, "_GROUP", 2)
        nearest = Nearest(asked, k)
        for start in range(0, count, block):
            nearest.add(vectors[start : start + block])
    scores, positions = nearest.found()
    true_scores, true_positions = full_product(asked, vectors, k)
    found = min(k, count)
    assert nearest.count == count
    assert (positions[:, :found] == true_positions).all()
    assert np.array_equal(scores[:, :found], true_scores)
    assert (positions[:, found:] == -1).all() and (scores[:, found:] == -np.inf).all()


def test_scores_are_cosines_whatever_the_length_of_a_query() -> None:
    vectors = np.eye(4, dtype=np.float16)
    for length in (1e-3, 1.0, 1e4):
        nearest = Nearest(np.array([[length, length, 0, 0]], dtype=np.float32), 2)
        nearest.add(vectors)
        scores, positions = nearest.found()
        assert scores[0] == pytest.approx([0.5**0.5] * 2)
        assert positions.tolist() == [[0, 1]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("queries", [1, 5])
def test_values_that_are_not_finite_are_refused(value: float, queries: int) -> None:
    vectors = unit_length(np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32))
    vectors[17, 3] = value
    nearest = Nearest(np.ones((queries, 8), dtype=np.float32), 3)
    nearest.add(vectors[:10])
    with pytest.raises(IntegrityError, match="NaN or infinity in the 40 vectors from number 10"):
        nearest.add(vectors[10:].astype(np.float16))


def test_rescoring_orders_candidates() -> None:
    vectors = unit_length(np.random.default_rng(1).standard_normal((30, 8)).astype(np.float32))
    asked = vectors[[4, 9]] + 0.1
    places = np.array([9, 4, 20, 7])
    candidates = iter([(vectors[places], places)] * 2)
    for row, (scores, positions) in enumerate(rescored(asked, candidates, 3)):
        true_scores, order = full_product(asked[row : row + 1], vectors[np.sort(places)], 3)
        assert positions.tolist() == np.sort(places)[order[0]].tolist()
        assert scores == pytest.approx(true_scores[0])
