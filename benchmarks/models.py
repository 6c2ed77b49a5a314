"""Concept models: generation against a naive mode, the cost of a training step, cost curves.

    python benchmarks/models.py generate           # speed, and that the numbers agree
    python benchmarks/models.py train              # ms a step, and how much of it is matmul
    python benchmarks/models.py curves -o FOLDER   # cost against context length and steps, as SVG

The naive mode does what the official code does, with our weights and to the same numbers: every
denoising step projects the whole context to keys and values again, computes the modulators for
every row, runs self-attention over a single key, gives the unconditional half a padded context,
and copies the whole cache once a concept although nothing has finished. Both modes take the same
40 steps; the official code's 50 for "40" would add a quarter to its time. "ours" is the model as
loaded for training, "packed" as `load_model(..., packed=True)` gives it. Times are processor
seconds of one thread, the fastest of a few runs, the modes taking turns; random weights serve.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lcm_cli.models.base_lcm import BaseLCM, BaseOptions
from lcm_cli.models.config import BaseConfig, TransformerConfig, TwoTowerConfig
from lcm_cli.models.diffusion import DiffusionOptions, guide, walk
from lcm_cli.models.interface import Batch, ConceptModel, Noise
from lcm_cli.models.layers import Cache
from lcm_cli.models.packed import prepare
from lcm_cli.models.two_tower import DenoiserLayer, TwoTowerLCM

STACK = TransformerConfig(heads=8, inner_dim=1536)
BASE = BaseConfig(model_dim=512, transformer=replace(STACK, layers=8))
TWO_TOWER = TwoTowerConfig(
    model_dim=512,
    contextualizer=replace(STACK, layers=3),
    denoiser=replace(STACK, layers=5, positions="none"),
)


def build(config: BaseConfig | TwoTowerConfig) -> Any:
    """Return a model with random weights, the modulators not zero."""
    torch.manual_seed(0)
    model = BaseLCM(config) if isinstance(config, BaseConfig) else TwoTowerLCM(config)
    for name, parameter in model.named_parameters():
        if "modulator" in name:
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


class NaiveTwoTower:
    """The official way to generate with a Two-Tower."""

    def __init__(self, model: TwoTowerLCM) -> None:
        self.model = model

    @torch.inference_mode()
    def generate(self, prompts: Tensor, count: int, options: DiffusionOptions) -> Tensor:
        """Continue (B, S, D) by `count` concepts."""
        model, rows = self.model, len(prompts)
        noise = Noise([0] * rows)
        cache = Cache(model.config.contextualizer.layers, rows, prompts.shape[1] + count)
        context = model.contextualize(model.normalized(prompts), cache)
        cache.advance(prompts.shape[1])
        made = []
        for _ in range(count):
            x = noise.normal(1, prompts.shape[-1]) * options.initial_noise
            for t, s in walk(model.config.schedule.steps, options):
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
        """Denoise with context and, always, without, (2 B, 1, D)."""
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
    """The official way to generate with a Base-LCM."""

    def __init__(self, model: BaseLCM) -> None:
        self.model = model

    @torch.inference_mode()
    def generate(self, prompts: Tensor, count: int, options: BaseOptions) -> Tensor:
        """Continue (B, S, D) by `count` concepts."""
        model, rows = self.model, len(prompts)
        cache = Cache(model.config.transformer.layers, rows, prompts.shape[1] + count)
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
    """Continue (B, S, D) by `count` concepts, without stopping."""
    state = model.begin(Batch.of(list(prompts)), prompts.shape[1] + count, options)
    noise, made = Noise([0] * len(prompts)), []
    for _ in range(count):
        made.append(model.next(state, noise))
        model.extend(state, made[-1])
    return torch.stack(made, dim=1)


def fastest(runs: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Return the processor seconds of the fastest of some rounds in which all take turns."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return best


def compare_generation(repeats: int) -> None:
    """Print the speed of all modes, and the largest difference relative to the largest value."""
    print("| model | rows | context | naive c/s | ours c/s | packed c/s | ratio | difference |")
    print("|---|---|---|---|---|---|---|---|")
    for name, config, count in (("two-tower", TWO_TOWER, 3), ("base", BASE, 32)):
        model = build(config)
        packed = prepare(copy.deepcopy(model))
        naive = NaiveTwoTower(model) if name == "two-tower" else NaiveBase(model)
        options = model.Options()
        for rows, context in ((1, 32), (1, 128), (8, 32), (8, 128)):
            prompts = torch.randn(rows, context, 1024)
            runs = {
                "naive": partial(naive.generate, prompts, count, options),
                "ours": partial(ours, model, prompts, count, options),
                "packed": partial(ours, packed, prompts, count, options),
            }
            reference = runs["naive"]()
            gaps = [float((run() - reference).abs().max()) for run in runs.values()]
            gap = max(gaps) / float(reference.abs().max())
            seconds = fastest(runs, repeats)
            speeds = " | ".join(f"{rows * count / value:.2f}" for value in seconds.values())
            ratio = seconds["naive"] / seconds["packed"]
            print(f"| {name} | {rows} | {context} | {speeds} | {ratio:.2f} | {gap:.1e} |")


MATMUL = ("aten::addmm", "aten::mm", "aten::bmm", "aten::linear", "scaled_dot_product")


def training_step(model: Any, batch: Batch) -> Callable[[], Tensor]:
    """Return a whole step: forward, backward, clipping, fused AdamW."""
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
    """Print what a training step costs and where the time goes."""
    print("| model | batch | ms a step | matmul |")
    print("|---|---|---|---|")
    for name, config in (("base", BASE), ("two-tower", TWO_TOWER)):
        model = build(config).train()
        step = training_step(model, Batch.of([torch.randn(32, 1024)] * 8))
        step()
        seconds = fastest({"step": step}, repeats)["step"]
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(repeats):
                step()
        events = profiler.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        spent = sum(e.self_cpu_time_total for e in events if any(m in e.key for m in MATMUL))
        print(f"| {name} | 8 x 32 | {1000 * seconds:.0f} | {spent / total:.0%} |")


def curves(folder: Path, repeats: int) -> None:
    """Draw milliseconds a concept against context length (S = 40) and against S (context 32)."""
    contexts, steps = (8, 32, 128, 512, 1024), (5, 10, 20, 40, 80)
    lines: dict[str, dict[str, list[float]]] = {"context": {}, "steps": {}}
    for name, config in (("two-tower", TWO_TOWER), ("base", BASE)):
        model = prepare(build(config))
        options = model.Options()
        lines["context"][name] = [cost(model, length, options, repeats) for length in contexts]
        if name == "two-tower":
            runs = [DiffusionOptions(steps=count) for count in steps]
            lines["steps"][name] = [cost(model, 32, options, repeats) for options in runs]
    for axis, points in (("context", contexts), ("steps", steps)):
        file = folder / f"cost_{axis}.svg"
        file.write_text(draw(axis, points, lines[axis]), encoding="utf-8")
        for name, values in lines[axis].items():
            pairs = zip(points, values, strict=True)
            print(f"{name}, {axis}: " + ", ".join(f"{x}: {y:.1f} ms" for x, y in pairs))


def cost(model: Any, context: int, options: Any, repeats: int) -> float:
    """Return milliseconds to produce one more concept of one document, its prompt read."""
    prompts, count = torch.randn(1, context, 1024), 4

    def read() -> Tensor:
        return ours(model, prompts, 1, options)

    def more() -> Tensor:
        return ours(model, prompts, 1 + count, options)

    seconds = fastest({"read": read, "more": more}, repeats)
    return 1000 * (seconds["more"] - seconds["read"]) / count


COLOURS = ("#0072b2", "#d55e00")


def draw(axis: str, points: Sequence[int], lines: dict[str, list[float]]) -> str:
    """Return a small line chart, both axes logarithmic."""
    left, right, top, bottom = 60, 460, 20, 260
    highest = 10 ** math.ceil(math.log10(max(max(line) for line in lines.values())))
    lowest = 10 ** math.floor(math.log10(min(min(line) for line in lines.values())))

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / points[0]) / math.log(points[-1] / points[0])
        up = math.log(y / lowest) / math.log(highest / lowest)
        return left + across * (right - left), bottom - up * (bottom - top)

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="500" height="310" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="500" height="310" fill="white"/>',
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="black"/>',
        f'<text x="{(left + right) / 2}" y="{bottom + 40}" text-anchor="middle">{axis}</text>',
        f'<text x="{left - 50}" y="{top - 6}">ms a concept</text>',
    ]
    for point in points:
        x, y = place(point, lowest)
        parts.append(f'<text x="{x:.0f}" y="{y + 18:.0f}" text-anchor="middle">{point}</text>')
    value = lowest
    while value <= highest:
        x, y = place(points[0], value)
        parts.append(f'<text x="{x - 6:.0f}" y="{y + 4:.0f}" text-anchor="end">{value:g}</text>')
        value *= 10
    for (name, line), colour in zip(lines.items(), COLOURS, strict=False):
        places = [place(x, y) for x, y in zip(points, line, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = places[0]
        parts.append(f'<text x="{x + 6:.0f}" y="{y - 8:.0f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["generate", "train", "curves"])
    parser.add_argument("-o", "--output", type=Path, default=Path())
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "generate":
        compare_generation(given.repeats)
    elif given.what == "train":
        compare_training(given.repeats)
    else:
        curves(given.output, given.repeats)


if __name__ == "__main__":
    main()
