"""Opens the source that the config names."""

from __future__ import annotations

from mpcot.schemes.scheme import Scheme
from mpcot.sources.catalogue.source import read_catalogue
from mpcot.sources.clean_rows import Cleaning, SourceRows
from mpcot.sources.config import CatalogueSource, SourceSettings


def preflight(source: SourceSettings) -> None:
    """Check that the source's paths exist, before anything is started.

    Raises:
        UserError: a path that does not exist or cannot be opened, by field.
    """
    if isinstance(source, CatalogueSource):
        return
    from mpcot.sources.filesets import check_path

    check_path(source.path, "source.path")
    if source.seeds:
        check_path(source.seeds, "source.seeds")


def read_source(source: SourceSettings, scheme: Scheme) -> SourceRows:
    """Read every row of the source, each cleaned or marked with its error.

    Raises:
        UserError: a path that does not exist, a missing column, a wrong encoding, no rows.
    """
    cleaning = Cleaning(scheme.codes, dict(source.label_map), getattr(source, "default_locale", "us").lower())
    if isinstance(source, CatalogueSource):
        return read_catalogue(source, cleaning)
    from mpcot.sources.files import read_files  # pyarrow's file systems and Ray: only where files are read

    return read_files(source, cleaning)
