"""Stage 1: makes pairs from the rows of the source, splits them by query, and takes over its seeds and judgements.

Every row of the source ends in `pairs.parquet` or, with a reason, in `failed.parquet`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.errors import UserError
from cluster.base.progress import console
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import table_writer, write_table
from mpcot.config import GivenPairsStage
from mpcot.pairs.given_judgements import write_given
from mpcot.pairs.ids import pair_id
from mpcot.pairs.overlap import overlap_warning
from mpcot.pairs.settle_rows import Row, SettledRows, settled_rows
from mpcot.pairs.splits import LABELLED, unit_hash
from mpcot.records import FAILED_ROW, PAIR, SEED, SPLITS
from mpcot.schemes.scheme import Scheme, load_scheme
from mpcot.sources.clean_rows import SourceRows, failed_json
from mpcot.sources.config import CatalogueSource, PairsStage, SourceSettings
from mpcot.sources.open_source import preflight, read_source


def run(config: PairsStage, folder: StageFolder) -> None:
    """Read the source, and write pairs, seeds, judgements and failed rows.

    Raises:
        UserError: the source cannot be read, too many rows failed, a query is in two splits, or no judgement fits.
    """
    scheme = load_scheme(config.labels.scheme)
    source = read_source(config.source, scheme)
    with settled_rows(config, scheme, folder.path / "settling") as rows:
        rows.take(source)
        _refuse_failed(rows, folder)
        overlap = rows.assign_splits()
        _refuse_failed(rows, folder)
        counts = _counts(rows)
        if not counts["train"]:
            raise UserError("split.train: no labelled training pair is left. Raise it or give more queries")
        _write_pairs(rows, folder)
        seeds, refused = _seeds(source, rows, config)
        write_table(folder.path / "seeds.parquet", pa.Table.from_pylist(seeds, schema=SEED))
        counts["seeds"] = len(seeds)
        figures = _figures(rows, refused, scheme) | {"overlap": overlap}
        if said := overlap_warning(overlap):
            console().print(f"  warning: {said}", style="yellow", highlight=False)
        if source.judgements is not None:
            assert isinstance(config, GivenPairsStage), "the table of stages has it so where source.judgements is set"
            ids = _known_pairs(rows, source.judgements)
            given, figures["judgements"] = write_given(source.judgements, ids, config.perspectives.names, folder.path)
            counts |= given
    if rows.corrected is not None:
        counts["corrected"], figures["overrides"] = rows.corrected["changed"], rows.corrected
    folder.finish(counts, figures)


def check(config: PairsStage) -> None:
    """Check label scheme and paths before anything is started.

    Raises:
        UserError: the label scheme is unknown, or a path does not exist.
    """
    load_scheme(config.labels.scheme)
    preflight(config.source)


def plan_rows(config: PairsStage) -> int | None:
    """Return how many pairs the stage will read, if that is known without reading them."""
    source = config.source
    own, more = source.pairs if isinstance(source, CatalogueSource) else source.limit, _candidates(source)
    return None if own is None or more is None else own + more


def _candidates(source: SourceSettings) -> int | None:
    if source.candidates is None:
        return 0
    from mpcot.sources.candidate_file import count_candidates  # loads pyarrow's file systems

    return count_candidates(source.candidates)


def _refuse_failed(rows: SettledRows, folder: StageFolder) -> None:
    """Write the failed rows. If they are too many, stop, so that the user can look at them."""
    with table_writer(folder.path / "failed.parquet", FAILED_ROW) as writer:
        for texts, decided in rows.texts():
            failed = pc.is_valid(decided["error"])
            if pc.any(failed).as_py():
                writer.write_table(_failed_table(texts.filter(failed), decided.filter(failed)))
    rows.refuse_failed()


def _failed_table(texts: pa.Table, decided: pa.Table) -> pa.Table:
    shown = ("query", "product_id", "locale", "title", "label", "split")
    said = [text["raw"] or failed_json({name: text[name] for name in shown}) for text in texts.to_pylist()]
    return pa.table([texts["source_row"], decided["error"], said], schema=FAILED_ROW)


def _write_pairs(rows: SettledRows, folder: StageFolder) -> None:
    """Write the pairs: what was decided about each, and its texts, which never leave Arrow."""
    decided_of = ("pair_id", "query_id", "label", "split")
    with table_writer(folder.path / "pairs.parquet", PAIR) as writer:
        for texts, decided in rows.texts():
            arrays = [decided[name] if name in decided_of else texts[name] for name in PAIR.names]
            writer.write_table(pa.table(arrays, schema=PAIR).filter(pc.is_null(decided["error"])))


def _counts(rows: SettledRows) -> dict[str, int]:
    """Return the ledger. Every row of the source is in pairs or in failed, exactly once."""
    ((out, good, failed, more),) = rows.sql(
        f"""SELECT count(DISTINCT source_row), count(*) FILTER (error IS NULL), count(error),
        count(*) FILTER (error IS NULL AND source_row >= {rows.own}) FROM rows"""
    )
    assert rows.count == out == good + failed, f"1-pairs: {rows.count} rows read, {out} out, {good} good"
    splits = dict(rows.sql("SELECT split, count(*) FROM rows WHERE error IS NULL GROUP BY split"))
    counts = {"read": rows.count, "pairs": good, "failed": failed} | {name: splits.get(name, 0) for name in SPLITS}
    return counts | ({"candidates": more} if rows.config.source.candidates is not None else {})


def _known_pairs(rows: SettledRows, named: pa.Table) -> dict[str, Row]:
    """Return the `label` and `split` of the pairs that rows of seeds or judgements name, by the pairs' ids."""
    columns = (named[name].to_pylist() for name in ("locale", "query", "product_id"))
    ids = {pair_id(locale, query or "", product or "") for locale, query, product in zip(*columns, strict=True)}
    wanted = pa.table([sorted(ids)], schema=pa.schema([("pair_id", pa.string())]))
    query = "SELECT pair_id, label, split FROM rows SEMI JOIN wanted USING (pair_id) WHERE error IS NULL"
    found = rows.sql(query, wanted=wanted)
    return {pair: {"pair_id": pair, "label": label, "split": split} for pair, label, split in found}


