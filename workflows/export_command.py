"""The command `broadfast export`: the stage of a run, or a finished export in a format that others load."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from cluster.base.errors import UsageError
from cluster.base.progress import console
from workflows.config import load_config
from workflows.serve_commands import Changes, Verbose
from workflows.terminal import clear_errors


class Format(StrEnum):
    """What an export can become."""

    ONNX = "onnx"
    CLASSIFIER = "sequence-classification"


class HeadKind(StrEnum):
    """What a plain classifier answers with."""

    LABELS = "labels"
    SCORE = "score"


def add_export(app: typer.Typer, run: Callable[..., Any]) -> None:
    """Add the command. `run` runs stages, since `export` is also the name of one."""

    @app.command(rich_help_panel="Single stages")
    def export(
        place: Annotated[Path, typer.Argument(help="a TOML config, or an export", metavar="CONFIG.toml|EXPORT_DIR")],
        changes: Changes = None,
        out: Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help="the folder to write")] = None,
        to: Annotated[Optional[Format], typer.Option("--to", help="the format of a finished export")] = None,
        run_dir: Annotated[
            Optional[Path],
            typer.Option("--run", metavar="RUN_DIR", help="whose pairs to use; by default the run of the export"),
        ] = None,
        int8: Annotated[bool, typer.Option("--int8", help="onnx: also as int8, calibrated on training pairs")] = False,
        head: Annotated[
            HeadKind, typer.Option(help="sequence-classification: a logit per label, or one whose sigmoid is the score")
        ] = HeadKind.LABELS,
        epochs: Annotated[
            int, typer.Option(min=1, help="sequence-classification: passes if it has to be distilled")
        ] = 3,
        licence: Annotated[
            Optional[str], typer.Option(metavar="NAME", help="sequence-classification: for the model card")
        ] = None,
        verbose: Verbose = False,
    ) -> None:
        """Run the stage export, or write a finished export as ONNX or as a plain classifier for other programs."""
        with clear_errors():
            if to is None:
                if place.is_dir():
                    raise UsageError(f"{place} is a folder: say with --to which format it is to be written in")
                settings = load_config(place, changes or ())
            else:
                target = out or place / to.value
                said = _write(place, target, to, run_dir, int8, head, epochs, licence)
                console().print(f"{target}: {said}", highlight=False)
                return
        run(settings, out, "export", "export", False, False, verbose)


def _write(
    export_dir: Path, target: Path, to: Format, run_dir: Path | None, int8: bool, head: HeadKind, epochs: int,
    licence: str | None,
) -> str:  # fmt: skip
    """Write the export in another format, and return what there is to say about it."""
    from distill.formats.pairs import RunPairs

    whose = run_dir or export_dir.resolve().parent
    has_pairs = run_dir is not None or (whose / "1-pairs" / "pairs.parquet").is_file()
    if to is Format.ONNX:
        from distill.formats.int8 import write_int8
        from distill.formats.onnx_graph import write_onnx

        found = max(write_onnx(export_dir, target)["largest_difference"].values())
        said = f"one graph, at most {found:.1e} from the student's answers"
        if int8:
            figures = write_int8(export_dir, target, RunPairs(whose))
            said += f"; int8 loses {100 * figures['macro_f1_lost']:.1f} points of macro-F1"
        return said
    from distill.formats.classifier import Teaching
    from distill.formats.classifier_folder import write_classifier

    run = RunPairs(whose) if has_pairs else None
    figures = write_classifier(export_dir, target, head.value, run, Teaching(epochs=epochs), licence)
    how = "folded exactly" if figures["exact"] else f"distilled on {figures['distilled_on']:,} pairs"
    return f"{how}, scores {figures['mean_score_difference']:.1e} from the student's on average"
