"""Measure the training speed of a space: tokens per second, each of them encoded and decoded.

The networks have the shapes of the bundled space or of SONAR, with random weights. Sentences are
random words, with the lengths of everyday text (17 tokens on average). On a GPU, steps captured as
a CUDA graph, with and without compiled layers, are timed alternately with the same steps launched
kernel by kernel; on a CPU there are only the latter. Results are medians of several rounds.

    python benchmarks/train_space.py [--shape tiny|sonar] [--device cuda] [--batch-tokens 16384]
"""

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from lcm_cli.space import load_space, pick_device
from lcm_cli.training.data.parallel_text import ParallelText
from lcm_cli.training.recipes.space import SpaceData, SpaceRecipe, SpaceShape, SpaceTraining
from lcm_cli.training.trainers.cuda_graph import WARM_UP
from lcm_cli.training.trainers.space_parts import new_networks
from lcm_cli.training.trainers.text_space import SpaceTrainer

SHAPES = {
    "tiny": SpaceShape(12_000, 384, 6, 1536, 6, 4, 256, tie=False),
    "sonar": SpaceShape(256_000, 1024, 16, 8192, 24, 24, 512, tie=False),
}
IDS = {"tiny": 12_009, "sonar": 256_206}
CORPUS = Path(__file__).parent.parent / "examples" / "corpus" / "stories.jsonl"


def main() -> None:
    """Measure, and print a line for each kind of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-tokens", type=int, help="per side  [default: 16384, CPU 1024]")
    parser.add_argument("--steps", type=int, help="per round  [default: 50, CPU 3]")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = pick_device(options.device)
    on_cpu = device.type == "cpu"
    tokens = options.batch_tokens or (1024 if on_cpu else 16_384)
    steps = options.steps or (3 if on_cpu else 50)
    trainers = {"plain": make_trainer(PlainTrainer, options.shape, device, tokens)}
    if not on_cpu:
        trainers["captured"] = make_trainer(SpaceTrainer, options.shape, device, tokens)
        trainers["compiled"] = make_trainer(SpaceTrainer, options.shape, device, tokens, True)
    summary = trainers["plain"].summary
    print(f"{device_name(device)}, torch {torch.__version__}, {options.shape}: {summary}")
    for trainer in trainers.values():  # warm up: allocate, compile and capture
        run(trainer, WARM_UP + 2)
    rates: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(options.rounds):
        for name, trainer in trainers.items():
            rates[name].append(run(trainer, steps))
    for name, found in rates.items():
        low, middle, high = min(found), statistics.median(found), max(found)
        step = 2 * tokens / middle * 1e3
        speeds = f"{middle:9,.0f} tokens/s ({low:,.0f} to {high:,.0f})"
        print(f"{name:9} {speeds}, {step:.1f} ms per step")
    if not on_cpu:
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB")


class PlainTrainer(SpaceTrainer):
    """A trainer that launches kernel by kernel."""

    def _captures(self) -> bool:
        return False


def make_trainer(
    kind: type[SpaceTrainer],
    shape: str,
    device: torch.device,
    batch_tokens: int,
    compiled: bool = False,
) -> SpaceTrainer:
    """Return a trainer of random networks on random text, with the bundled recipe's options."""
    tiny = load_space("tiny")
    precision = "float32" if device.type == "cpu" else "bfloat16"
    train = SpaceTraining(
        steps=1_000_000, batch_tokens=batch_tokens, dropout=0.1, smoothing=0.05, weight_decay=0.1,
        contrast=0.1, noise=0.3, translate=0.85, precision=precision, compile=compiled,
        optimizer="muon" if shape == "tiny" else "adamw",
    )  # fmt: skip
    recipe = SpaceRecipe("space", "bench", SpaceData(("none",)), tiny.languages, train=train,
                         shape=SHAPES[shape])  # fmt: skip
    networks = new_networks(recipe.shape, IDS[shape], seed=0)
    for network in networks:
        network.to(device)
    text = ParallelText([(sentences(40_000), 1.0)], tiny.tokenizer, 120, 256, device)
    return kind(recipe, tiny.files.tokenizer, networks, text)


def sentences(lines: int) -> Iterator[dict[str, list[str]]]:
    """Yield lines with an English and a French sentence of random words."""
    rng = random.Random(0)
    words = CORPUS.read_text(encoding="utf-8").split()
    for _ in range(lines):
        size = max(1, round(rng.lognormvariate(2.0, 0.6)))
        yield {c: [" ".join(rng.choices(words, k=size))] for c in ("eng_Latn", "fra_Latn")}


def run(trainer: SpaceTrainer, steps: int) -> float:
    """Do some steps; return the tokens per second."""
    trainer._batch()  # prepare the epoch outside the measurement
    count = torch.zeros((), dtype=torch.long, device=trainer.device)
    synchronize(trainer.device)
    started = time.perf_counter()
    for _ in range(steps):
        count += trainer.data.lengths(trainer._batch().sides()).sum()
        trainer.train_step()
    synchronize(trainer.device)
    return int(count) / (time.perf_counter() - started)


def synchronize(device: torch.device) -> None:
    """Wait for the GPU, if `device` is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the number of threads of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
