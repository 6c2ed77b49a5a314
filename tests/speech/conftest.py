"""A small speech encoder with random weights, for the tests of this folder."""

import pytest
import torch
from torch import nn

from lcm_cli.speech.config import SpeechConfig, SpeechShapes
from lcm_cli.speech.encoder import SpeechEncoder
from lcm_cli.speech.speech import save

SHAPES = SpeechShapes(2, 32, 4, 48, 5, 2, 2, 40, 24, max_length=100)


@pytest.fixture(scope="session")
def network() -> SpeechEncoder:
    torch.manual_seed(0)
    network = SpeechEncoder(SHAPES).eval()
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network


@pytest.fixture(scope="session")
def folder(network, tmp_path_factory):
    """The folder of the encoder, as a checkpoint."""
    folder = tmp_path_factory.mktemp("speech") / "small"
    languages = ("eng_Latn", "deu_Latn")
    config = SpeechConfig("small", "MIT", languages, ("tiny",), SHAPES, "0123456789abcdef")
    save(network, config, folder)
    return folder
