"""Measure lcm on one CUDA GPU against the limits of that GPU, in less than three minutes.

    python benchmarks/gpu.py [--json FILE] [--only encode decode train generate] [--kernels]

Networks have the official sizes and random weights. Two limits are measured in the same run: the
rate of a large bfloat16 matrix product, and the bandwidth of a large copy (bytes read and written).
Each line gives the share of what these limits allow: for encoding and training, the operations of
the matrices (2 N per token, 6 N per concept); for decoding, the products of a step and the keys and
values that it reads; for generation, per denoising step, the larger of the products and the reading
of the weights. --kernels adds the kernels that take the most time.
"""

import argparse
import gc
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lcm_cli.files import atomic_path
from lcm_cli.hub.locate import SpaceFiles
from lcm_cli.models import checkpoint
from lcm_cli.models.config import preset
from lcm_cli.models.diffusion import DiffusionOptions
from lcm_cli.models.generate import GenerateOptions, generate_concepts
from lcm_cli.models.interface import Batch, ConceptModel
from lcm_cli.models.packed import lay_out
from lcm_cli.space import Space
from lcm_cli.space.decoder import DecoderConfig, TextDecoder
from lcm_cli.space.encoder import EncoderConfig, TextEncoder
from lcm_cli.space.kernels import align_vocabulary
from lcm_cli.space.search import DecodeOptions, captured_steps, search
from lcm_cli.training.estimate import matrix_weights
from lcm_cli.training.parallel import MicroBatches, Share
from lcm_cli.training.recipes.model import Training
from lcm_cli.training.trainers.concept_model import ModelTrainer

SHAPE = {"layers": 24, "model_dim": 1024, "heads": 16, "ffn_dim": 8192, "vocabulary": 256_206}
LANGUAGE = 256_047  # any token but the special ones
PARTS = ("encode", "decode", "train", "generate")


@dataclass(frozen=True)
class Limits:
    """What the GPU can do: bfloat16 products in FLOP/s, and copies in bytes/s."""

    product: float
    bandwidth: float


@dataclass
class Line:
    """One line of the table: a rate, the time of one step, and that time's lower limit."""

    what: str
    rate: float
    unit: str
    milliseconds: float
    limit: float
    kernels: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The limit's share of the time: 1 is the best possible."""
        return self.limit / self.milliseconds

    def __str__(self) -> str:
        times = f"{self.milliseconds:9.2f} ms, limit {self.limit:8.2f} ms, {self.share:6.1%}"
        lines = [f"{self.what:44} {self.rate:11,.0f} {self.unit:12} {times}"]
        return "\n".join([*lines, *(f"    {kernel}" for kernel in self.kernels)])


def main() -> None:
    """Measure, print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table to this file")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kernels", action="store_true", help="list the slowest kernels")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a CUDA GPU, and torch finds none")
    started, device = time.monotonic(), torch.device("cuda")
    limits = measure_limits(device)
    name = torch.cuda.get_device_name(device)
    print(f"{name}, torch {torch.__version__}: {limits.product / 1e12:.0f} TFLOP/s, "
          f"{limits.bandwidth / 1e12:.2f} TB/s")  # fmt: skip
    lines: list[Line] = []
    for measure in [m for part, m in measurements(device, limits, given.kernels)
                    if part in given.only]:  # fmt: skip
        try:
            lines.append(measure())
            print(lines[-1], flush=True)
        except Exception as error:  # the other lines are still worth having
            print(f"failed: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
        # Networks and compiled code refer to each other: without this, four would not fit.
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
    print(f"{time.monotonic() - started:.0f} s")
    if given.json:
        record = {"device": name, "torch": torch.__version__, "limits": asdict(limits)}
        record["lines"] = [asdict(line) | {"share": line.share} for line in lines]
        with atomic_path(given.json, force=True) as path:
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measurements(
    device: torch.device, limits: Limits, kernels: bool
) -> list[tuple[str, Callable[[], Line]]]:
    """Return the measurements of the table and their parts, compiled ones last: they are slow."""

    def train(architecture: str, compiled: bool) -> Callable[[], Line]:
        return lambda: bench_training(architecture, compiled, device, limits, kernels)

    def generate(rows: int) -> Callable[[], Line]:
        return lambda: bench_generation(rows, device, limits, kernels)

    return [
        ("encode", lambda: bench_encoding(device, limits, kernels)),
        ("decode", lambda: bench_decoding(device, limits, kernels)),
        ("decode", lambda: bench_decoding(device, limits, first=True)),
        ("train", train("two_tower", False)),
        ("train", train("base", False)),
        ("generate", generate(1)),
        ("generate", generate(64)),
        ("train", train("two_tower", True)),
        ("train", train("base", True)),
    ]


def measure_limits(device: torch.device) -> Limits:
    """Measure a large product and a large copy."""
    size = 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = 2 * size**3 / (milliseconds(lambda: a @ b, device, 20) / 1e3)
    source = torch.empty(1 << 31, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copied = milliseconds(lambda: target.copy_(source), device, 20)
    return Limits(product, 2 * source.nbytes / (copied / 1e3))


def milliseconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the median time of `work`, from launch to the end of its last kernel."""
    times = []
    for number in range(rounds + 2):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        if number >= 2:  # the first rounds allocate and load kernels
            times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait for the GPU, if `device` is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def slowest_kernels(work: Callable[[], object], wanted: bool) -> list[str]:
    """Return how many kernels `work` launches, and those that take the most time."""
    if not wanted:
        return []
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    found = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in found) or 1
    head = f"{sum(event.count for event in found)} kernels and copies, {total / 1e3:.1f} ms"
    return [head, *(
        f"{event.self_device_time_total / total:5.1%} {event.count:6} x {event.key[:80]}"
        for event in found[:8]
    )]  # fmt: skip


