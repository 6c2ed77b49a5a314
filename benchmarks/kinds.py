"""Train all kinds of concept models with the same budget, and compare their next concepts.

    python examples/space_text RAW data --stories      # RAW: see `--sources`
    python benchmarks/kinds.py --data data/stories.jsonl --out kinds
    python benchmarks/kinds.py two-tower two-tower-flow --data data/stories.jsonl --out kinds

Each kind is trained in the space `tiny`, as by `lcm train`, once for each seed, and scored by `lcm
evaluate --task next-concept`. The training data are the first `TRAINING` stories of the split
"train", the test data the first `TEST` stories of the split "test". All runs have the same steps,
batches, optimizer and learning rates, and about the same number of parameters; the rate is not
tuned to any kind. The same call resumes after an interruption: finished runs and evaluations are
kept in `--out`. OUT/kinds.json has every score, stdout the Markdown tables of all finished rows.

A row is the mean over seeds and stories. Its 95 % interval is from a bootstrap that draws seeds and
stories with replacement. With three seeds it is somewhat narrow: the bootstrap sees two thirds of
the variance between seeds on average.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lcm_cli.models.checkpoint import load_model
from lcm_cli.training.loop import Run
from lcm_cli.training.prepare import prepare_run
from lcm_cli.training.recipes.load import Trained, load_recipe

TRAINING, TEST = 2000, 32  # stories
BATCH = 128  # concepts
WIDTH = 192  # of the models
SPLITS = ("train", "test")
COST = "cost.json"  # of a run; marks it as finished
FEW_STEPS = (4, 10)
SAMPLES = 2000  # of the bootstrap
METRICS = {"l2": "l2", "l2_r": "l2-r", "par": "PAR", "ca": "CA", "mi": "MI"}
Scores = dict[str, dict[str, float]]  # of each story, by its id


@dataclass(frozen=True)
class Kind:
    """A row of the table: `model` is the recipe's [model]; `against` another kind to compare with.

    With `few`, the model is also sampled in FEW_STEPS steps.
    """

    title: str
    model: dict[str, Any]
    against: str = ""
    few: bool = False


FLOW = {"schedule": {"name": "straight", "prediction": "flow"}}
TWO_TOWER = {
    "architecture": "two_tower",
    "contextualizer": {"layers": 2, "heads": 4, "inner_dim": 512},
    "denoiser": {"layers": 1, "heads": 4, "inner_dim": 512},
}
CODEBOOKS = {"codebooks": 16, "units": 256}


def one_stack(architecture: str, inner_dim: int) -> dict[str, Any]:
    """Return the [model] of four layers; their width compensates for parameters elsewhere."""
    stack = {"layers": 4, "heads": 4, "inner_dim": inner_dim}
    return {"architecture": architecture, "transformer": stack}


ONE_TOWER = one_stack("one_tower", 512)
QUANT = one_stack("quant", 560) | CODEBOOKS

KINDS = {
    "base": Kind("Base-LCM", one_stack("base", 592)),
    "two-tower": Kind("Two-Tower", TWO_TOWER, few=True),
    "two-tower-flow": Kind("Two-Tower, flow matching", TWO_TOWER | FLOW, "two-tower", few=True),
    "two-tower-self": Kind(
        "Two-Tower, self-conditioning", TWO_TOWER | {"self_conditioning": True}, "two-tower"
    ),
    "one-tower": Kind("One-Tower", ONE_TOWER, "two-tower"),
    "one-tower-flow": Kind("One-Tower, flow matching", ONE_TOWER | FLOW, "one-tower"),
    "quant-c": Kind("Quant-LCM-c", QUANT | {"flavour": "continuous"}, "quant-d"),
    "quant-d": Kind("Quant-LCM-d", QUANT | {"flavour": "discrete"}),
    "sonar-llm": Kind("SONAR-LLM", one_stack("sonar_llm", 592), "base"),
}
BASELINES = {"copy-last": "last concept repeated", "mean": "mean of all before"}


@dataclass(frozen=True)
class Bench:
    """The folder of the comparison. Each run has a folder in it, with its cost and its scores."""

    folder: Path
    steps: int
    seeds: int
    lm: str

    def name(self, kind: str, seed: int, few: int = 0) -> str:
        """Return the name of a run, or of its model with a sampler of `few` steps."""
        run = f"{kind}-{self.steps}-steps-seed-{seed}"
        return f"{run}-sampled-in-{few}" if few else run

    def scores(self, system: str) -> Scores:
        """Return the scores of a system; empty if it has not been evaluated."""
        file = self.folder / system / "scores.json"
        scores: Scores = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return scores

    def lacks(self, system: str) -> bool:
        """Return whether any score of a system is missing."""
        stories = self.scores(system)
        return not stories or (bool(self.lm) and all("mi" not in x for x in stories.values()))

    def grid(self, systems: Sequence[str], metric: str) -> np.ndarray:
        """Return a score of each system and story, (K, N); NaN where undefined."""
        scores = [self.scores(system) for system in systems]
        rows = [[each[i].get(metric, np.nan) for i in sorted(each)] for each in scores]
        return np.array(rows, dtype=float)


def main() -> None:
    """Train and evaluate what is missing, seed by seed, then print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", help=f"by default all: {', '.join(KINDS)}")
    parser.add_argument("--data", type=Path, required=True, help="stories, in JSON Lines")
    parser.add_argument("--out", type=Path, default=Path("kinds"))
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lm", default="", help="a language model, for MI")
    options = parser.parse_args()
    kinds = options.kinds or list(KINDS)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"unknown kind {unknown[0]!r}; kinds: {', '.join(KINDS)}")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out, options.steps, options.seeds, options.lm)
    prepare(options.data, bench.folder)
    for seed in range(bench.seeds):
        for kind in kinds:
            train(bench, kind, seed)
        systems = [bench.name(kind, seed) for kind in kinds]
        evaluate(bench, [*systems, *(BASELINES if seed == 0 else ())])
    for seed in range(bench.seeds):
        evaluate(bench, [name for kind in kinds for name in few_steps(bench, kind, seed)])
    write_json(bench)
    print_table(bench)
    print_few(bench)
    print_differences(bench)


