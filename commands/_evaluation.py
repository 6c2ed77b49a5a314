"""The work of `lcm evaluate`: from its options to tables and a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcm_cli import console
from lcm_cli.errors import UsageError
from lcm_cli.pipeline import find_languages
from lcm_cli.text.length import Length

from ._problems import Problems
from ._space import LocatedSpace

if TYPE_CHECKING:
    from lcm_cli.evaluation.examples import Example
    from lcm_cli.evaluation.run import Evaluation
    from lcm_cli.space import Space


@dataclass(frozen=True)
class Request:
    """The options of `lcm evaluate`."""

    models: list[str]
    tasks: tuple[str, ...]
    data: str
    columns: tuple[str, str]  # of the text and of the reference; empty: by name
    to: list[str]
    source: str
    limit: int | None
    length: str
    judges: list[str]
    lm: str
    seed: int
    output: Path | None
    force: bool


def run_evaluation(
    request: Request, space: str | None, load: Callable[[LocatedSpace], "Space"], json: bool
) -> None:
    """Evaluate, print the tables and write the report; exit with 1 if a row was broken."""
    from lcm_cli.evaluation.report.write import check_report_folder, write_report
    from lcm_cli.evaluation.systems import check_tasks

    Length.parse(request.length)
    check_tasks(request.tasks)
    if request.output is not None:
        check_report_folder(request.output, request.force)
    problems = Problems()
    place = LocatedSpace(space)
    to = find_languages(request.to, place.languages, place.name)
    examples, about = _examples(request, place, problems)
    evaluation = _evaluate(request, load(place), examples, about, to, problems)
    if json:
        console.emit(evaluation.as_json())
    else:
        _show(evaluation)
    if request.output is not None:
        write_report(evaluation, request.output)
        console.info(f"report: {request.output / 'report.html'}")
    problems.finish()


def _examples(
    request: Request, place: LocatedSpace, problems: Problems
) -> tuple[list["Example"], dict[str, Any]]:
    """Read the examples, and return them with the description of the data for metrics.json."""
    from lcm_cli.evaluation.example_sources import language_of, locate
    from lcm_cli.evaluation.examples import read_examples

    path, about = locate(request.data)
    lang = place.language(request.source)
    lang = language_of(about) or lang if lang == "auto" else lang
    if lang == "auto" and request.tasks == ("speech",):
        lang = _spoken(request.models[0])
    examples = read_examples(
        path,
        place.languages,
        place.name,
        source_column=request.columns[0],
        target_column=request.columns[1],
        lang=lang,
        limit=request.limit,
        on_error=problems,
    )
    if "speech" in request.tasks and not any(example.audio for example in examples):
        raise UsageError(
            f"{request.data} has no column 'audio'",
            'a line is an object such as {"audio": "1.wav", "text": "The cat sleeps."}',
        )
    without = sum(not example.target for example in examples)
    if without and {"summarize", "expand"} & set(request.tasks):
        console.warn(f"{without} of {len(examples)} rows have no reference to compare with")
    return examples, about | {"rows": len(examples), "broken": problems.count}


def _spoken(encoder: str) -> str:
    """Return the code of a speech encoder's first language."""
    from lcm_cli.hub.locate import locate_speech
    from lcm_cli.speech.config import read_speech_config

    return read_speech_config(locate_speech(encoder).config).languages[0]


def _evaluate(
    request: Request,
    space: "Space",
    examples: Sequence["Example"],
    about: dict[str, Any],
    to: Sequence[str],
    problems: Problems,
) -> "Evaluation":
    from lcm_cli.evaluation.judges import LanguageModel, load_judges
    from lcm_cli.evaluation.named_systems import load_systems
    from lcm_cli.evaluation.report.write import work_path
    from lcm_cli.evaluation.resume import Work
    from lcm_cli.evaluation.run import evaluate
    from lcm_cli.evaluation.space_cache import SharedSpace
    from lcm_cli.evaluation.systems import Settings, line_up
    from lcm_cli.evaluation.tasks import Context

    settings = Settings(request.length, request.seed)
    lineup = line_up(load_systems(request.models, space, settings), request.tasks)
    shared = SharedSpace(space)
    work = Work(work_path(request.output) if request.output else None)
    if work.resumed:
        console.info(f"resuming: {work.resumed} batches are already done")
    total = len(examples) * sum(len(lineup.of(task)) for task in lineup.tasks)
    with console.progress("evaluating (rows)", total) as advance:
        context = Context(
            space=shared,
            work=work,
            to=tuple(to),
            seed=request.seed,
            judges=load_judges(request.judges, shared),
            lm=LanguageModel(request.lm, str(space.device)) if request.lm else None,
            on_error=problems,
            progress=advance,
        )
        return evaluate(lineup, examples, context, about, on_task=_log_task)


def _log_task(task: str, system: str) -> None:
    console.detail(f"{task}: {system}")


def _show(evaluation: "Evaluation") -> None:
    """Print a table for each task, with a row for each system and language."""
    from lcm_cli.evaluation.tables import printed

    tables = printed(evaluation.results, evaluation.published)
    for number, (title, columns, rows) in enumerate(tables):
        if number:
            console.out("")
        console.out(title)
        console.table("", columns, rows)
