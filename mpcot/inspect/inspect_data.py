"""Gathers what a run folder has of the teacher's answers into one plain dict, for the terminal and for the page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.base.errors import UsageError
from cluster.base.run_folder import saved_config
from cluster.base.stage_folder import read_manifest
from mpcot.asking.address.meter import usage_said
from mpcot.config import ASKING, AnswerSettings, PerspectiveSettings
from mpcot.inspect import figures
from mpcot.inspect.examples import examples, looked_at
from mpcot.inspect.findings import drawn, findings
from mpcot.inspect.read_answers import read_answers
from mpcot.schemes.scheme import Scheme, load_scheme


@dataclass(frozen=True)
class Kind:
    """A stage that asks the teacher: its section in the config, its title, and names for good and bad answers."""

    section: str
    title: str
    kept: str
    filtered: str


TITLES = {"sft+dpo": "Judgements after DPO", "sft": "Judgements after SFT", "none": "Judgements"}
KINDS = {
    "2-rationales": Kind("rationales", "First rationales", "kept", "filtered"),
    "4-samples": Kind("samples", "Samples after SFT", "kept", "filtered"),
    "7-judgements": Kind("judge", "Judgements", "right", "wrong"),
}


def collect(run_dir: Path, wanted: int) -> dict[str, Any]:
    """Return what there is to show of those of the stages 2, 4 and 7 that a run has, and which are missing.

    Args:
        wanted: the most pairs to show as samples, and as conflicts, of each stage.

    Raises:
        UsageError: this is no run folder, or none of the three stages has finished.
    """
    config = saved_config(run_dir)
    tuning = config["teacher"].get("tuning", "sft+dpo")
    kinds = {
        name: replace(kind, title=TITLES[tuning]) if kind.section == "judge" else kind
        for name, kind in KINDS.items()
        if kind.section in ASKING[tuning]
    }
    missing = {stage: _missing(run_dir / stage) for stage in kinds if read_manifest(run_dir / stage) is None}
    if len(missing) == len(kinds):
        said = ", ".join(f"{stage} {why}" for stage, why in missing.items())
        raise UsageError(
            f"{run_dir} holds no finished answers of the teacher: {said}. Run at least up to the first of them: "
            f"broadfast run CONFIG.toml --to {next(iter(kinds)).partition('-')[2]} --out {run_dir}"
        )
    scheme = load_scheme(config["labels"]["scheme"])
    names = PerspectiveSettings(**config["perspectives"]).names
    stages = [
        _stage(run_dir / stage, kind, scheme, names, wanted) for stage, kind in kinds.items() if stage not in missing
    ]
    shown = {
        "name": config["name"],
        "model": config.get("engine", {}).get("model") or config["teacher"]["model"],
        "scheme": scheme.model_dump(mode="json"),
    }
    return shown | {"perspectives": list(names), "missing": missing, "stages": stages}


def _missing(folder: Path) -> str:
    return "has begun but not finished" if folder.is_dir() else "has not been run"


def _stage(folder: Path, kind: Kind, scheme: Scheme, names: tuple[str, ...], wanted: int) -> dict[str, Any]:
    manifest = read_manifest(folder)
    assert manifest is not None, "the caller looked"
    asked = manifest["settings"].get(kind.section, {})
    ask = AnswerSettings(**{name: asked[name] for name in AnswerSettings.model_fields if name in asked})
    everything, total = read_answers(folder, names)
    answers = everything[~everything["hinted"].astype(bool)]
    found: dict[str, Any] = {
        "stage": folder.name,
        "title": kind.title,
        "words": {"kept": kind.kept, "filtered": kind.filtered},
        "seconds": manifest["seconds"],
        "finished": manifest["finished"],
        "usage": usage_said(used) if (used := manifest["figures"].get("usage")) else None,
        "limits": {"min_chars": ask.min_chars, "max_chars": ask.max_chars},
        "samples_per_pair": ask.samples,
        "counts": figures.counts(answers),
        "hinted": figures.hinted(everything),
        "kept": figures.kept_rates(answers, names, scheme.codes),
        "confusion": figures.confusion(answers, scheme.codes),
        "accuracy": figures.verdict_accuracy(answers, names),
        "agreement": figures.agreement(answers, names, scheme.codes),
        "lengths": figures.lengths(answers, names),
        "reasons": {outcome: figures.reasons(answers, outcome) for outcome in ("filtered", "failed")},
    }
    found["grounded"] = figures.ungrounded(*looked_at(answers, folder, names))
    found["findings"] = [*drawn(len(everything), total), *findings(found, ask, kind.section)]
    return found | examples(answers, folder, names, wanted)
