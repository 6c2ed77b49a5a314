"""Measure concept models: generation against a stand-in, training steps, memory, cost curves.

    python benchmarks/models.py generate           # speed, limits, and loss of the results
    python benchmarks/models.py memory             # peak memory of generation, in new processes
    python benchmarks/models.py train              # ms per step, and the share of matmul
    python benchmarks/models.py plot -o FILE       # cost by context length and steps; needs
                                                   # the extra "plot"

The stand-in is not the official code, but computes with our layers and weights in the same order:
every denoising step projects the whole context to keys and values again, computes the modulations
for every row, runs self-attention over a single key and gives the unconditional half a padded
context; every concept copies the whole cache although no row has finished. The official code is
faster than it in some cases: see docs/benchmarks.md. All modes run 40 steps; the official code runs
50 when asked for 40. "plain" is the model as loaded for training, the other modes are
`load_model(..., precision=..., packed=True)`. The limit is the speed at which the weights that are
used would be read from memory at the measured bandwidth, if nothing else took time. Times are
processor seconds of one thread, medians of a few alternating runs, with random weights.
"""

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lcm_cli.models.base_lcm import BaseLCM, BaseOptions
from lcm_cli.models.checkpoint import load_model, write
from lcm_cli.models.config import BaseConfig, TransformerConfig, TwoTowerConfig
from lcm_cli.models.diffusion import DiffusionOptions, guide, step_pairs
from lcm_cli.models.interface import Batch, ConceptModel, Noise
from lcm_cli.models.key_value_cache import KeyValueCache
from lcm_cli.models.packed import fastest, lay_out
from lcm_cli.models.two_tower import DenoiserLayer, TwoTowerLCM
from lcm_cli.weights import Store, Weight

STACK = TransformerConfig(heads=8, inner_dim=1536)
BASE = BaseConfig(model_dim=512, transformer=replace(STACK, layers=8))
TWO_TOWER = TwoTowerConfig(
    model_dim=512,
    contextualizer=replace(STACK, layers=3),
    denoiser=replace(STACK, layers=5, positions="none"),
)


def build(config: BaseConfig | TwoTowerConfig) -> Any:
    """Return a model with random weights, including those of the modulators."""
    torch.manual_seed(0)
    model = BaseLCM(config) if isinstance(config, BaseConfig) else TwoTowerLCM(config)
    for name, parameter in model.named_parameters():
        if "modulator" in name:
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


