"""Checks and reads the source that the config names."""

from __future__ import annotations

from dataclasses import replace

from mpcot.schemes.scheme import Scheme
from mpcot.sources.catalogue.source import LOCALE as CATALOGUE_LOCALE
from mpcot.sources.catalogue.source import read_catalogue
from mpcot.sources.clean_rows import Cleaning, SourceRows
from mpcot.sources.config import CatalogueSource, EsciSource, SourceSettings


def preflight(source: SourceSettings) -> None:
    """Check that the paths of the source exist, before anything is started.

    Raises:
        UserError: a path does not exist or cannot be opened.
    """
    for name in ("path", "seeds", "judgements", "overrides", "candidates"):
        if path := getattr(source, name, None):
            from mpcot.sources.places import check_path

            check_path(path, f"source.{name}")


def cleaning_of(source: SourceSettings, scheme: Scheme) -> Cleaning:
    """Return what cleaning needs to know of the source and the label scheme."""
    if isinstance(source, CatalogueSource):
        return Cleaning(scheme.codes, source.label_map, CATALOGUE_LOCALE)
    label_map = _esci_names(scheme) | source.label_map if isinstance(source, EsciSource) else source.label_map
    locales = None if source.locales is None else frozenset(name.lower() for name in source.locales)
    return Cleaning(scheme.codes, label_map, source.default_locale.lower(), locales)


def _esci_names(scheme: Scheme) -> dict[str, str]:
    """Return the codes by the names that a copy of ESCI on the Hub has instead."""
    return {label.name: label.code for label in scheme.labels} if scheme.name == "esci" else {}


def read_source(source: SourceSettings, scheme: Scheme) -> SourceRows:
    """Read every row of the source, of its candidates and of its judgements. A row is cleaned or has an error.

    Raises:
        UserError: a path does not exist, a column is missing, the encoding is wrong, or there are no rows.
    """
    cleaning, found = _read(source, scheme)
    if source.candidates is not None:
        from mpcot.sources.candidate_file import with_candidates

        found = with_candidates(found, source.candidates, cleaning)
    if source.judgements is None:
        return found
    from mpcot.sources.judgement_file import read_judgements

    return replace(found, judgements=read_judgements(source.judgements, cleaning))


def _read(source: SourceSettings, scheme: Scheme) -> tuple[Cleaning, SourceRows]:
    cleaning = cleaning_of(source, scheme)
    if isinstance(source, CatalogueSource):
        return cleaning, read_catalogue(source, cleaning)
    from mpcot.sources.files import read_files  # loads pyarrow's file systems, which the catalogue does not need

    return cleaning, read_files(source, cleaning)
