"""A complete evaluation: all tasks with all systems, the tables, and a record of the settings."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lcm_cli.evaluation import metrics, tables
from lcm_cli.evaluation.examples import Example
from lcm_cli.evaluation.systems import Lineup
from lcm_cli.evaluation.tasks import Context, Record, run_task
from lcm_cli.version import __version__

PACKAGES = ("torch", "numpy", "sacrebleu", "rouge-score", "sonar-space", "transformers")


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    `about` holds what is needed to repeat it: versions, seed, data, space, systems and judges.
    """

    about: dict[str, Any]
    records: list[Record]
    results: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    published: dict[str, Any]
    signatures: dict[str, dict[str, str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the content of metrics.json."""
        return self.about | {
            "results": self.results,
            "tests": self.tests,
            "signatures": self.signatures,
            "published": self.published,
        }


def evaluate(
    lineup: Lineup,
    examples: Sequence[Example],
    context: Context,
    data: dict[str, Any],
    on_task: Callable[[str, str], None] = lambda task, system: None,
) -> Evaluation:
    """Run every task with every system that can do it; the same input gives the same result.

    `data` describes the origin of the examples. `on_task` is called with the task and the name of
    the system before each run. Errors of single examples go to `context.on_error`.
    """
    from lcm_cli.evaluation import roundtrip, spoken

    # All systems read the same documents, cut to what the shortest model can read.
    limits = [system.max_length for system in lineup.of("next-concept")]
    context.longest = min([context.longest, *limits])
    records: list[Record] = []
    results: list[dict[str, Any]] = []
    for task in lineup.tasks:
        for system in lineup.of(task):
            on_task(task, system.name)
            if task == "roundtrip":
                records += roundtrip.run_roundtrip(system, examples, context)
                results += roundtrip.retrieval(system, examples, context)
            elif task == "speech":
                found, retrieved = spoken.run_speech(system, examples, context)
                records += found
                results += retrieved
            else:
                records += run_task(task, system, examples, context)
    codes = sorted({r["to"] for r in records if r.get("target")})
    return Evaluation(
        about=_about(lineup, context) | {"data": data},
        records=records,
        results=tables.results(records, context.seed) + results,
        tests=tables.tests(records, context.seed),
        published=tables.published(lineup.tasks),
        signatures={code: metrics.signatures(code) for code in codes},
    )


def _about(lineup: Lineup, context: Context) -> dict[str, Any]:
    space = context.space
    return {
        "version": __version__,
        "python": platform.python_version(),
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
        "seed": context.seed,
        "space": {"name": space.name, "fingerprint": space.fingerprint},
        "device": str(space.device),
        "precision": space.precision,
        "tasks": list(lineup.tasks),
        "to": list(context.to),
        "systems": {system.name: system.about() for system in lineup.systems},
        "judges": {name: judge.about() for name, judge in context.judges.items()},
        "language_model": context.lm.name if context.lm else None,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
