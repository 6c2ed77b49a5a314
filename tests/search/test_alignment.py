"""Alignment of two versions of a document."""

import itertools

import numpy as np
import pytest

from lcm_cli.search import alignment
from lcm_cli.search.alignment import Link, Side, align
from lcm_cli.space.similarity import unit_length


def version(concepts: np.ndarray, seed: int, noise: float = 0.4) -> np.ndarray:
    return concepts + noise * np.random.default_rng(seed).standard_normal(concepts.shape)


def sentences(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 48))


def spans(links: list[Link]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(tuple(range(e.x, e.x + e.x_count)), tuple(range(e.y, e.y + e.y_count))) for e in links]


def test_one_to_one() -> None:
    x = sentences(20)
    links = align(Side.of(x), Side.of(version(x, 1)))
    assert spans(links) == [((i,), (i,)) for i in range(20)]
    assert all(0.7 < link.score <= 1 for link in links)


def test_sentences_left_out_on_both_sides() -> None:
    x = sentences(20)
    kept_x, kept_y = [i for i in range(20) if i != 5], [i for i in range(20) if i not in (9, 10)]
    links = align(Side.of(x[kept_x]), Side.of(version(x, 1)[kept_y]))
    assert [(link.x, link.y) for link in links if not link.x_count] == [(5, 5)]
    assert [(link.x, link.y) for link in links if not link.y_count] == [(8, 9), (9, 9)]
    assert all(link.score == 0 for link in links if not link.x_count * link.y_count)
    assert sum(link.x_count for link in links) == 19
    assert sum(link.y_count for link in links) == 18


def test_two_sentences_in_one() -> None:
    x = unit_length(sentences(12))
    y = np.concatenate([x[:4], x[4:5] + x[5:6], x[6:]])
    assert spans(align(Side.of(x), Side.of(version(y, 1, 0.02))))[4] == ((4, 5), (4,))
    assert spans(align(Side.of(version(y, 1, 0.02)), Side.of(x)))[4] == ((4,), (4, 5))


def test_nothing_in_common() -> None:
    links = align(Side.of(sentences(5)), Side.of(sentences(3, seed=9)), skip=0.2)
    assert sorted(spans(links)) == sorted(
        [((i,), ()) for i in range(5)] + [((), (j,)) for j in range(3)]
    )


@pytest.mark.parametrize(("x_count", "y_count"), [(1, 1), (1, 4), (3, 1), (2, 2)])
def test_short_documents(x_count: int, y_count: int) -> None:
    links = align(Side.of(sentences(x_count)), Side.of(sentences(y_count)))
    assert sum(link.x_count for link in links) == x_count
    assert sum(link.y_count for link in links) == y_count
    assert (links[0].x_count, links[0].y_count) == (1, 1)


def test_the_cheapest_of_all_alignments_is_found() -> None:
    """Compare with the cost of every alignment of small documents."""
    x, y = Side.of(sentences(4)), Side.of(version(sentences(4), 2, 0.8)[[0, 2, 3]])

    def cost(i: int, a: int, j: int, b: int) -> float:
        if not a * b:
            return alignment.SKIP
        left, right = (x.single, x.joined)[a - 1][i], (y.single, y.joined)[b - 1][j]
        far = (1 - (y.single @ left).mean() + 1 - (x.single @ right).mean()) / 2
        return float((1 - left @ right) * a * b / far)

    def cheapest(i: int, j: int) -> float:
        if (i, j) == (4, 3):
            return 0.0
        moves = [(a, b) for a, b in alignment._MOVES if i + a <= 4 and j + b <= 3]
        return min(cost(i, a, j, b) + cheapest(i + a, j + b) for a, b in moves)

    links = align(x, y)
    total = sum(cost(link.x, link.x_count, link.y, link.y_count) for link in links)
    assert total == pytest.approx(cheapest(0, 0))


def test_the_band_of_long_documents_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    x = sentences(400)
    keep = [rng.random(400) > 0.1 for _ in range(2)]
    sides = Side.of(x[keep[0]]), Side.of(version(x, 1)[keep[1]])
    whole = align(*sides)
    monkeypatch.setattr(alignment, "_SMALL", 40)
    cells = itertools.count()
    cheapest = alignment._cheapest

    def counting(*args: object) -> object:
        low, high = args[-2:]
        for _ in range(int((high - low + 1).sum())):  # type: ignore[operator]
            next(cells)
        return cheapest(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(alignment, "_cheapest", counting)
    assert align(*sides) == whole
    assert next(cells) < 0.5 * len(sides[0].single) * len(sides[1].single)
