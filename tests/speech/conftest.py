"""A small speech encoder with random weights, for the tests of this folder."""

from pathlib import Path

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


@pytest.fixture(scope="session")
def clips():
    """The samples of six spoken sentences, at 16 kHz without silence around them."""
    soundfile = pytest.importorskip("soundfile")
    folder = Path(__file__).resolve().parent.parent.parent / "examples" / "speech"
    return [soundfile.read(folder / f"{n}.ogg", dtype="float32")[0] for n in range(1, 7)]
