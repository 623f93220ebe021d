"""Checks and reads the source that the config names."""

from __future__ import annotations

from mpcot.schemes.scheme import Scheme
from mpcot.sources.catalogue.source import read_catalogue
from mpcot.sources.clean_rows import Cleaning, SourceRows
from mpcot.sources.config import CatalogueSource, SourceSettings


def preflight(source: SourceSettings) -> None:
    """Check that the paths of the source exist, before anything is started.

    Raises:
        UserError: a path does not exist or cannot be opened.
    """
    if isinstance(source, CatalogueSource):
        return
    from mpcot.sources.filesets import check_path

    check_path(source.path, "source.path")
    if source.seeds:
        check_path(source.seeds, "source.seeds")


def read_source(source: SourceSettings, scheme: Scheme) -> SourceRows:
    """Read every row of the source. A row is cleaned or has an error.

    Raises:
        UserError: a path does not exist, a column is missing, the encoding is wrong, or there are no rows.
    """
    if isinstance(source, CatalogueSource):
        return read_catalogue(source, Cleaning(scheme.codes, source.label_map, "us"))
    from mpcot.sources.files import read_files  # loads pyarrow's file systems, which the catalogue does not need

    locales = None if source.locales is None else frozenset(name.lower() for name in source.locales)
    return read_files(source, Cleaning(scheme.codes, source.label_map, source.default_locale.lower(), locales))
