"""The commands of `broadfast` for the service: serve an export, roll in another one, report an experiment."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Optional

import typer

from cluster.base.progress import console
from workflows.config import service_config
from workflows.terminal import clear_errors, quiet

Changes = Annotated[
    Optional[list[str]], typer.Option("--set", metavar="a.b=c", help="change one setting; can be repeated")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="also show what Ray and vLLM print")]
SERVE_LOG = Path("runs") / "serve.log"


def add_serving(app: typer.Typer) -> None:
    """Add these commands to the command `broadfast`."""
    app.command()(serve)
    app.command()(roll)
    experiment = typer.Typer(help="Evaluate online experiments.", no_args_is_help=True)
    experiment.command("report")(report_experiment)
    app.add_typer(experiment, name="experiment")


def serve(
    export_dir: Annotated[
        Path, typer.Argument(help="an export folder, such as RUN_DIR/10-export", metavar="EXPORT_DIR")
    ],
    config: Annotated[
        Optional[Path],
        typer.Option("--config", help="the TOML config of a run, or one with the sections serve and cluster alone"),
    ] = None,
    changes: Changes = None,
    verbose: Verbose = False,
) -> None:
    """Serve a student over HTTP until Ctrl-C or SIGTERM."""
    from cluster.base.ray_session import ray_session
    from serve.on_ray.proxy import use_ingress
    from workflows.emulated_bf16 import warn_of_emulated_bf16

    with clear_errors():
        settings = service_config(config, changes or ())
        use_ingress(settings.serve)
        warn_of_emulated_bf16(settings.cluster, [settings])
    from serve.on_ray.running_service import serve_export

    def ready(url: str) -> None:
        console().print(f"listening on {url}, docs at {url}/docs")

    # Whoever collects a service's output, such as a container or systemd, gets all of it.
    log = SERVE_LOG if sys.stdout.isatty() and not verbose else None
    with clear_errors(SERVE_LOG), quiet(log), ray_session(settings.cluster):
        serve_export(export_dir, settings.serve, ready)


def roll(
    export_dir: Annotated[Path, typer.Argument(help="the export that answers from now on", metavar="EXPORT_DIR")],
    address: Annotated[
        str, typer.Option(help="address of the Ray that serves; auto takes the one on this machine")
    ] = "auto",
    allow_change: Annotated[
        bool,
        typer.Option(
            "--allow-change",
            help="also if it has other labels or perspectives, or lacks verdicts or the index for explanations",
        ),
    ] = False,
    judge: Annotated[
        Optional[int],
        typer.Option("--judge", min=1, metavar="N", help="only if the teacher finds it no worse on N logged pairs"),
    ] = None,
    hours: Annotated[float, typer.Option("--hours", min=0, help="with --judge, of how many hours until now")] = 24.0,
    run_dir: Annotated[
        Optional[Path],
        typer.Option("--run", metavar="RUN_DIR", help="with --judge, the run whose teacher judges; by default its own"),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Roll a new export into the running service without failed requests, and back if it does not load."""
    from cluster.base.ray_session import ray_session
    from cluster.config import ClusterSettings

    with clear_errors(SERVE_LOG), quiet(None if verbose else SERVE_LOG), ray_session(ClusterSettings(address=address)):
        from serve.on_ray.rollout import roll_export

        if judge is not None:
            _judge(run_dir or export_dir.resolve().parent, export_dir, judge, hours)
        replicas = roll_export(export_dir, allow_change=allow_change)
        console().print(f"{len(replicas)} replicas answer with {export_dir}", highlight=False)


def _judge(run_dir: Path, export_dir: Path, pairs: int, hours: float) -> None:
    """Refuse an export that is worse by the votes of the run's teacher; the same call on the same day goes on."""
    from serve.scoring.scorer import export_name
    from serve.watching.sample import Wish
    from workflows.judging import refuse_worse

    now = datetime.now(UTC)
    name = f"roll-{now:%Y-%m-%d}-{export_name(export_dir)}"
    refuse_worse(run_dir, export_dir, Wish(pairs, now - timedelta(hours=hours), seed=name))


def report_experiment(
    exposures: Annotated[Path, typer.Argument(help="the folder that the service wrote", metavar="EXPOSURES")],
    outcomes: Annotated[Path, typer.Argument(help="a file with request_id and outcome", metavar="OUTCOMES")],
    control: Annotated[str, typer.Option(metavar="ARM", help="the arm to compare with")] = "control",
    plot: Annotated[Path, typer.Option(metavar="FILE", help="the plot to write, as svg, png or pdf")] = Path(
        "experiment.svg"
    ),
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="confidence level of the intervals")] = 0.95,
    primary: Annotated[
        Optional[str], typer.Option(metavar="OUTCOME", help="the outcome that decides; by default all together do")
    ] = None,
    since: Annotated[
        Optional[datetime], typer.Option(help="leave out what was before this time (UTC), such as a ramp")
    ] = None,
) -> None:
    """Report rates and lifts of the arms with intervals, and whether units were dealt as planned."""
    from serve.experiments.report_tables import report_experiment as print_report

    with clear_errors():
        print_report(exposures, outcomes, plot, control, level, primary, since)