def make(build: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """Return a network with random weights, made on the device."""
    torch.manual_seed(0)
    with device:
        network = build()
    for name, weight in network.named_parameters():
        if "modulator" in name or "embed.weight" in name:
            nn.init.normal_(weight, std=0.02)
    return network.to(device, dtype)


class Tokens(Space):
    """A space of random networks whose sentences are token ids already."""

    def tokenize(self, sentences: Sequence[Any], lang: str | Sequence[str]) -> list[Any]:
        """Return the sentences, which are rows of ids."""
        return list(sentences)


def sentences(count: int) -> list[tuple[int, ...]]:
    """Return sentences of random tokens, 27 in the median, as in everyday text."""
    rng = random.Random(0)
    lengths = [min(510, max(4, round(27 * math.exp(rng.gauss(0, 0.4))))) for _ in range(count)]
    return [tuple(rng.choices(range(4, 256_000), k=length)) for length in lengths]


def bench_encoding(
    device: torch.device,
    limits: Limits,
    kernels: bool = False,
    count: int = 4096,
    shape: dict[str, int] = SHAPE,
) -> Line:
    """Encode sentences through a space, from token ids to concepts on the host."""
    encoder = make(lambda: TextEncoder(EncoderConfig(**shape)), device, torch.bfloat16).eval()
    nowhere = Path()
    config = {"languages": ["eng_Latn"], "encoder": shape}
    files = SpaceFiles("random", config, nowhere, nowhere, nowhere, "")
    space = Tokens(files, device, "bfloat16", None)
    space.encoder = encoder
    rows = sentences(count)

    def work() -> object:
        return space.encode(rows, "eng_Latn")  # type: ignore[arg-type]

    taken = milliseconds(work, device, 5)
    limit = 2 * matrix_weights(encoder) * sum(map(len, rows)) / limits.product * 1e3
    rate = count / taken * 1e3
    what = f"encode {count} sentences, bfloat16"
    return Line(what, rate, "sentences/s", taken, limit, slowest_kernels(work, kernels))


def bench_decoding(
    device: torch.device,
    limits: Limits,
    kernels: bool = False,
    count: int = 200,
    shape: dict[str, int] = SHAPE,
    first: bool = False,
) -> Line:
    """Decode concepts with beam search, all to the same number of tokens.

    The CUDA graphs of its steps are those of the batch before; `first`: there is none.
    """
    config = DecoderConfig(**shape, concept_dim=shape["model_dim"])
    decoder = align_vocabulary(make(lambda: TextDecoder(config), device, torch.bfloat16).eval())
    tokens, beam = 32, 5
    options = DecodeOptions(beam=beam, min_tokens=tokens, max_tokens=tokens)
    concepts = 0.2 * torch.randn(count, shape["model_dim"], device=device, dtype=torch.bfloat16)
    language = min(LANGUAGE, shape["vocabulary"] - 1)

    limits_R = [tokens] * count
    steps = None if first else captured_steps(decoder, count, limits_R, options)

    def work() -> object:
        return search(decoder, concepts, [language] * count, limits_R, options, steps=steps)

    taken = milliseconds(work, device, 3)
    rows = count * beam
    products = [m for name, m in decoder.named_modules()
                if isinstance(m, nn.Linear) and "encoder_decoder" not in name]  # fmt: skip
    weights = (
        sum(m.weight.numel() for m in products) + decoder.decoder_frontend.embed.weight.numel()
    )
    step = max(2 * weights * rows / limits.product, 2 * weights / limits.bandwidth)
    # Keys and values of 17 tokens on average, two bytes each, are read once.
    read = rows * (tokens + 2) / 2 * 2 * 2 * shape["layers"] * shape["model_dim"]
    limit = (step + read / limits.bandwidth) * 1e3
    what = f"decode {count} sentences x {tokens}, {'first' if first else 'next'} batch, {rows} rows"
    kernel_names = slowest_kernels(work, kernels)
    rate = count / taken * 1e3
    return Line(what, rate, "sentences/s", taken / (tokens + 1), limit, kernel_names)


class RandomData:
    """The same random documents in every step."""

    summary = "random documents"

    def __init__(self, documents: int, length: int, dim: int) -> None:
        self._batch = Batch.of([torch.randn(length, dim)] * documents)

    def batch(self, number: int) -> Batch:
        """Return the documents."""
        return self._batch

    def micro_batches(self, number: int, share: Share) -> MicroBatches:
        """Return the documents as one micro-batch."""
        return MicroBatches([self._batch], self._batch.lengths_B)

    def validation(self, limit: int) -> list[Batch]:
        """Return no documents."""
        return []


def bench_training(
    architecture: str,
    compiled: bool,
    device: torch.device,
    limits: Limits,
    kernels: bool = False,
    size: str = "1.6B",
    documents: int = 56,
) -> Line:
    """Do training steps of documents of 128 concepts with bfloat16 autocast and AdamW."""
    length = 128
    config = preset(architecture, size)
    model = make(lambda: checkpoint.build(config), device, torch.float32)
    options = Training(precision="bfloat16", compile=compiled)
    data = RandomData(documents, length, config.concept_dim)
    trainer = ModelTrainer(model, data, options)
    taken = milliseconds(trainer.train_step, device, 6)
    concepts = documents * length
    limit = 6 * matrix_weights(model) * concepts / limits.product * 1e3
    what = f"train {architecture} {size}{', compiled' if compiled else ''}"
    names = slowest_kernels(trainer.train_step, kernels)
    return Line(what, concepts / taken * 1e3, "concepts/s", taken, limit, names)


def bench_generation(
    rows: int,
    device: torch.device,
    limits: Limits,
    kernels: bool = False,
    size: str = "1.6B",
    concepts: int = 4,
) -> Line:
    """Continue documents of 16 concepts with a Two-Tower in bfloat16, 40 guided steps each."""
    config = preset("two_tower", size)
    model: ConceptModel = make(lambda: checkpoint.build(config), device, torch.bfloat16).eval()
    weights = step_weights(model)
    model = lay_out(model, "bfloat16")
    diffusion = DiffusionOptions()
    options = GenerateOptions(max_concepts=concepts, min_concepts=concepts, sampler=diffusion)
    prompts: list[Tensor] = list(torch.randn(rows, 16, config.concept_dim))

    def work() -> object:
        return generate_concepts(model, prompts, options)

    taken = milliseconds(work, device, 2) / concepts
    products = 2 * weights * 2 * rows / limits.product  # with and without context
    limit = diffusion.steps * max(products, 2 * weights / limits.bandwidth) * 1e3
    what = f"generate two_tower {size}, {rows} documents, a concept"
    return Line(
        what, rows / taken * 1e3, "concepts/s", taken, limit, slowest_kernels(work, kernels)
    )


def step_weights(model: nn.Module) -> int:
    """Return the number of weights that a denoising step of a Two-Tower multiplies with."""
    outside = ("modulator.fc", "embed_time.fc1", "embed_time.fc2",
               "self_attn.q_proj", "self_attn.k_proj",
               "cross_attention.k_proj", "cross_attention.v_proj")  # fmt: skip
    return sum(
        part.weight.numel()
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear)
        and name.startswith("denoiser")
        and not name.endswith(outside)
    )


if __name__ == "__main__":
    main()
