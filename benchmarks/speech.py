"""Compare our speech encoder with sonar-space's pipeline, at the full width of SONAR's.

Both use the same random weights of the official shapes. The utterances last 2 to 12 seconds, as
sentences do, and are noise: the time does not depend on the content. Runs alternate; times are
medians of processor time. Needs sonar-space and, with all layers, about 9 GB of memory:

    python benchmarks/speech.py [--rounds 3] [--utterances 12] [--layers 24]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lcm_cli.space.sonar_package import import_sonar
from lcm_cli.speech import load_speech_encoder
from lcm_cli.speech.config import SpeechConfig, SpeechShapes
from lcm_cli.speech.features import RATE, features
from lcm_cli.speech.speech import write
from lcm_cli.transfer.converters.speech import read_speech

PIPELINE_BATCH = 3  # the default of sonar-space


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--utterances", type=int, default=12)
    parser.add_argument("--layers", type=int, default=24)
    options = parser.parse_args()
    waveforms = noise(options.utterances)
    seconds = sum(map(len, waveforms)) / RATE
    with tempfile.TemporaryDirectory() as name:
        runs = prepare(Path(name), options.layers, waveforms)
        found = {name: run() for name, run in runs.items()}
        times = measure(runs, options.rounds)
    print(f"{len(waveforms)} utterances, {seconds:.0f} s of audio, {options.layers} layers")
    for name, spent in times.items():
        middle = statistics.median(spent)
        ratio = statistics.median(a / b for a, b in zip(times["sonar-space"], spent, strict=True))
        line = f"{name:12} {seconds / middle:6.2f} s of audio per processor second, {ratio:.2f}x"
        print(line + describe(found[name], found["sonar-space"]))
    start = time.process_time()
    for waveform in waveforms:
        features(torch.from_numpy(waveform))
    spent = time.process_time() - start
    print(f"of this, features: {seconds / spent:.0f} s of audio per processor second")


def noise(count: int) -> list[np.ndarray]:
    """Return utterances of 2 to 12 seconds, in random order."""
    rng = np.random.default_rng(0)
    sizes = rng.permutation(np.linspace(2, 12, count) * RATE).astype(int)
    return [rng.normal(0, 0.1, size).astype(np.float32) for size in sizes]


def prepare(
    folder: Path, layers: int, waveforms: list[np.ndarray]
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return sonar-space's run and ours, on the same weights."""
    import_sonar()
    from fairseq2.models.transformer import TransformerNormOrder
    from fairseq2.models.w2vbert import W2VBertConfig
    from sonar.inference_pipelines.speech import SpeechToEmbeddingModelPipeline
    from sonar.models.sonar_speech import SonarSpeechEncoderConfig, SonarSpeechEncoderFactory

    inner = W2VBertConfig().w2v2_config.encoder_config
    inner.num_encoder_layers = layers
    config = SonarSpeechEncoderConfig(
        w2v2_encoder_config=inner, final_dropout_p=0.1, model_dim=1024, max_seq_len=1024,
        pad_idx=1, bos_idx=2, num_decoder_layers=6, num_decoder_attn_heads=16,
        decoder_norm_order=TransformerNormOrder.POST, ffn_inner_dim=4096, dropout_p=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    network = SonarSpeechEncoderFactory(config).create_model().eval()
    shapes = SpeechShapes(layers, 1024, 16, 4096, 31, 6, 16, 4096, 1024)
    torch.save(network.state_dict(), folder / "official.pt")
    about = SpeechConfig("random", "none", ("eng_Latn",), ("sonar",), shapes)
    write(about, read_speech(folder / "official.pt", shapes), folder / "ours")
    (folder / "official.pt").unlink()
    stock = SpeechToEmbeddingModelPipeline(network)
    inputs = [torch.from_numpy(waveform)[None] for waveform in waveforms]
    ours: dict[str, Any] = {
        precision: load_speech_encoder(str(folder / "ours"), device="cpu", precision=precision)
        for precision in ("float32", "int8")
    }
    return {
        "sonar-space": lambda: stock.predict(inputs, batch_size=PIPELINE_BATCH),
        **{name: lambda one=one: one.encode(waveforms) for name, one in ours.items()},
    }


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time each run once per round, alternately; each must have run once before."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return seconds


def describe(found: torch.Tensor, wanted: torch.Tensor) -> str:
    """Return how far concepts are from sonar-space's."""
    error = ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max()
    cosine = torch.cosine_similarity(found, wanted).min()
    return f"; largest relative error {error:.1e}, least cosine {cosine:.6f}"


if __name__ == "__main__":
    main()