class NaiveTwoTower:
    """Generation with a Two-Tower in the official code's order of computation."""

    def __init__(self, model: TwoTowerLCM) -> None:
        self.model = model

    @torch.inference_mode()
    def generate(self, prompts: Tensor, count: int, options: DiffusionOptions) -> Tensor:
        """Continue (B, S, D) by `count` concepts."""
        model, rows = self.model, len(prompts)
        noise = Noise([0] * rows)
        cache = KeyValueCache(model.config.contextualizer.layers, rows, prompts.shape[1] + count)
        context = model.contextualize(model.normalized(prompts), cache)
        cache.advance(prompts.shape[1])
        made = []
        for _ in range(count):
            x = noise.normal(1, prompts.shape[-1]) * options.initial_noise
            for t, s in step_pairs(model.config.schedule.steps, options):
                guided = options.guided and t < model.config.schedule.steps - 1
                output = self.denoise(x, t, context)
                conditional, unconditional = output.chunk(2)
                prediction = None
                if guided:
                    pair = (
                        model.schedule.epsilon(part, x, t) for part in (conditional, unconditional)
                    )
                    conditional, prediction = guide(*pair, options), "epsilon"
                x, x0 = model.schedule.step(conditional, x, t, s, options, prediction=prediction)
                x = x.clamp(-options.clip, options.clip)
            concept = model.normalizer.denormalize(x0)
            made.append(concept)
            new = model.contextualize(model.normalized(concept), cache)
            cache.advance(1)
            cache.keep(torch.arange(rows))
            context = torch.cat([context, new], dim=1)[torch.arange(rows)]
        return torch.cat(made, dim=1)

    def denoise(self, x: Tensor, t: int, context: Tensor) -> Tensor:
        """Denoise with context and without, even where guidance is off, (2 B, 1, D)."""
        denoiser, rows = self.model.denoiser, len(x)
        time_2B1M = denoiser.embed_time(torch.full((2 * rows, 1), t))
        memory = F.pad(torch.cat([context, torch.zeros_like(context)]), (0, 0, 1, 0))
        seen = torch.zeros(2 * rows, 1, 1, memory.shape[1], dtype=torch.bool)
        seen[:rows] = True
        seen[rows:, ..., 0] = True
        h = denoiser.initial_proj(torch.cat([x, x]))
        for layer in denoiser.layers:
            h = self.layer(layer, h, time_2B1M, memory, seen)  # type: ignore[arg-type]
        out: Tensor = denoiser.final_proj(denoiser.layer_norm(h))
        return out

    @staticmethod
    def layer(
        layer: DenoiserLayer, h: Tensor, time: Tensor, memory: Tensor, seen: Tensor
    ) -> Tensor:
        own, cross, feed = (
            part.chunk(3, dim=-1) for part in layer.modulator(time).chunk(3, dim=-1)
        )
        x = layer.self_attn_layer_norm(h) * own[1] + own[0]
        itself = torch.ones(1, 1, dtype=torch.bool)
        h = h + own[2] * layer.self_attn(x, mask=itself)
        x = layer.cross_attention_layer_norm(h) * cross[1] + cross[0]
        part = layer.cross_attention
        y = part.attend(part.queries(x), *part.keys_values(memory), seen)
        h = h + cross[2] * part.output_proj(y)
        return h + feed[2] * layer.ffn(layer.ffn_layer_norm(h) * feed[1] + feed[0])


class NaiveBase:
    """Generation with a Base-LCM in the official code's order of computation."""

    def __init__(self, model: BaseLCM) -> None:
        self.model = model

    @torch.inference_mode()
    def generate(self, prompts: Tensor, count: int, options: BaseOptions) -> Tensor:
        """Continue (B, S, D) by `count` concepts."""
        model, rows = self.model, len(prompts)
        cache = KeyValueCache(model.config.transformer.layers, rows, prompts.shape[1] + count)
        model(model.normalized(prompts[:, :-1]), cache)
        cache.advance(prompts.shape[1] - 1)
        made, last = [], prompts[:, -1:]
        for _ in range(count):
            last = model.normalizer.denormalize(model(model.normalized(last), cache))
            cache.advance(1)
            cache.keep(torch.arange(rows))
            made.append(last)
        return torch.cat(made, dim=1)


@torch.inference_mode()
def ours(model: ConceptModel, prompts: Tensor, count: int, options: Any) -> Tensor:
    """Continue (B, S, D) by `count` concepts, without the stopping rules."""
    state = model.begin(Batch.of(list(prompts)), prompts.shape[1] + count, options)
    noise, made = Noise([0] * len(prompts)), []
    for _ in range(count):
        made.append(model.next(state, noise))
        model.extend(state, made[-1])
    return torch.stack(made, dim=1)