def prepare(stories: Path, folder: Path) -> None:
    """Write the stories to evaluate on, and embed those to train on."""
    test, train = folder / "test.jsonl", folder / "train.jsonl"
    if not test.exists():
        lines = stories.read_text(encoding="utf-8").splitlines(keepends=True)
        split = {name: [x for x in lines if json.loads(x)["split"] == name] for name in SPLITS}
        train.write_text("".join(split["train"][:TRAINING]), encoding="utf-8")
        test.write_text("".join(split["test"][:TEST]), encoding="utf-8")
    if not (folder / "data" / "manifest.json").exists():
        lcm("embed", train, "-o", folder / "data")
    if not (folder / "quantizer" / "quantizer").exists():
        recipe = {
            "kind": "quantizer",
            "name": "quantizer",
            "data": {"train": [data(folder)]},
            "quantizer": CODEBOOKS | {"concepts": 20_000, "iterations": 10},
        }
        file = folder / "quantizer.json"
        write(file, recipe)
        lcm("train", file, "-o", folder / "quantizer", "--device", "cpu")


def data(folder: Path) -> str:
    """Return the path of the embedded stories."""
    return str((folder / "data").resolve())


def train(bench: Bench, kind: str, seed: int) -> None:
    """Train a kind with a seed, unless that is done."""
    folder = bench.folder / bench.name(kind, seed)
    if (folder / COST).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    file = folder / "given.json"
    write(file, recipe(bench, kind, seed))
    loaded = load_recipe(file)
    assert isinstance(loaded, Trained)
    run = Run(prepare_run(loaded, folder, torch.device("cpu")), folder)
    begun = time.process_time()
    run.train()
    taken = time.process_time() - begun
    model = load_model(str(folder / "model"), device="cpu")
    size = sum(each.numel() for each in model.parameters())
    write(folder / COST, {"processor_seconds": round(taken, 1), "parameters": size})
    print(f"{folder.name}: {taken:.0f} s", file=sys.stderr, flush=True)


def write(file: Path, content: Any) -> None:
    """Write a JSON file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content) + "\n", encoding="utf-8")
    part.replace(file)


def recipe(bench: Bench, kind: str, seed: int) -> dict[str, Any]:
    """Return the recipe of a run."""
    made: dict[str, Any] = {
        "kind": "model",
        "name": kind,
        "data": {"train": [data(bench.folder)], "batch_concepts": BATCH, "packing": True},
        "model": {"model_dim": WIDTH, "max_length": 256} | KINDS[kind].model,
        "train": {
            "steps": bench.steps,
            "learning_rate": 1e-3,
            "schedule": "linear",
            "warmup": bench.steps // 10,
            "final_rate": 0.0,
            "seed": seed,
            "save_every": bench.steps,
            "eval_every": bench.steps,
        },
    }
    if made["model"]["architecture"] == "quant":
        made["quantizer"] = str((bench.folder / "quantizer").resolve())
    return made


def lcm(*arguments: object) -> None:
    """Run a command of lcm with one thread; its output goes to stderr."""
    command = [sys.executable, "-m", "lcm_cli", *map(str, arguments)]
    one = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=sys.stderr, env=one)


def few_steps(bench: Bench, kind: str, seed: int) -> Iterator[str]:
    """Yield the names of copies of a run's model whose samplers take few steps."""
    for steps in FEW_STEPS if KINDS[kind].few else ():
        name = bench.name(kind, seed, steps)
        target = bench.folder / name / "model"
        shutil.copytree(bench.folder / bench.name(kind, seed) / "model", target, dirs_exist_ok=True)
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
        config["sampling"]["steps"] = steps
        write(target / "config.json", config)
        yield name


