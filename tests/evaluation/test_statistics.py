"""Intervals and tests against values computed by hand."""

import math

import numpy as np
import pytest

from lcm_cli.evaluation.statistics import holm, interval, paired


def test_the_interval_matches_the_standard_error_of_the_mean():
    values = np.random.default_rng(0).normal(10, 2, size=400)
    found = interval(values.tolist())
    error = 1.96 * values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean()) and found.count == 400
    assert found.low == pytest.approx(found.mean - error, abs=0.03)
    assert found.high == pytest.approx(found.mean + error, abs=0.03)
    assert interval(values.tolist()) == found
    assert interval(values.tolist(), seed=1) != found


def test_intervals_of_equal_single_and_missing_values():
    assert interval([3, 3, math.nan, 3]) == interval([3, 3, 3])
    assert interval([3, 3, 3]).low == interval([3, 3, 3]).high == 3
    assert interval([3]).mean == 3 and math.isnan(interval([3]).low)
    assert math.isnan(interval([math.nan]).mean) and interval([]).count == 0


def test_all_exchanges_of_few_pairs_are_tried():
    # Differences 1 2 3: of the 8 sign patterns only +++ and --- reach a sum of 6.
    assert paired([2, 4, 6], [1, 2, 3]) == 2 / 8
    # Differences 1 -1: every pattern reaches 0.
    assert paired([2, 1], [1, 2]) == 1
    assert math.isnan(paired([1, math.nan], [math.nan, 1]))


def test_many_pairs_are_sampled():
    rng = np.random.default_rng(0)
    right = rng.normal(size=100)
    assert paired(right + 1, right) < 0.001
    same = paired(right, right + rng.normal(scale=1e-3, size=100))
    assert 0.01 < same <= 1
    # The sign of the difference does not matter.
    other = rng.normal(size=100)
    assert paired(right, other) == paired(other, right)


def test_holm():
    # 0.01 * 3, then max(0.03, 0.02 * 2), then max(0.04, 0.04 * 1).
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1, 1]
    found = holm([math.nan, 0.03])
    assert math.isnan(found[0]) and found[1] == 0.03
