"""What `lcm evaluate` does, between its options and the library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcm_cli import console
from lcm_cli.pipeline import find_languages
from lcm_cli.text.length import Length

from ._problems import Problems
from ._space import LocatedSpace

if TYPE_CHECKING:
    from lcm_cli.evaluation.run import Evaluation
    from lcm_cli.space import Space


@dataclass(frozen=True)
class Request:
    """The options of one call."""

    models: list[str]
    tasks: tuple[str, ...]
    data: str
    columns: tuple[str, str]
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
    """Evaluate, print, and write the report; ends with exit code 1 if a row was broken."""
    from lcm_cli.evaluation.report.write import check_report_folder, write_report
    from lcm_cli.evaluation.systems import check_tasks

    Length.parse(request.length)
    check_tasks(request.tasks)
    if request.output is not None:
        check_report_folder(request.output, request.force)
    problems = Problems()
    place = LocatedSpace(space)
    to = find_languages(request.to, place.languages, place.name)
    rows, about = _rows(request, place, problems)
    found = _evaluate(request, load(place), rows, about, to, problems)
    if json:
        console.emit(found.as_json())
    else:
        _show(found)
    if request.output is not None:
        write_report(found, request.output)
        console.info(f"report: {request.output / 'report.html'}")
    problems.finish()


def _rows(
    request: Request, place: LocatedSpace, problems: Problems
) -> tuple[list[Any], dict[str, Any]]:
    from lcm_cli.evaluation.row_sources import language_of, locate
    from lcm_cli.evaluation.rows import read_rows

    path, about = locate(request.data)
    lang = place.language(request.source)
    lang = language_of(about) or lang if lang == "auto" else lang
    rows = read_rows(
        path,
        place.languages,
        place.name,
        source_column=request.columns[0],
        target_column=request.columns[1],
        lang=lang,
        limit=request.limit,
        on_error=problems,
    )
    without = sum(not row.target for row in rows)
    if without and {"summarize", "expand"} & set(request.tasks):
        console.warn(f"{without} of {len(rows)} rows have no reference to compare with")
    return rows, about | {"rows": len(rows), "broken": len(problems.errors)}


def _evaluate(
    request: Request,
    space: "Space",
    rows: Sequence[Any],
    about: dict[str, Any],
    to: Sequence[str],
    problems: Problems,
) -> "Evaluation":
    from lcm_cli.evaluation.judges import LanguageModel, load_judges
    from lcm_cli.evaluation.report.write import work_path
    from lcm_cli.evaluation.resolve import systems
    from lcm_cli.evaluation.resume import Work
    from lcm_cli.evaluation.run import evaluate
    from lcm_cli.evaluation.space_cache import SharedSpace
    from lcm_cli.evaluation.systems import Settings, line_up
    from lcm_cli.evaluation.tasks import Context

    found = systems(request.models, space, Settings(request.length, request.seed))
    lineup = line_up(found, request.tasks)
    shared = SharedSpace(space)
    work = Work(work_path(request.output) if request.output else None)
    if work.resumed:
        console.info(f"going on: {work.resumed} parts are done already")
    total = len(rows) * sum(len(lineup.of(task)) for task in lineup.tasks)
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
        return evaluate(lineup, rows, context, about, on_task=_tell)


def _tell(task: str, system: str) -> None:
    console.detail(f"{task}: {system}")


def _show(found: "Evaluation") -> None:
    """Print a table for each task: over all languages, and for each where there are several."""
    from lcm_cli.evaluation.tables import printed

    for number, (title, columns, rows) in enumerate(printed(found.results, found.published)):
        if number:
            console.out("")
        console.out(title)
        console.table("", columns, rows)
