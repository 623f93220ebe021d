"""Settings of the service that cannot work are refused before anything starts."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from serve.config import BatchSettings, LimitSettings, ReplicaSettings, ServeSettings


def test_the_defaults_fit_together():
    settings = ServeSettings()
    assert settings.max_ongoing_requests >= 2 * settings.batch.max_batch_pairs


def test_too_few_ongoing_requests_to_fill_a_batch():
    with pytest.raises(ValidationError, match=r"too few requests to fill a batch.*= 64"):
        ServeSettings(
            max_ongoing_requests=39,
            batch=BatchSettings(max_batch_pairs=32),
            limits=LimitSettings(products_per_request=32),
        )


def test_a_request_must_fit_one_batch():
    with pytest.raises(ValidationError, match="one request must fit one batch"):
        ServeSettings(batch=BatchSettings(max_batch_pairs=100))


def test_replicas_in_order():
    with pytest.raises(ValidationError, match="raise max"):
        ReplicaSettings(min=3, max=2)


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="max_batch_pair"):
        BatchSettings(max_batch_pair=3)


@pytest.mark.parametrize(("threads", "cpus", "expected"), [(None, 4, 4), (None, 0.5, 1), (3, 1, 3)])
def test_model_threads(threads, cpus, expected):
    assert ServeSettings(threads=threads, cpus_per_replica=cpus).model_threads == expected


def test_importing_the_settings_imports_nothing_heavy():
    heavy = ("torch", "ray", "fastapi", "matplotlib", "jinja2")
    code = f"import sys, serve.config, distill.report.config; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
