"""The command `broadfast`, which runs stages, checks their results, fetches small models, serves and reports."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from cluster.base.errors import UserError
from cluster.base.progress import console
from cluster.base.run_folder import saved_config
from distill.study.config import StudyConfig
from workflows.audit_command import add_audit
from workflows.batch_commands import add_batches
from workflows.candidates_command import add_candidates
from workflows.check_source_command import add_check_source
from workflows.config import RunConfig, load_config, load_study, validate
from workflows.export_command import add_export
from workflows.score_command import add_score
from workflows.serve_commands import Changes, Verbose, add_serving
from workflows.stages import STAGES, stages_of
from workflows.terminal import LOG, clear_errors, quiet
from workflows.watch_command import add_watch
from workflows.writing_commands import add_writing

app = typer.Typer(
    help="Think broad, act fast: a teacher LLM reasons about query-product pairs, and a small student learns from it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
models = typer.Typer(help="List and make local model folders.", no_args_is_help=True)
app.add_typer(models, name="models")

ConfigFile = Annotated[
    Path, typer.Argument(help="a TOML config, such as those in workflows/configs", metavar="CONFIG.toml")
]
Out = Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help="the run folder; by default runs/NAME")]
First = Annotated[Optional[str], typer.Option("--from", metavar="STAGE", help="make this stage and all after it again")]
Last = Annotated[Optional[str], typer.Option("--to", metavar="STAGE", help="stop after this stage")]
RunDir = Annotated[Path, typer.Argument(help="a run folder", metavar="RUN_DIR")]


@app.command()
def run(
    config: ConfigFile,
    changes: Changes = None,
    first: First = None,
    last: Last = None,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    verbose: Verbose = False,
) -> None:
    """Run the pipeline, and skip stages that are finished."""
    with clear_errors():
        settings = load_config(config, changes or ())
    _run(settings, out, first, last, first is not None, dry_run, verbose)


def _run(
    settings: RunConfig, out: Path | None, first: str | None, last: str | None, redo: bool, dry_run: bool, verbose: bool
) -> None:
    from workflows.dry_run import print_dry_run
    from workflows.emulated_bf16 import warn_of_emulated_bf16
    from workflows.runner import run_stages, select

    run_dir = out or Path("runs") / settings.name
    with clear_errors(run_dir / LOG):
        stages = select(first, last, stages_of(settings))
        warn_of_emulated_bf16(settings.cluster, [stage.settings(settings) for stage in stages])
        if dry_run:
            print_dry_run(settings, run_dir, stages, redo)
            return
        with _quiet_in(run_dir, verbose):
            run_stages(settings, run_dir, stages, redo)
            if stages[-1].short == "report":
                from distill.report.terminal import show_report

                show_report(run_dir / stages[-1].name, console())


def _quiet_in(folder: Path, verbose: bool) -> AbstractContextManager[None]:
    """Return a context that sends chatter to the log in `folder`, which is refused if it cannot be written to."""
    from cluster.base.tables import check_writable

    if not verbose:
        check_writable(folder)
    return quiet(None if verbose else folder / LOG)


@app.command()
def plan(
    config: ConfigFile,
    gpu: Annotated[str, typer.Option("--gpu", help="a GPU of cluster/gpus/cards.toml")],
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1)] = 8,
    pairs: Annotated[int, typer.Option(min=1, help="number of judged pairs for which hours are estimated")] = 100_000,
    changes: Changes = None,
) -> None:
    """Estimate what fits on given GPUs and how long it takes; exit with 1 and the way out if something does not fit."""
    from workflows.gpu_plan.tables import print_gpu_plan

    with clear_errors():
        loaded = load_config(config, changes or ())
        print_gpu_plan(loaded, stages_of(loaded), gpu, nodes, gpus_per_node, pairs)


@app.command()
def settings(
    section: Annotated[
        Optional[str], typer.Argument(help="a section or a setting, such as student.train or student.train.epochs")
    ] = None,
    of_study: Annotated[bool, typer.Option("--study", help="show the settings of a study")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="print the JSON schema of the whole file, for editors")
    ] = False,
) -> None:
    """List all sections, or the settings of one with their defaults, bounds and meanings."""
    from workflows.list_settings import file_schema, print_settings

    model = StudyConfig if of_study else RunConfig
    with clear_errors():
        if schema:
            typer.echo(json.dumps(file_schema(model), indent=1))
            return
        print_settings(model, section, console())


@app.command()
def submit(
    config: ConfigFile,
    address: Annotated[str, typer.Option(help="address of the head's dashboard", metavar="http://HEAD:8265")],
    changes: Changes = None,
    first: First = None,
    last: Last = None,
    out: Out = None,
    install: Annotated[
        Optional[str], typer.Option(metavar="EXTRA", help="install the packages of this extra on the nodes first")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="follow the log to the end")] = True,
) -> None:
    """Run the pipeline as a job on a Ray cluster, and end with the exit code of the job."""
    from workflows.submit import plan_submission
    from workflows.submit import submit as send

    with clear_errors():
        code = send(address, plan_submission(config, changes or (), out, first, last, install), wait)
    raise typer.Exit(code)


def _stage_command(name: str, about: str) -> None:
    @app.command(name=name, help=f"Run the stage {name}: {about}.", rich_help_panel="Single stages")
    def command(config: ConfigFile, changes: Changes = None, out: Out = None, verbose: Verbose = False) -> None:
        with clear_errors():
            settings = load_config(config, changes or ())
        _run(settings, out, name, name, False, False, verbose)


for _stage in STAGES:
    if _stage.short not in ("judgements", "export", "report"):
        _stage_command(_stage.short, _stage.about)


@app.command()
def report(run_dir: RunDir, verbose: Verbose = False) -> None:
    """Write the report of a run again, and say where it is."""
    with clear_errors(run_dir / LOG):
        settings = validate(saved_config(run_dir), str(run_dir / "config.json"))
    _run(settings, run_dir, "report", "report", True, False, verbose)


@app.command()
def inspect(
    run_dir: RunDir,
    wanted: Annotated[int, typer.Option("--samples", min=1, help="how many pairs to show of each stage")] = 12,
    page: Annotated[
        Optional[Path],
        typer.Option("--page", metavar="FILE", help="the page to write; by default RUN_DIR/inspect.html"),
    ] = None,
) -> None:
    """Show what the teacher has written so far, in the terminal and as one HTML page."""
    from mpcot.inspect.inspect_data import collect
    from mpcot.inspect.inspect_page import PAGE, write_page
    from mpcot.inspect.terminal import show

    with clear_errors():
        found = collect(run_dir, wanted)
        path = write_page(found, page or run_dir / PAGE)
    show(found, console())
    console().print(f"page: {path}", highlight=False)


@app.command()
def study(
    config: ConfigFile,
    changes: Changes = None,
    out: Out = None,
    tables: Annotated[
        bool, typer.Option("--tables", help="only write the tables again, from the records of finished runs")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Compare LRKD with other ways to teach the student and with controls, and skip runs that are finished."""
    from cluster.base.ray_session import ray_session
    from distill.study.compare import compare
    from distill.study.study import run_study
    from distill.study.study_page import write_study
    from workflows.emulated_bf16 import warn_of_emulated_bf16
    from workflows.runner import locked

    with clear_errors():
        settings = load_study(config, changes or ())
    folder = out or Path("runs") / settings.name
    with clear_errors(folder / LOG), _quiet_in(folder, verbose):
        warn_of_emulated_bf16(settings.cluster, [settings])
        with locked(settings.records), nullcontext() if tables else ray_session(settings.cluster):
            page = write_study(compare(settings, *run_study(settings, make=not tables)), folder)
        console().print(f"study: {page}", highlight=False)


