"""How well does a model predict the next concept, given the true ones before it (paper 2.4.1).

    l2    |x^_n - x_n|
    l2-r  |encode(decode(x^_n)) - x_n|
    PAR   max_{m<n} cos(x^_n, x_m) / max_{m<n} cos(x_n, x_m)
    CA    share of the batch's other true concepts that lie farther from x^_n than x_n does; the
          neighbours x_(n-1) and x_(n+1) do not take part (with them it is called ca_all)
    MI    (log p(s^_n | s_(n-10) ... s_(n-1)) - log p(s^_n)) / |s^_n|, of the decoded sentences and
          by a language model; averaged with the numbers of tokens as weights

Breaks and plans of planning models, and what opens prompts of a SONAR-LLM, are read, and that is
all: they are no targets, nor among the concepts that PAR and CA compare with, so that the numbers
are those of sentences.

PAR above 1 tells that the model repeats what it has read, below 1 that it strays from it.

Shapes: B documents, S concepts, D concept dim, N targets, P concepts of the batch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lcm_cli.errors import UsageError
from lcm_cli.models.interface import Batch, ConceptModel, Noise

# Sentences that are like nothing before them (most often second ones) would dominate the mean of
# the paper's ratio: its denominator, the best cosine of the truth, has to reach this.
LEAST_COSINE = 0.05
CONTEXT = 10  # sentences that MI looks back at (paper 2.4.1)
CHUNK = 1 << 22  # distances computed at a time

# Decodes concepts (N, D) to text and encodes that again, (N, D).
Reconstruct = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NextConcept:
    """Scores of each target, (N,); NaN where a score does not exist."""

    l2: Tensor
    par: Tensor
    ca: Tensor
    l2_r: Tensor
    ca_all: Tensor

    def means(self) -> dict[str, float]:
        """Return the mean of each score over the targets that have it, and their number."""
        scores = {part.name: getattr(self, part.name) for part in fields(self)}
        kept = {name: score[~score.isnan()] for name, score in scores.items()}
        means = {name: float(score.double().mean()) for name, score in kept.items() if len(score)}
        return means | {"targets": len(self.l2)}


def next_concept_metrics(
    model: ConceptModel,
    batches: Iterable[Batch],
    *,
    options: Any = None,
    seed: int = 0,
    reconstruct: Reconstruct | None = None,
) -> NextConcept:
    """Predict every concept of `batches` from the true ones before it, and score that.

    `options` are the model's (default: the paper's); each document draws its noise from a generator
    of its own, seeded with `seed` and its number. With `reconstruct` there is l2-r.
    Raises UsageError if there is nothing to predict.
    """
    options = model.Options() if options is None else options
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
    """Score predictions of concepts 1 .. S - 1, (B, S - 1, D) and raw, as `predict` gives them.

    Of documents with a source only what comes after it counts. The true concepts of all documents
    of the batch, sources included, are what CA compares with. Breaks and plans do not count at all.
    """
    predicted_BSD, batch = of_sentences(predicted_BSD, batch)
    concepts_BSD = batch.concepts_BSD.to(predicted_BSD.device).float()
    chosen_BS = scored(batch)
    document_N, place_N = chosen_BS.to(predicted_BSD.device).nonzero(as_tuple=True)
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
    """Return which concepts of a batch without breaks and plans are to be scored, (B, S)."""
    chosen_BS = batch.learned(first=1)
    chosen_BS[:, 0] = False  # nothing comes before the first concept
    return chosen_BS


def of_sentences(predicted_BSD: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    """Return predictions of concepts 1 .. S - 1, and the batch, without breaks and plans.

    That of a document's first sentence, made from the plan before it, is left out too: of other
    models there is none.
    """
    if batch.woven_BS is None:
        return predicted_BSD, batch
    sentences, places_BS = batch.sentences()
    # A row of zeros stands for the first concept, which is never predicted.
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
    """Return PAR of each prediction, (N,); NaN where the truth is like nothing before it."""
    unit_BSD = torch.nn.functional.normalize(concepts_BSD, dim=-1)
    ratio_N = predicted_ND.new_full((len(predicted_ND),), torch.nan)
    for number, (document, place) in enumerate(
        zip(document_N.tolist(), place_N.tolist(), strict=True)
    ):
        before_SD = unit_BSD[document, :place]
        truth = (before_SD @ unit_BSD[document, place]).max()
        guess = torch.nn.functional.normalize(predicted_ND[number], dim=-1)
        if truth >= LEAST_COSINE:
            ratio_N[number] = (before_SD @ guess).max() / truth
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
    """Return CA of each prediction, (N,); NaN where there is nothing to compare with.

    `real_BS` tells concepts from padding. With `neighbours` the true concept's two neighbours take
    part as well, and only the true concept itself does not.
    """
    apart = 0 if neighbours else 1
    owner_P, spot_P = real_BS.nonzero(as_tuple=True)
    pool_PD = concepts_BSD[owner_P, spot_P]
    found = []
    for part_N in torch.arange(len(predicted_ND)).split(max(1, CHUNK // max(1, len(pool_PD)))):
        part_N = part_N.to(predicted_ND.device)
        document, place = document_N[part_N], place_N[part_N]
        guess_ND = predicted_ND[part_N]
        # Differences, not the cheaper dot products: those lose close calls to rounding.
        far_NP = torch.cdist(guess_ND, pool_PD, compute_mode="donot_use_mm_for_euclid_dist")
        own_N = (guess_ND - concepts_BSD[document, place]).norm(dim=-1)
        near = (owner_P == document[:, None]) & ((spot_P - place[:, None]).abs() <= apart)
        others_N = (~near).sum(dim=-1)
        wins_N = ((far_NP > own_N[:, None]) & ~near).sum(dim=-1)
        found.append(torch.where(others_N > 0, wins_N / others_N, torch.nan))
    return torch.cat(found) if found else predicted_ND.new_zeros(0)


def mutual_information(
    conditional_N: Sequence[float], alone_N: Sequence[float], tokens_N: Sequence[int]
) -> float:
    """Return MI in nats a token: log probabilities of sentences after their context, and alone."""
    gain = sum(conditional_N) - sum(alone_N)
    return gain / sum(tokens_N) if sum(tokens_N) else float("nan")
