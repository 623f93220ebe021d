"""Writes the disputed pairs as one page without outside files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.base.whole_files import whole_file
from cluster.pages.html import page_environment

PAGE = "audit.html"


def write_page(found: Mapping[str, Any], folder: Path) -> Path:
    """Write the page into the folder and return its path.

    Raises:
        UserError: the disk is full, read-only or closed to this user.
    """
    template = page_environment(Path(__file__).parent).get_template("audit.html.j2")
    names = {label["code"]: label["name"] for label in found["scheme"]["labels"]}
    with whole_file(folder / PAGE) as partial:
        partial.write_text(template.render(r=found, names=names), encoding="utf-8")
    return folder / PAGE