@app.command()
def verify(run_dir: RunDir) -> None:
    """Check every ledger of a run folder; exit with 1 and what is wrong if one does not balance."""
    from workflows.verify import verify_run

    with clear_errors():
        results = verify_run(run_dir)
    table = Table("stage", "rows", "holds", title=str(run_dir))
    for stage, said, wrong in results:
        table.add_row(stage, said, "[red]" + "\n".join(wrong) + "[/red]" if wrong else "[green]yes[/green]")
    console().print(table)
    if any(wrong for _, _, wrong in results):
        raise typer.Exit(1)


@models.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(help="a model of `broadfast models list`")],
    root: Annotated[Path, typer.Option(help="the folder of model folders")] = Path("models"),
    verbose: Verbose = False,
) -> None:
    """Make a local model folder from Python packages."""
    from cluster.models.folders import fetch

    with clear_errors(), quiet(None if verbose else root / LOG):
        folder = fetch(name, root)
        console().print(f"{folder}", highlight=False)


@models.command("list")
def list_models() -> None:
    """List the small models that Python packages contain."""
    from cluster.models.folders import packaged_models

    table = Table("name", "about", "licence")
    for name, model in packaged_models().items():
        table.add_row(name, model.about, model.licence)
    console().print(table)


add_audit(app)
add_check_source(app)
add_candidates(app)
add_serving(app)
add_score(app)
add_watch(app)
add_writing(app, _run)
add_export(app, _run)
add_batches(app)


def main() -> None:
    """Run the command."""
    try:
        app()
    except UserError as error:  # it was raised before a command began
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
