"""A run folder of seven judged pairs, two of which have a disputed label: what the tests of `audit` read.

| pair | gold | intent | rules | |
| --- | --- | --- | --- | --- |
| 0 | E | E .9 | E .9 | agreed |
| 1 | S | I .8, S .1 | I .6, S .2 | disputed, score .7 - .15 = .55 |
| 2 | I | E .9, I .02 | E .9, I .02 | disputed, score .88 |
| 3 | C | E | S | no agreement |
| 4 | E | S .4, E .3 | S .4, E .3 | against, but not sure: score .1 |
| 5 | E | S | no answer | no agreement |
| 6 | - | E | E | unlabelled |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.stage_folder import StageFolder, write_json
from cluster.base.tables import write_table
from mpcot.pairs.ids import pair_id
from mpcot.records import JUDGEMENT, PAIR

NAMES = ("intent", "rules")
SCRIPT = "<script>alert(1)</script>"
GOLD = ("E", "S", "I", "C", "E", "E", None)
SAID = ("EE", "II", "EE", "ES", "SS", "S-", "EE")
SOFT = (
    ([0.9, 0.05, 0.03, 0.02], [0.9, 0.05, 0.03, 0.02]),
    ([0.05, 0.1, 0.05, 0.8], [0.1, 0.2, 0.1, 0.6]),
    ([0.9, 0.05, 0.03, 0.02], [0.9, 0.05, 0.03, 0.02]),
    ([0.9, 0.05, 0.03, 0.02], [0.05, 0.9, 0.03, 0.02]),
    ([0.3, 0.4, 0.2, 0.1], [0.3, 0.4, 0.2, 0.1]),
    ([0.05, 0.9, 0.03, 0.02], None),
    ([0.9, 0.05, 0.03, 0.02], [0.9, 0.05, 0.03, 0.02]),
)
IDS = tuple(pair_id("us", f"red lamp {n}", f"x{n}") for n in range(len(GOLD)))


def judgements() -> list[dict[str, Any]]:
    """The judgements of the seven pairs."""
    rows = []
    for own, said, soft in zip(IDS, SAID, SOFT, strict=True):
        verdicts = [None if code == "-" else code for code in said]
        row = {"pair_id": own, "vote": said[0], "agreement": 1.0, "soft": soft[0], "verdicts": verdicts}
        texts = [None if code is None else f"[red]{SCRIPT}[/red] because it is {code}." for code in verdicts]
        row["origin"] = [None if code is None else "teacher" for code in verdicts]
        rows.append(row | {"rationales": texts, "perspective_soft": list(soft)})
    return rows


def write_run(run_dir: Path, overrides: Path | None = None) -> Path:
    """Write config, pairs and judgements, and return the run folder."""
    fixed = {"locale": "us", "brand": "Glow", "description": "A lamp.", "attributes": {"colour": "blue"}}
    pairs = [
        fixed
        | {"pair_id": own, "query_id": f"q{n}", "product_id": f"x{n}", "query": f"red lamp {n}", "label": label}
        | {"title": f"lamp {n} {SCRIPT}", "split": "train" if label else "unlabelled"}
        | {"ratings": ["E", "E", "I"] if n == 2 else None}
        for n, (own, label) in enumerate(zip(IDS, GOLD, strict=True))
    ]
    source = {"kind": "catalogue"} | ({"overrides": str(overrides)} if overrides else {})
    config = {"name": "made-up", "teacher": {"model": "models/tiny"}, "labels": {"scheme": "esci"}, "source": source}
    write_json(run_dir / "config.json", config | {"perspectives": {"names": list(NAMES)}})
    for stage, name, rows, schema in (
        ("1-pairs", "pairs", pairs, PAIR),
        ("7-judgements", "judgements", judgements(), JUDGEMENT),
    ):
        folder = StageFolder(run_dir, stage)
        write_table(folder.path / f"{name}.parquet", pa.Table.from_pylist(rows, schema))
        folder.finish({"rows": len(rows)})
    return run_dir
