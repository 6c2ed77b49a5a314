"""Losses that pull an encoder's concepts towards those of a teacher.

SONAR (Duquenne et al. 2023, section 4.2) uses the squared distance alone; OmniSONAR (arXiv
2603.16606) adds the contrast.

Shapes: N concepts of a batch, C candidates, D concept dim.
"""

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 0.05  # of the contrast


def concept_losses(
    found_ND: Tensor, targets_CD: Tensor, same_NC: Tensor, counts_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean squared distance and the mean contrast of concepts from their targets.

    Row n of `found_ND` has the target n. The contrast is the cross-entropy of telling it by cosine
    from the other candidates (InfoNCE), except those that `same_NC` marks as equal in meaning. Rows
    for which `counts_N` is false do not count.
    """
    count = len(found_ND)
    own_NC = torch.eye(count, len(targets_CD), dtype=torch.bool, device=found_ND.device)
    logits_NC = functional.normalize(found_ND) @ functional.normalize(targets_CD).T / TEMPERATURE
    # A row's own target stays, although it has the same meaning.
    logits_NC = logits_NC.masked_fill(same_NC & ~own_NC, -torch.inf)
    wanted_N = torch.arange(count, device=found_ND.device)
    contrast_N = functional.cross_entropy(logits_NC, wanted_N, reduction="none")
    distance_N = (found_ND - targets_CD[:count]).square().mean(dim=1)
    if counts_N is None:
        return distance_N.mean(), contrast_N.mean()
    total = counts_N.sum().clamp(min=1)
    return (distance_N * counts_N).sum() / total, (contrast_N * counts_N).sum() / total