def medians(runs: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Return the median processor seconds of each run, over `repeats` alternating rounds."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            taken[name].append(time.process_time() - start)
    return {name: median(values) for name, values in taken.items()}


MODES = ("float32", "auto", "int8")
BYTES = {"float32": 4.0, "auto": 2.0, "int8": 1.0}  # per weight, if "auto" uses float16


def bandwidth() -> float:
    """Return the bytes per second at which one thread reads memory: the best of a few sums."""
    data, best = torch.ones(1 << 26), float("inf")
    for _ in range(5):
        start = time.process_time()
        data.sum()
        best = min(best, time.process_time() - start)
    return data.nbytes / best


def read_per_concept(config: BaseConfig | TwoTowerConfig, mode: str) -> float:
    """Return the bytes of weights read per generated concept, whatever the number of rows."""
    dim, ends = config.model_dim, 2 * config.concept_dim * config.model_dim
    feed = dim * STACK.inner_dim
    block = 4 * dim * dim + 3 * feed
    size, small = BYTES[mode], BYTES["auto" if mode == "int8" else mode]
    if isinstance(config, BaseConfig):
        layers = config.transformer.layers
        return layers * ((block - feed) * size + feed * small) + ends * small
    # Self-attention is one matrix, cross-attention reads two of its four in each step.
    layer = (3 * dim * dim + 2 * feed) * size + feed * small
    step = config.denoiser.layers * layer + ends * small
    once = config.contextualizer.layers * block + config.denoiser.layers * 2 * dim * dim
    return DiffusionOptions().steps * step + once * size


def compare_generation(repeats: int) -> None:
    """Print speed, limit by bandwidth, and loss of all modes; differences are from the stand-in."""
    rate = bandwidth()
    print(f"bandwidth {rate / 1e9:.1f} GB/s; 'auto' uses {fastest().__name__}")
    print("| model | rows / context | mode | c/s | ratio | limit c/s | l2 | 1 - cosine |")
    print("|---|---|---|---|---|---|---|---|")
    for name, config, count in (("two-tower", TWO_TOWER, 1), ("base", BASE, 16)):
        model = build(config)
        models = {mode: lay_out(copy.deepcopy(model), mode) for mode in MODES}
        naive = NaiveTwoTower(model) if name == "two-tower" else NaiveBase(model)
        options = model.Options()
        for rows, context in ((1, 32), (1, 128), (8, 32), (8, 128)):
            prompts = torch.randn(rows, context, 1024)
            runs = {
                "stand-in": partial(naive.generate, prompts, count, options),
                "plain": partial(ours, model, prompts, count, options),
            }
            for mode, each in models.items():
                runs[mode] = partial(ours, each, prompts, count, options)
            results = {mode: run() for mode, run in runs.items()}
            seconds = medians(runs, repeats)
            for mode, taken in seconds.items():
                speed, ratio = rows * count / taken, seconds["stand-in"] / taken
                most = (
                    f"{rows * rate / read_per_concept(config, mode):.1f}" if mode in MODES else ""
                )
                loss = " | ".join(f"{value:.1e}" for value in losses(results, mode))
                case = f"| {name} | {rows} / {context} | {mode}"
                print(f"{case} | {speed:.2f} | {ratio:.2f} | {most} | {loss} |", flush=True)


def losses(results: dict[str, Tensor], mode: str) -> tuple[float, float]:
    """Return the relative l2 distance and the loss of cosine to the stand-in's concepts, means."""
    ours, theirs = results[mode].double(), results["stand-in"].double()
    distance = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return float(distance.mean()), float(1 - F.cosine_similarity(ours, theirs, dim=-1).mean())


def compare_memory() -> None:
    """Print the peak memory of loading a checkpoint and continuing 8 documents of 128 concepts."""
    print("| model | precision | stored as | peak MiB | of which before loading |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, config in (("two-tower", TWO_TOWER), ("base", BASE)):
            state: dict[str, Weight] = dict(build(config).state_dict())
            stores: tuple[Store, ...] = ("float32", "int8")
            for store in stores:
                write(config, state, Path(folder) / name / store, store=store)
            cases = ("float32", "float32"), ("float32", "auto"), ("int8", "auto"), ("int8", "int8")
            for stored, mode in cases:
                place = str(Path(folder) / name / stored)
                command = [sys.executable, __file__, "_peak", "--model", place, "--mode", mode]
                peaks = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                before, after = peaks.split()
                print(f"| {name} | {mode} | {stored} | {after} | {before} |")


def peak(folder: str, mode: str) -> None:
    """Print this process's peak memory in MiB before loading a model and after generation."""
    before = most_memory()
    model = load_model(folder, device="cpu", precision=mode, packed=True)
    count = 16 if isinstance(model, BaseLCM) else 2
    ours(model, torch.randn(8, 128, 1024), count, model.Options())
    print(before, most_memory())


def most_memory() -> int:
    """Return the peak memory of this process in MiB (Linux)."""
    # Not getrusage, whose peak a new process inherits from its parent.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


MATMUL = ("aten::addmm", "aten::mm", "aten::bmm", "aten::linear", "scaled_dot_product")


def training_step(model: Any, batch: Batch) -> Callable[[], Tensor]:
    """Return a function for a whole step: forward, backward, clipping, fused AdamW."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5, betas=(0.9, 0.95), fused=True)

    def step() -> Tensor:
        loss = model.loss(batch).mean
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 10.0)
        optimizer.step()
        return loss.detach()

    return step


def compare_training(repeats: int) -> None:
    """Print the time of a training step and the share of matrix products in it."""
    print("| model | batch | ms per step | matmul |")
    print("|---|---|---|---|")
    for name, config in (("base", BASE), ("two-tower", TWO_TOWER)):
        model = build(config).train()
        step = training_step(model, Batch.of([torch.randn(32, 1024)] * 8))
        step()
        seconds = medians({"step": step}, repeats)["step"]
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(repeats):
                step()
        events = profiler.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        spent = sum(e.self_cpu_time_total for e in events if any(m in e.key for m in MATMUL))
        print(f"| {name} | 8 x 32 | {1000 * seconds:.0f} | {spent / total:.0%} |")


def plot(file: Path, repeats: int) -> None:
    """Plot milliseconds per concept by context length (S = 40) and by S (context 32)."""
    from matplotlib.figure import Figure

    contexts, steps = (8, 32, 128, 512, 1024), (5, 10, 20, 40, 80)
    models = {"two-tower": lay_out(build(TWO_TOWER)), "base": lay_out(build(BASE))}
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, model in models.items():
        costs = [cost(model, length, model.Options(), repeats) for length in contexts]
        curve(left, name, contexts, costs)
    runs = [DiffusionOptions(steps=count) for count in steps]
    costs = [cost(models["two-tower"], 32, options, repeats) for options in runs]
    curve(right, "two-tower", steps, costs)
    left.set(xlabel="concepts of context (S = 40)", ylabel="ms per concept")
    right.set(xlabel="denoising steps S (32 concepts of context)")
    left.legend()
    figure.savefig(file)
    print(file)


TICKS = (10, 30, 100, 300, 1000)  # ms


def curve(axes: Any, name: str, points: Sequence[int], costs: list[float]) -> None:
    """Draw and print one curve, on logarithmic axes."""
    axes.loglog(points, costs, "o-", label=name)
    axes.set_xticks(points, [str(point) for point in points])
    axes.set_yticks(TICKS, [str(tick) for tick in TICKS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    pairs = zip(points, costs, strict=True)
    print(f"{name}: " + ", ".join(f"{point}: {value:.1f} ms" for point, value in pairs))


@torch.inference_mode()
def cost(model: Any, context: int, options: Any, repeats: int) -> float:
    """Return the median milliseconds per further concept of one document, its prompt being read."""
    state = model.begin(Batch.of([torch.randn(context, 1024)]), context + repeats + 1, options)
    noise, taken = Noise([0]), []
    for _ in range(repeats + 1):
        start = time.process_time()
        model.extend(state, model.next(state, noise))
        taken.append(time.process_time() - start)
    return 1000 * median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["generate", "memory", "train", "plot", "_peak"])
    parser.add_argument("--model", default="", help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="auto", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=Path("cost.svg"))
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "generate":
        compare_generation(given.repeats)
    elif given.what == "memory":
        compare_memory()
    elif given.what == "_peak":
        peak(given.model, given.mode)
    elif given.what == "train":
        compare_training(given.repeats)
    else:
        plot(given.output, given.repeats)


if __name__ == "__main__":
    main()
