"""Which arm answers a unit (a shopper, a session): a hash of experiment, salt and unit id, and nothing else."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from itertools import accumulate
from pathlib import Path

import xxhash

from cluster.base.errors import UserError
from cluster.base.whole_files import disk_error
from serve.experiments.config import Arm, ExperimentSettings

SECRET, SECRET_BYTES = "unit-secret", 32


def position(experiment: ExperimentSettings, unit_id: str) -> float:
    """Return the unit's place in [0, 1): uniform over units, independent between experiments and salts."""
    # Each part has its length before it, so that no two experiments and units make the same text.
    parts = (experiment.name, experiment.salt, unit_id)
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return xxhash.xxh3_64_intdigest(text.encode()) / 2**64


def assign(experiment: ExperimentSettings, unit_id: str) -> Arm:
    """Return the arm that answers this unit; it is always the same one.

    The first arm has what the others leave. Each other arm begins at a place of its own, and grows and shrinks there
    with its share, so that a ramp moves units between it and the first arm alone. Only what exceeds its equal part of
    all places is taken from the end of what the others leave.
    """
    control, *others = [arm for arm in experiment.arms if not arm.shadow]
    if not others:
        return control
    place, slot = position(experiment, unit_id), 1 / len(others)
    own = min(int(place / slot), len(others) - 1)
    if place - own * slot < others[own].share:
        return others[own]
    left_behind = (own + 1) * slot - place + sum(max(0.0, slot - arm.share) for arm in others[own + 1 :])
    beyond = accumulate(max(0.0, arm.share - slot) for arm in others)
    return next((arm for arm, end in zip(others, beyond, strict=True) if left_behind <= end), control)


def shadows(experiment: ExperimentSettings) -> list[Arm]:
    """Return the arms that score every request and answer none."""
    return [arm for arm in experiment.arms if arm.shadow]


def unit_digest(secret: bytes, unit_id: str) -> str:
    """Return what stands for the unit in the exposures; without the secret, nobody can try out ids."""
    return hmac.new(secret, unit_id.encode(), hashlib.sha256).hexdigest()[:32]


def unit_secret(folder: Path, experiment: ExperimentSettings) -> bytes:
    """Return the secret of the variable in the settings, or else that of the folder, which is made if need be.

    Raises:
        UserError: the variable is not set, or the secret cannot be written or read.
    """
    if variable := experiment.unit_secret_env:
        if secret := os.environ.get(variable):
            return secret.encode()
        raise UserError(f"serve.experiment.unit_secret_env {variable}: the variable is not set where the service runs")
    path = folder / SECRET
    made = folder / f".{SECRET}-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
        try:
            os.link(made, path)  # fails where another process was first, whose secret counts
        except FileExistsError:
            pass
        finally:
            made.unlink()
        return path.read_bytes()
    except OSError as error:
        raise disk_error(error, path) from error
