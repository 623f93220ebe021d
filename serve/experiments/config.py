"""Settings of an online experiment, which compares named arms over exports. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, NonNegativeFloat, model_validator

from cluster.config import Resources
from serve.parts.config import PartSettings

ARM_HEADER = "X-Arm"  # names the arm that shall answer a request whoever asks, which is then no exposure


class Arm(Resources):
    """One variant: an export folder, and the share of the units that it answers."""

    name: str = Field(pattern=r"^[\w.-]+$", description="names the arm in exposures and reports")
    export: str = Field(description="export folder")
    share: NonNegativeFloat = Field(0.0, description="share of the units that the arm answers; 0 for a shadow arm")
    shadow: bool = Field(
        False, description="the arm scores every request beside the one that answers, and answers none itself"
    )


class ExperimentSettings(PartSettings):
    """An experiment. The same name, salt and shares give a unit the same arm on every replica and every day."""

    name: str = Field(
        pattern=r"^[\w.-]+$", description="names the experiment in exposures; under another name, units are dealt again"
    )
    salt: str = Field("1", description="with another salt, units are dealt again, for the next experiment of this name")
    unit_secret_env: str | None = Field(
        None,
        description="name of an environment variable with the secret by which units are digested; empty keeps a random"
        " one in the folder, which only the service's user can read",
    )
    arms: tuple[Arm, ...] = Field(description="the arms, including shadow arms")
    unit_header: str = Field("X-Unit-ID", description="header of a request that names the unit: a shopper, a session")
    allow_change: bool = Field(
        False, description="arms may have other labels or perspectives, or lack verdicts or explanations"
    )
    folder: Path = Field(Path("runs/exposures"), description="where exposures are written; all replicas may share it")

    @model_validator(mode="after")
    def _check(self) -> ExperimentSettings:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"experiment.arms: the names must differ, but {names} are given")
        answering = [arm for arm in self.arms if not arm.shadow]
        total = sum(arm.share for arm in answering)
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"experiment.arms: the shares of the arms that answer must add up to 1, but they add up to {total:g}"
            )
        for arm in answering:
            if not arm.share:
                raise ValueError(f"experiment.arms: {arm.name} has no share: give it one, or set shadow = true")
        if shared := [arm.name for arm in self.arms if arm.shadow and arm.share]:
            raise ValueError(f"experiment.arms: {shared[0]} is a shadow with a share: set share to 0")
        return self
