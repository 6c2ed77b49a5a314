"""The metrics of the paper, against values computed by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from rounding import additions, assert_near
from torch import Tensor

from lcm_cli.errors import UsageError
from lcm_cli.evaluation.next_concept import (
    mutual_information,
    next_concept_metrics,
    score_predictions,
)
from lcm_cli.models.checkpoint import build
from lcm_cli.models.config import preset
from lcm_cli.models.interface import WOVEN, Batch


def rows(*vectors: Sequence[float]) -> Tensor:
    return torch.tensor(vectors, dtype=torch.float32)


# Two documents: x0 x1 x2 along the axes and their diagonal, y0 y1.
FIRST, SECOND = rows((1, 0), (0, 2), (1, 1)), rows((3, 0), (3, 4))
BATCH = Batch.of([FIRST, SECOND])
# Predictions of x1, x2 and of y1 (the last row of the second document is padding).
PREDICTED = torch.stack([rows((0, 1), (2, 0)), rows((3, 0), (9, 9))])


def test_l2_is_the_distance_to_the_truth():
    scores = score_predictions(PREDICTED, BATCH)
    assert scores.l2.tolist() == pytest.approx([1, math.sqrt(2), 4])
    assert scores.means()["l2"] == pytest.approx((5 + math.sqrt(2)) / 3)
    assert scores.means()["targets"] == 3
    assert "l2_r" not in scores.means()


def test_par_compares_the_best_cosines_to_what_came_before():
    scores = score_predictions(PREDICTED, BATCH)
    # x1 is orthogonal to x0: no ratio. x2: cos(prediction, x0) = 1 over cos(x2, x0) = cos 45.
    assert scores.par[0].isnan()
    # y1: cos(prediction, y0) = 1 over cos(y1, y0) = 3 / 5.
    assert scores.par[1:].tolist() == pytest.approx([math.sqrt(2), 5 / 3])
    assert scores.means()["par"] == pytest.approx((math.sqrt(2) + 5 / 3) / 2)


def test_ca_counts_the_others_that_lie_farther_without_the_neighbours():
    scores = score_predictions(PREDICTED, BATCH)
    # x1 at distance 1: x0 and x2 are neighbours; y0 at sqrt(10) and y1 at sqrt(18) are farther.
    # x2 at sqrt(2): x0 at 1 is nearer, x1 a neighbour, y0 at 1 nearer, y1 at sqrt(17) farther.
    # y1 at 4: y0 is a neighbour; x0 at 2, x1 at sqrt(13) and x2 at sqrt(5) are nearer.
    assert scores.ca.tolist() == pytest.approx([1, 1 / 3, 0])


def test_ca_all_includes_the_neighbours():
    scores = score_predictions(PREDICTED, BATCH)
    # x1 at distance 1: compared with x0 at sqrt(2), farther, and x2 at 1, not farther, as well.
    # x2 at sqrt(2): x1 at sqrt(8) is farther. y1 at 4: y0 at 0 is nearer.
    assert scores.ca_all.tolist() == pytest.approx([3 / 4, 2 / 4, 0])


def test_mutual_information_weights_sentences_by_their_tokens():
    # Gains of 2 and 1 nats over 4 and 2 tokens.
    assert mutual_information([-6, -3], [-8, -4], [4, 2]) == pytest.approx(3 / 6)
    assert math.isnan(mutual_information([], [], []))


def test_one_document_of_two_sentences_has_no_ca():
    scores = score_predictions(PREDICTED[:1, :1], Batch.of([FIRST[:2]]))
    assert scores.ca.isnan().all() and "ca" not in scores.means()


def test_l2_r_is_the_distance_after_reconstruction():
    doubled = score_predictions(PREDICTED, BATCH, lambda x: 2 * x)
    assert doubled.l2_r.tolist() == pytest.approx([0, math.sqrt(10), 5])


def test_sources_are_not_scored():
    batch = Batch.of([FIRST, SECOND], sources=[2, 1])
    scores = score_predictions(PREDICTED, batch)
    whole = score_predictions(PREDICTED, BATCH)
    assert scores.l2.tolist() == whole.l2[1:].tolist()
    assert scores.ca.tolist() == whole.ca[1:].tolist()


@pytest.mark.parametrize(("architecture", "lengths"), [("base", (4, 2, 5)), ("two_tower", (4, 4))])
def test_the_scores_of_a_document_do_not_depend_on_its_batch(architecture, lengths):
    torch.manual_seed(0)
    model = build(preset(architecture, "nano", concept_dim=8))
    documents = [torch.randn(count, 8) for count in lengths]
    together = next_concept_metrics(model, [Batch.of(documents)])
    alone = next_concept_metrics(model, [Batch.of([document]) for document in documents])
    assert model.training  # as before
    assert_near(together.l2, alone.l2, additions(model))
    assert_near(together.par, alone.par, additions(model))
    again = next_concept_metrics(model, [Batch.of(documents)])
    assert again.means() == together.means()


def test_nothing_to_predict_is_an_error():
    model = build(preset("base", "nano", concept_dim=8))
    with pytest.raises(UsageError, match="no concept"):
        next_concept_metrics(model, [Batch.of([torch.randn(1, 8)])])


def test_padding_does_not_count():
    padded = Batch(torch.nn.functional.pad(BATCH.concepts_BSD, (0, 0, 0, 2)), BATCH.lengths_B)
    predicted = torch.nn.functional.pad(PREDICTED, (0, 0, 0, 2), value=7.0)
    plain, wide = score_predictions(PREDICTED, BATCH), score_predictions(predicted, padded)
    for name in ("l2", "ca"):
        assert torch.equal(getattr(plain, name), getattr(wide, name))


def test_breaks_and_plans_do_not_affect_the_scores():
    """The scores are those of the sentences alone, as of a model without breaks."""
    odd = rows((50, 50))
    woven = Batch.of([torch.cat([odd, FIRST[:2], odd, odd, FIRST[2:]]), SECOND])
    marks = torch.tensor([[1, 0, 0, 1, 1, 0], [0] * 6], dtype=torch.bool)
    woven = replace(woven, columns={WOVEN: marks})
    guesses = torch.full((2, 5, 2), 70.0)
    guesses[0, [1, 4]], guesses[1, 0] = PREDICTED[0], PREDICTED[1, 0]
    found, expected = score_predictions(guesses, woven), score_predictions(PREDICTED, BATCH)
    for name in ("l2", "par", "ca", "ca_all"):
        assert torch.equal(getattr(found, name).nan_to_num(), getattr(expected, name).nan_to_num())
