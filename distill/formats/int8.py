"""Quantises an ONNX graph to int8 with pairs of the run, and says what that costs in macro-F1."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cluster.base.errors import UserError
from cluster.base.stage_folder import read_json, write_json
from distill.formats.onnx_graph import BATCH, GRAPH, INT8_GRAPH, MANIFEST, OnnxStudent
from distill.formats.pairs import Rows, RunPairs
from distill.metrics import label_metrics
from distill.student.model import load_tokenizer, read_student_config

CALIBRATION_PAIRS = 256
# What comes after the encoder takes little time and decides the label, so it stays in fp32.
KEPT_FP32 = ("/extractor", "/classifier", "/verdicts", "/norm")


class PairReader:
    """Hands ONNX Runtime the inputs that it looks at to learn how large activations get."""

    def __init__(self, graph: OnnxStudent, pairs: Rows) -> None:
        parts = (pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH))
        self.feeds: Iterator[dict[str, np.ndarray]] = map(graph.feeds, parts)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, or None after the last."""
        return next(self.feeds, None)


def write_int8(export_dir: Path, target: Path, run: RunPairs) -> dict[str, Any]:
    """Write `model-int8.onnx` beside the graph in `target`, and its figures into the manifest; return the figures.

    Weights of the encoder's products are int8, a scale per column; activations are uint8, with ranges of pairs from the
    training split. The graph is compared on the test split.

    Raises:
        UserError: the run has no training or test pairs with labels.
    """
    config, tokenizer = read_student_config(export_dir), load_tokenizer(export_dir)
    calibration, test = run.of(["train"], CALIBRATION_PAIRS), run.of(["test"])
    if not calibration or not test:
        raise UserError(f"--int8: {run.path} needs pairs in the splits train and test")
    plain = OnnxStudent(target / GRAPH, tokenizer, config)
    _quantise(target, PairReader(plain, calibration))
    quantised = OnnxStudent(target / INT8_GRAPH, tokenizer, config)
    before, after, gold = plain(test), quantised(test), [row["label"] for row in test]
    labels = [[config.scheme.codes[n] for n in found["probabilities"].argmax(1)] for found in (before, after)]
    fp32, int8 = (label_metrics(gold, one)["macro_f1"] or 0.0 for one in labels)
    figures = {
        "graph": INT8_GRAPH,
        "calibration_pairs": len(calibration),
        "test_pairs": len(test),
        "macro_f1": int8,
        "macro_f1_lost": fp32 - int8,
        "labels_kept": float(np.mean(np.array(labels[0]) == np.array(labels[1]))),
        "mean_score_difference": float(np.abs(before["score"] - after["score"]).mean()),
        "bytes": (target / INT8_GRAPH).stat().st_size,
        "bytes_fp32": (target / GRAPH).stat().st_size,
    }
    write_json(target / MANIFEST, read_json(target / MANIFEST) | {"int8": figures})
    return figures


def _quantise(target: Path, reader: PairReader) -> None:
    logging.disable(logging.WARNING)  # it advises a preparation that this graph does not need
    try:
        _quantise_quietly(target, reader)
    finally:
        logging.disable(logging.NOTSET)


def _quantise_quietly(target: Path, reader: PairReader) -> None:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    names = [node.name for node in onnx.load(target / GRAPH, load_external_data=False).graph.node]
    quantize_static(
        target / GRAPH,
        target / INT8_GRAPH,
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        # Without VNNI, sums of two products of 8 bits overflow 16 bits; with 7 bits they do not.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[name for name in names if any(part in name for part in KEPT_FP32)],
        extra_options={"MatMulConstBOnly": True},
    )
