"""The normalizer against the official implementation, fitted on the same concepts."""

from collections.abc import Callable
from typing import Any

import torch

from lcm_cli.models.config import NormalizerConfig
from lcm_cli.models.normalizer import fit

COMPARED = 130


def test_every_method(golden: Callable[[str], Any]) -> None:
    """The official quantiles 0.25 and 0.75 are percents by mistake: our spread "official"."""
    file = golden("normalizer")
    x_ND = file["x"]
    for name, facts in file.facts.items():
        theirs = facts["config"]
        config = NormalizerConfig(
            method=theirs["normalization_method"],
            spread="official" if theirs["quantile_max"] == 0.75 else "quartiles",
            clip=theirs["clip_proba"],
            fft=theirs["with_fft"],
        )
        normalizer = fit(torch.split(x_ND, 400), config)
        ours = normalizer.state_dict()
        normalized = normalizer.normalize(x_ND[:48])
        ours |= {"normalized48": normalized, "denormalized48": normalizer.denormalize(normalized)}
        for key, tensor in ours.items():
            file.check(f"{name}/{key}", tensor, terms=len(x_ND))  # means over all of them


def test_nothing_is_left_out(assert_complete: Callable[[list[str], int], None]) -> None:
    assert_complete(["normalizer"], COMPARED)
