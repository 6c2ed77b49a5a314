"""Metrics of next-concept prediction, given the true concepts before (paper 2.4.1).

    l2    |x^_n - x_n|, Euclidean distance, from 0
    l2-r  |encode(decode(x^_n)) - x_n|, from 0
    PAR   max_{m<n} cos(x^_n, x_m) / max_{m<n} cos(x_n, x_m), paraphrasing
    CA    contrastive accuracy, from 0 to 1: the share of the other true concepts of the batch that
          lie farther (l2) from x^_n than x_n does, without the neighbours x_(n-1) and x_(n+1);
          ca_all includes the neighbours
    MI    (log p(s^_n | s_(n-10) ... s_(n-1)) - log p(s^_n)) / |s^_n|, in nats per token, of the
          decoded sentences s^ under a language model, averaged with token counts as weights

PAR above 1 means that the model repeats what it has read, below 1 that it strays from it.

Breaks and plans of planning models, and the text that opens prompts of a SONAR-LLM, are context
only: they are neither targets nor among the concepts that PAR and CA compare with, so the scores of
different models cover the same sentences.

Shapes: B documents, S concepts of a document, D concept dim, N targets, P concepts of the batch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lcm_cli.errors import UsageError
from lcm_cli.models.interface import Batch, ConceptModel, Noise

# The least denominator of PAR. Sentences unlike any before them (most often second ones) have
# ratios that would dominate the paper's mean.
LEAST_COSINE = 0.05
CONTEXT = 10  # sentences of context for MI (paper 2.4.1)
CHUNK = 1 << 22  # distances computed at a time, to bound memory

# Decodes concepts (N, D) to text and encodes the text again, (N, D).
Reconstruct = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NextConcept:
    """The scores of each target, (N,); NaN where undefined."""

    l2: Tensor
    par: Tensor
    ca: Tensor
    l2_r: Tensor
    ca_all: Tensor

    def means(self) -> dict[str, float]:
        """Return the mean of each score over the targets that have it, and the number of targets.

        A score that no target has is left out.
        """
        scores = {part.name: getattr(self, part.name) for part in fields(self)}
        defined = {name: score[~score.isnan()] for name, score in scores.items()}
        # In double precision: a float32 sum over many targets loses digits.
        means = {
            name: float(score.double().mean()) for name, score in defined.items() if len(score)
        }
        return means | {"targets": len(self.l2)}


def next_concept_metrics(
    model: ConceptModel,
    batches: Iterable[Batch],
    *,
    options: Any = None,
    seed: int = 0,
    reconstruct: Reconstruct | None = None,
) -> NextConcept:
    """Predict every concept of `batches` from the true ones before it, and score the predictions.

    `options` are the model's, by default its own. Each document draws its noise from its own
    generator, seeded with `seed` plus its position, so that its batch does not affect it. l2-r
    needs `reconstruct` and is NaN without it. Raises UsageError if there is nothing to predict.
    """
    options = model.options() if options is None else options
    training, first, parts = model.training, 0, []
    model.eval()
    try:
        for batch in batches:
            rows = len(batch.lengths_B)
            noise = Noise(range(seed + first, seed + first + rows), model.device)
            predicted_BSD = model.predict(batch.to(model.device), options, noise)
            parts.append(score_predictions(predicted_BSD, batch, reconstruct))
            first += rows
    finally:
        model.train(training)
    if not sum(len(part.l2) for part in parts):
        raise UsageError("no concept to predict", "documents of two sentences or more are needed")
    return NextConcept(
        *(torch.cat([getattr(part, name.name) for part in parts]) for name in fields(NextConcept))
    )


def score_predictions(
    predicted_BSD: Tensor, batch: Batch, reconstruct: Reconstruct | None = None
) -> NextConcept:
    """Score predictions of concepts 1 .. S - 1, (B, S - 1, D), in the scale that `predict` returns.

    In documents with a source, only the concepts after it are targets. CA compares with the true
    concepts of all documents of the batch, sources included. Breaks and plans are left out.
    """
    predicted_BSD, batch = of_sentences(predicted_BSD, batch)
    concepts_BSD = batch.concepts_BSD.to(predicted_BSD.device).float()
    target_BS = scored(batch)
    document_N, place_N = target_BS.to(predicted_BSD.device).nonzero(as_tuple=True)
    # Predictions begin with concept 1, so that of concept n is at n - 1.
    predicted_ND = predicted_BSD[document_N, place_N - 1].float()
    true_ND = concepts_BSD[document_N, place_N]
    real_BS = batch.positions() < batch.lengths_B[:, None]
    places = concepts_BSD, real_BS.to(predicted_BSD.device), document_N, place_N
    ca_N = contrastive_accuracy(predicted_ND, *places)
    ca_all_N = contrastive_accuracy(predicted_ND, *places, neighbours=True)
    par_N = paraphrase_ratio(predicted_ND, concepts_BSD, document_N, place_N)
    l2_r_N = torch.full_like(ca_N, torch.nan)
    if reconstruct is not None and len(true_ND):
        l2_r_N = distance(reconstruct(predicted_ND).to(true_ND.device), true_ND)
    scores = distance(predicted_ND, true_ND), par_N, ca_N, l2_r_N, ca_all_N
    return NextConcept(*(score.cpu() for score in scores))


def scored(batch: Batch) -> Tensor:
    """Return a mask of the targets in a batch without breaks and plans, (B, S)."""
    target_BS = batch.learned(first=1)
    target_BS[:, 0] = False  # nothing comes before the first concept
    return target_BS


def of_sentences(predicted_BSD: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    """Return predictions of concepts 1 .. S - 1, and the batch, without breaks and plans.

    The prediction of a document's first sentence is dropped as well, although a model that reads
    something before it makes one: other models have none.
    """
    if batch.woven_BS is None:
        return predicted_BSD, batch
    sentences, places_BS = batch.sentences()
    # Zeros stand for the first concept, so that predictions and concepts have the same positions.
    all_BSD = torch.nn.functional.pad(predicted_BSD, (0, 0, 1, 0))
    places_BS = places_BS[:, 1:].to(all_BSD.device)
    rows_B1 = torch.arange(len(all_BSD), device=all_BSD.device)[:, None]
    return all_BSD[rows_B1, places_BS], sentences


def distance(left_ND: Tensor, right_ND: Tensor) -> Tensor:
    """Return the Euclidean distance of each pair, (N,)."""
    return (left_ND.float() - right_ND.float()).norm(dim=-1)


def paraphrase_ratio(
    predicted_ND: Tensor, concepts_BSD: Tensor, document_N: Tensor, place_N: Tensor
) -> Tensor:
    """Return PAR of each prediction, (N,).

    NaN where the true concept's largest cosine to those before is below LEAST_COSINE.
    """
    unit_BSD = torch.nn.functional.normalize(concepts_BSD, dim=-1)
    ratio_N = predicted_ND.new_full((len(predicted_ND),), torch.nan)
    for number, (document, place) in enumerate(
        zip(document_N.tolist(), place_N.tolist(), strict=True)
    ):
        before_SD = unit_BSD[document, :place]
        true_cosine = (before_SD @ unit_BSD[document, place]).max()
        predicted_D = torch.nn.functional.normalize(predicted_ND[number], dim=-1)
        if true_cosine >= LEAST_COSINE:
            ratio_N[number] = (before_SD @ predicted_D).max() / true_cosine
    return ratio_N


def contrastive_accuracy(
    predicted_ND: Tensor,
    concepts_BSD: Tensor,
    real_BS: Tensor,
    document_N: Tensor,
    place_N: Tensor,
    *,
    neighbours: bool = False,
) -> Tensor:
    """Return CA of each prediction, (N,); NaN if the batch has no concept to compare with.

    The predictions are of concept `place_N` of document `document_N`; `real_BS` is False at
    padding. With `neighbours`, the true concept's two neighbours are compared with as well.
    """
    excluded_distance = 0 if neighbours else 1
    document_P, place_P = real_BS.nonzero(as_tuple=True)
    pool_PD = concepts_BSD[document_P, place_P]
    accuracies = []
    for part_N in torch.arange(len(predicted_ND)).split(max(1, CHUNK // max(1, len(pool_PD)))):
        part_N = part_N.to(predicted_ND.device)
        document, place = document_N[part_N], place_N[part_N]
        part_ND = predicted_ND[part_N]
        # By differences rather than the faster dot products, whose rounding error would decide
        # between nearly equal distances.
        distance_NP = torch.cdist(part_ND, pool_PD, compute_mode="donot_use_mm_for_euclid_dist")
        true_distance_N = (part_ND - concepts_BSD[document, place]).norm(dim=-1)
        # Places within `excluded_distance`: 0 is the true concept alone, 1 also its neighbours.
        excluded_NP = (document_P == document[:, None]) & (
            (place_P - place[:, None]).abs() <= excluded_distance
        )
        others_N = (~excluded_NP).sum(dim=-1)
        wins_N = ((distance_NP > true_distance_N[:, None]) & ~excluded_NP).sum(dim=-1)
        accuracies.append(torch.where(others_N > 0, wins_N / others_N, torch.nan))
    return torch.cat(accuracies) if accuracies else predicted_ND.new_zeros(0)


def mutual_information(
    conditional_N: Sequence[float], alone_N: Sequence[float], tokens_N: Sequence[int]
) -> float:
    """Return MI in nats per token, given log probabilities of sentences in context and alone.

    Summing before dividing weights the sentences by their tokens. NaN if there are no tokens.
    """
    gain = sum(conditional_N) - sum(alone_N)
    return gain / sum(tokens_N) if sum(tokens_N) else float("nan")
