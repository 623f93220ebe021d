"""The service as an application that Ray Serve's own config files name: `import_path: serve.on_ray.application:app`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.serve import Application

from cluster.config import Settings
from serve.config import ServeSettings
from serve.experiments.experiment_service import check_exports
from serve.http.bearer_tokens import read_tokens
from serve.on_ray.deployment import build_app


class ServiceArguments(Settings):
    """`args` of the application. Ray Serve's own config says there where to listen; `settings` does not."""

    export_dir: Path
    settings: ServeSettings = ServeSettings()
    allow_change: bool = False


def app(arguments: dict[str, Any]) -> Application:
    """Return the application for `args`, which are plain data as read from YAML.

    Raises:
        ValidationError: a key is unknown or a value has the wrong type.
        UserError: `export_dir` is not an export folder, or the tokens are unusable.
    """
    given = ServiceArguments.model_validate(arguments)
    check_exports(given.export_dir, given.settings)
    return build_app(given.export_dir, given.settings, read_tokens(given.settings.auth), given.allow_change)
