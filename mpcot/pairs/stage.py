"""Stage 1: makes pairs from the rows of the source, splits them by query, and takes over its seeds and judgements.

Every row of the source ends in `pairs.parquet` or, with a reason, in `failed.parquet`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.base.errors import UserError
from cluster.base.progress import console
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import write_table
from mpcot.config import GivenPairsStage
from mpcot.pairs.given_judgements import write_given
from mpcot.pairs.ids import pair_id
from mpcot.pairs.settle_rows import KEYS, Row, assign_splits, identify, overlap_warning, reasons, refuse_failed
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
    rows = source.rows.select(KEYS).to_pylist()
    own = len(rows) - source.candidates
    corrected = identify(rows, own, config, scheme)
    _settle_failed(config, source.rows, rows, folder)
    overlap = assign_splits(rows, config)
    failed = _settle_failed(config, source.rows, rows, folder)
    pairs = [row for row in rows if not row["error"]]
    if not any(row["split"] == "train" for row in pairs):
        raise UserError("split.train: no labelled training pair is left. Raise it or give more queries")
    seeds, refused = _seeds(source, pairs, config)
    write_table(folder.path / "pairs.parquet", _pair_table(source.rows, pairs))
    write_table(folder.path / "seeds.parquet", pa.Table.from_pylist(seeds, schema=SEED))
    _check_ledger(len(rows), pairs, failed)
    counts = {"read": len(rows), "pairs": len(pairs), "failed": len(failed), "seeds": len(seeds)}
    counts |= {split: sum(row["split"] == split for row in pairs) for split in SPLITS}
    if config.source.candidates is not None:
        counts["candidates"] = sum(row["source_row"] >= own for row in pairs)
    figures = _figures(pairs, failed, refused, scheme) | {"overlap": overlap}
    if said := overlap_warning(overlap):
        console().print(f"  warning: {said}", style="yellow", highlight=False)
    if source.judgements is not None:
        assert isinstance(config, GivenPairsStage), "the table of stages has it so where source.judgements is set"
        ids = {row["pair_id"] for row in pairs}
        given, figures["judgements"] = write_given(source.judgements, ids, config.perspectives.names, folder.path)
        counts |= given
    if corrected is not None:
        counts["corrected"], figures["overrides"] = corrected["changed"], corrected
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


def _source_rows(source: pa.Table, rows: list[Row]) -> pa.Table:
    """Return the texts of the rows, which have the order of the source. `take` would join the chunks of columns."""
    wanted = np.zeros(len(source), bool)
    wanted[[row["source_row"] for row in rows]] = True
    return source.filter(pa.array(wanted))


def _failed_table(source: pa.Table, failed: list[Row]) -> pa.Table:
    texts = _source_rows(source, failed).to_pylist()
    shown = ("query", "product_id", "locale", "title", "label", "split")
    made = [
        {
            "source_row": row["source_row"],
            "reason": row["error"],
            "row": text["raw"] or failed_json({name: text[name] for name in shown}),
        }
        for row, text in zip(failed, texts, strict=True)
    ]
    return pa.Table.from_pylist(made, schema=FAILED_ROW)


def _pair_table(source: pa.Table, pairs: list[Row]) -> pa.Table:
    """Return the pairs: what was decided about each, and its texts, which never leave Arrow."""
    texts = _source_rows(source, pairs)
    decided = ("pair_id", "query_id", "label", "split")
    columns = {name: pa.array([row[name] for row in pairs], pa.string()) for name in decided}
    arrays = [columns[name] if name in decided else texts[name] for name in PAIR.names]
    return pa.table(arrays, schema=PAIR)


def _settle_failed(config: PairsStage, source: pa.Table, rows: list[Row], folder: StageFolder) -> list[Row]:
    """Write and return the failed rows. If they are too many, stop, so that the user can look at them."""
    failed = [row for row in rows if row["error"]]
    write_table(folder.path / "failed.parquet", _failed_table(source, failed))
    refuse_failed(rows, config)
    return failed


def _seeds(source: SourceRows, pairs: list[Row], config: PairsStage) -> tuple[list[Row], Counter[str]]:
    """Return the seed rationales of training pairs, and the reasons of those that are left out, counted."""
    by_id = {row["pair_id"]: row for row in pairs}
    share = config.source.seed_rationale_share if isinstance(config.source, CatalogueSource) else 1.0
    seeded = _seeded([row for row in pairs if row["split"] == "train"], share, config.seed)
    kept: list[Row] = []
    refused: Counter[str] = Counter()
    seen: set[tuple[str | None, ...]] = set()
    for seed in source.seeds.to_pylist() if source.seeds is not None else ():
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


def _check_ledger(read: int, pairs: list[Row], failed: list[Row]) -> None:
    """Check that every row of the source is in pairs or in failed, exactly once."""
    ids = [row["source_row"] for row in pairs] + [row["source_row"] for row in failed]
    doubled = [row for row, count in Counter(ids).items() if count > 1]
    assert len(ids) == read and not doubled, f"1-pairs: {read} rows read, {len(ids)} out, doubled {doubled[:5]}"


def _figures(pairs: list[Row], failed: list[Row], refused: Counter[str], scheme: Scheme) -> dict[str, Any]:
    mix = {split: Counter(row["label"] for row in pairs if row["split"] == split) for split in LABELLED}
    return {
        "labels": {split: {code: mix[split][code] for code in scheme.codes} for split in LABELLED},
        "queries": {split: len({r["query_id"] for r in pairs if r["split"] == split}) for split in SPLITS},
        "failed_reasons": reasons(failed),
        "seeds_left_out": dict(refused),
    }
