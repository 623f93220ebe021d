"""A run folder with pairs and an export, for what other formats are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from cluster.base.tables import write_table
from distill.config import Extractor, NoExtractor, PolyExtractor, StudentConfig
from distill.student.model import build_student, load_tokenizer
from mpcot.records import PAIR
from mpcot.schemes.scheme import load_scheme
from tests.helpers.report_run import NAMES
from tests.helpers.tiny_bert import WIDTH, WORDS, tiny_bert

BIAS = (0.3, -0.2, 0.1, -0.2)


def pair_rows(train: int = 96, test: int = 40) -> list[dict[str, Any]]:
    """Pairs with texts that a tiny student tells apart, eight of each query."""
    rows = []
    for n in range(train + test):
        title = " ".join(WORDS[(n * step) % len(WORDS)] for step in range(1, 3 + n % 4))
        row = {"pair_id": f"p{n}", "query_id": f"q{n // 8}", "product_id": f"x{n}", "locale": "us"}
        row |= {"query": f"{WORDS[n % 9]} {WORDS[(n // 8) % 7]}", "title": title, "label": "ESCI"[(n * 7) % 4]}
        rows.append(row | {"split": "train" if n < train else "test"})
    return rows


def format_run(
    folder: Path, extractor: Extractor | None = None, scheme: str = "esci", width: int = WIDTH, **more: Any
) -> Path:
    """Write `1-pairs` and `10-export` into `folder`; return the export, a plain student unless it has an extractor."""
    found = load_scheme(scheme)
    bias = BIAS if scheme == "esci" else ()
    config = StudentConfig(
        scheme=found, perspectives=NAMES, extractor=extractor or NoExtractor(), per_perspective=extractor is not None,
        target_width=8, max_tokens=48, fields="title", temperature=1.7, label_bias=bias, fingerprint="0123456789abcdef",
        **more,
    )  # fmt: skip
    tiny_bert(folder / "bert", width=width)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        student = build_student(str(folder / "bert"), config)
        torch.nn.init.normal_(student.classifier.weight, std=0.5)
        student.save(folder / "10-export", load_tokenizer(folder / "bert"))
    rows = [row | {"label": str(n % 2) if scheme == "binary" else row["label"]} for n, row in enumerate(pair_rows())]
    write_table(folder / "1-pairs" / "pairs.parquet", pa.Table.from_pylist(rows, PAIR))
    return folder / "10-export"


def with_latents() -> Extractor:
    """The extractor of a student with LRKD."""
    return PolyExtractor(codes=4)