def evaluate(bench: Bench, systems: Sequence[str]) -> None:
    """Score those of the systems that lack scores."""
    systems = [name for name in systems if bench.lacks(name)]
    if not systems:
        return
    report = bench.folder / f"report-{systems[0]}"
    if not (report / "metrics.json").exists():
        places = [name if name in BASELINES else bench.folder / name for name in systems]
        test, judge = bench.folder / "test.jsonl", ["--lm", bench.lm] if bench.lm else []
        task = ["--task", "next-concept", "--data", test, *judge, "-o", report, "--device", "cpu"]
        lcm("evaluate", *places, *task)
    scores: dict[str, Scores] = {}
    for line in (report / "examples.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        scores.setdefault(Path(record["system"]).name, {})[record["id"]] = record["scores"]
    for system, stories in scores.items():
        write(bench.folder / system / "scores.json", stories)
    shutil.rmtree(report)


def interval(scores_KN: np.ndarray, other_KN: np.ndarray | None = None) -> tuple[float, ...]:
    """Return the mean score with its 95 % interval, or that of the difference to another one.

    Seeds and stories are drawn with replacement. Both grids have the same stories, so a difference
    takes the same ones of either.
    """
    rng = np.random.default_rng(0)
    grids = [scores_KN] if other_KN is None else [scores_KN, other_KN]

    def difference(draw: bool) -> float:
        stories = np.arange(scores_KN.shape[1])
        stories = rng.choice(stories, len(stories)) if draw else stories
        means = []
        for grid in grids:
            seeds = rng.integers(len(grid), size=len(grid)) if draw else np.arange(len(grid))
            means.append(float(np.nanmean(grid[np.ix_(seeds, stories)])))
        return means[0] - sum(means[1:])

    low, high = np.quantile([difference(True) for _ in range(SAMPLES)], [0.025, 0.975])
    return difference(False), float(low), float(high)


def scored(bench: Bench, kind: str, few: int = 0) -> list[str]:
    """Return a kind's evaluated runs, or those of their models with a sampler of `few` steps."""
    names = [bench.name(kind, seed, few) for seed in range(bench.seeds)]
    return [name for name in names if bench.scores(name)]


def write_json(bench: Bench) -> None:
    """Write kinds.json: the cost and the scores of each run."""
    names = [bench.name(kind, seed) for kind in KINDS for seed in range(bench.seeds)]
    names += [
        bench.name(kind, seed, few)
        for kind, row in KINDS.items()
        for seed in range(bench.seeds)
        for few in (FEW_STEPS if row.few else ())
    ]
    made = {
        name: {"cost": cost(bench, name), "scores": scores}
        for name in [*names, *BASELINES]
        if (scores := bench.scores(name))
    }
    write(bench.folder / "kinds.json", made)


def cost(bench: Bench, run: str) -> dict[str, float]:
    """Return the processor time and the parameters of a run; empty for what was not trained."""
    file = bench.folder / run / COST
    found: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    return found


def cells(bench: Bench, systems: Sequence[str], metrics: Sequence[str]) -> str:
    """Return the Markdown cells of a row."""
    made = []
    for metric in metrics:
        grid = bench.grid(systems, metric)
        mean, low, high = interval(grid) if not np.isnan(grid).all() else (np.nan,) * 3
        made.append(f"{mean:.3f} ± {(high - low) / 2:.3f}" if mean == mean else "")
    return " | ".join(made)


def print_table(bench: Bench) -> None:
    """Print a row for each kind that has scores."""
    print("| |", " | ".join(METRICS.values()), "| parameters | processor time | seeds |")
    print("|---" * (len(METRICS) + 4) + "|")
    for kind, row in KINDS.items():
        if systems := scored(bench, kind):
            runs = [cost(bench, name) for name in systems]
            size = runs[0]["parameters"] / 1e6
            taken = np.mean([run["processor_seconds"] for run in runs])
            scores = cells(bench, systems, list(METRICS))
            print(f"| {row.title} | {scores} | {size:.2f}M | {taken:.0f} s | {len(systems)} |")
    for name, title in BASELINES.items():
        if bench.scores(name):
            print(f"| {title} | {cells(bench, [name], list(METRICS))} | | | |")


def print_few(bench: Bench) -> None:
    """Print the scores of samplers with few steps."""
    print("\n| | steps |", " | ".join(METRICS.values()), "|")
    print("|---" * (len(METRICS) + 2) + "|")
    for kind, row in KINDS.items():
        for steps in (*FEW_STEPS, 0) if row.few else ():
            if systems := scored(bench, kind, steps):
                print(f"| {row.title} | {steps or 40} | {cells(bench, systems, list(METRICS))} |")


def print_differences(bench: Bench) -> None:
    """Print the differences of kinds to those that they are compared with."""
    print("\n| difference |", " | ".join(METRICS.values()), "|")
    print("|---" * (len(METRICS) + 1) + "|")
    for kind, row in KINDS.items():
        ours, theirs = scored(bench, kind), scored(bench, row.against)
        if ours and theirs:
            made = []
            for metric in METRICS:
                pair = bench.grid(ours, metric), bench.grid(theirs, metric)
                known = not any(np.isnan(grid).all() for grid in pair)
                made.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval(*pair)) if known else "")
            print(f"| {row.title} - {KINDS[row.against].title} |", " | ".join(made), "|")


if __name__ == "__main__":
    main()