def _seeds(source: SourceRows, rows: SettledRows, config: PairsStage) -> tuple[list[Row], Counter[str]]:
    """Return the seed rationales of training pairs, and the reasons of those that are left out, counted."""
    refused: Counter[str] = Counter()
    if source.seeds is None:
        return [], refused
    by_id = _known_pairs(rows, source.seeds)
    share = config.source.seed_rationale_share if isinstance(config.source, CatalogueSource) else 1.0
    seeded = _seeded([pair for pair in by_id.values() if pair["split"] == "train"], share, config.seed)
    kept: list[Row] = []
    seen: set[tuple[str | None, ...]] = set()
    for seed in source.seeds.to_pylist():
        key = pair_id(seed["locale"], seed["query"] or "", seed["product_id"] or "")
        text = (key, seed["perspective"], seed["rationale"])
        reason = _refusal(seed, by_id.get(key), key in seeded, text in seen)
        if reason:
            refused[reason] += 1
        else:
            seen.add(text)
            kept.append({"pair_id": key} | {name: seed[name] for name in SEED.names[1:]})
    return kept, refused


def _seeded(train: list[Row], share: float, seed: int) -> set[str]:
    """Draw the pairs that have seed rationales, label by label, as a person would cover rare labels as well."""
    drawn: Counter[str] = Counter()
    order: list[tuple[int, str, str]] = []
    for row in sorted(train, key=lambda row: unit_hash("seed rationale", row["pair_id"], seed)):
        order.append((drawn[row["label"]], row["label"], row["pair_id"]))
        drawn[row["label"]] += 1
    return {pair for _, _, pair in sorted(order)[: round(share * len(order))]}


def _refusal(seed: Mapping[str, Any], pair: Row | None, drawn: bool, again: bool) -> str | None:
    if not seed["query"] or not seed["product_id"]:
        return "query or product_id missing"
    if pair is None:
        return "no such pair"
    if pair["split"] != "train":
        return "pair not in train"
    if not seed["rationale"] or not seed["perspective"]:
        return "rationale or perspective missing"
    if seed["verdict"] != pair["label"]:
        return "verdict differs from label"
    return "beyond seed_rationale_share" if not drawn else "duplicate" if again else None


def _figures(rows: SettledRows, refused: Counter[str], scheme: Scheme) -> dict[str, Any]:
    query = "SELECT split, label, count(*) FROM rows WHERE error IS NULL GROUP BY split, label"
    mix = {(split, label): count for split, label, count in rows.sql(query)}
    queries = dict(rows.sql("SELECT split, count(DISTINCT query_id) FROM rows WHERE error IS NULL GROUP BY split"))
    return {
        "labels": {split: {code: mix.get((split, code), 0) for code in scheme.codes} for split in LABELLED},
        "queries": {split: queries.get(split, 0) for split in SPLITS},
        "failed_reasons": rows.reasons(),
        "seeds_left_out": dict(refused),
    }
