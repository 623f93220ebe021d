"""Writes a student as one ONNX graph, from token ids to what the service answers, and compares the two.

Shapes: B pairs, T tokens, P perspectives, L latent vectors, D width of one, C labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from cluster.base.errors import UserError
from cluster.base.stage_folder import versions, write_json
from distill.config import StudentConfig
from distill.formats.pairs import FIXED
from distill.student.inputs import encode_pairs
from distill.student.model import Student, load_tokenizer

GRAPH, INT8_GRAPH, MANIFEST, TOKENIZER = "model.onnx", "model-int8.onnx", "onnx.json", "tokenizer.json"
OPSET = 17
TOLERANCE = 1e-4
BATCH = 32


class ServedStudent(nn.Module):
    """What the graph computes: token ids BxT -> score B, probabilities BxC, verdicts BxPxC and latents BxLxD.

    Verdicts are probabilities. The last two are left out where the student has none.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        config = student.config
        self.student, self.temperature = student.eval(), config.temperature
        self.register_buffer("bias", torch.tensor(config.label_bias or [0.0] * len(config.scheme.labels)))
        self.register_buffer("gains", torch.tensor(config.scheme.unit_gains))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        logits, latents, verdicts = self.student(input_ids, attention_mask, token_type_ids)
        probabilities = (logits / self.temperature + self.bias).softmax(-1)
        found = [(probabilities * self.gains).sum(-1).clamp(0, 1), probabilities]
        found += [] if verdicts is None else [verdicts.softmax(-1)]
        return (*found, *([] if latents is None else [latents]))


def outputs_of(student: Student) -> list[str]:
    """Return the names of the graph's outputs."""
    verdicts = ["verdicts"] if student.verdicts is not None else []
    return ["score", "probabilities", *verdicts, *(["latents"] if student.extractor is not None else [])]


def write_onnx(export_dir: Path, target: Path) -> dict[str, Any]:
    """Write graph, tokenizer and manifest into `target`; return the manifest.

    Raises:
        UserError: the packages are missing, the export is damaged, or the graph does not answer like the student.
    """
    require("onnx", "onnxruntime")
    student, tokenizer = Student.load(export_dir), load_tokenizer(export_dir)
    target.mkdir(parents=True, exist_ok=True)
    (target / MANIFEST).unlink(missing_ok=True)
    names = _trace(student, tokenizer, target / GRAPH)
    write_tokenizer(tokenizer, student.config.max_tokens, target)
    differences = largest_differences(student, tokenizer, target / GRAPH, FIXED)
    if not max(differences.values()) <= TOLERANCE:
        raise UserError(f"{target / GRAPH} does not answer like the student: {differences}. Please report this.")
    manifest = describe(student, names) | {"graph": GRAPH, "largest_difference": differences, "compared": len(FIXED)}
    write_json(target / MANIFEST, manifest)
    return manifest


def require(*packages: str) -> None:
    """Raise a `UserError` with the way out where one of the packages is not installed."""
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise UserError(f"{', '.join(missing)} is not installed. Install it with: pip install 'broadfast[formats]'")


def _trace(student: Student, tokenizer: PreTrainedTokenizerBase, path: Path) -> list[str]:
    """Write the graph, whose pairs and tokens may be any number, and return the names of its inputs."""
    student.encoder.set_attn_implementation("eager")
    batch = encode_pairs(tokenizer, FIXED[:3], student.config.max_tokens, student.config.fields)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch]
    outputs = outputs_of(student)
    axes = {name: {0: "pairs", 1: "tokens"} for name in names} | {name: {0: "pairs"} for name in outputs}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the tracer, about shapes that are constant for every pair
        torch.onnx.export(
            ServedStudent(student),
            tuple(batch[name] for name in names),
            str(path),
            dynamo=False,
            input_names=names,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
        )
    return names


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, max_tokens: int, target: Path) -> None:
    """Write `tokenizer.json`, which cuts pairs to `max_tokens` and pads a batch to its longest pair.

    The longer of the two texts is cut first. For a query of at most half the tokens that is what the student does; of a
    longer one it leaves half.
    """
    tokenizer.model_max_length = max_tokens
    tokenizer.save_pretrained(target)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_tokens, strategy="longest_first")
    backend.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    backend.save(str(target / TOKENIZER))
    backend.no_truncation()
    backend.no_padding()


def describe(student: Student, names: Sequence[str]) -> dict[str, Any]:
    """Return what a reader of the graph has to know: inputs, outputs with their shapes, labels and texts."""
    config: StudentConfig = student.config
    labels, perspectives = len(config.scheme.codes), len(config.perspectives)
    shapes: dict[str, list[Any]] = {
        "score": ["pairs"],
        "probabilities": ["pairs", labels],
        "verdicts": ["pairs", perspectives, labels],
        "latents": ["pairs", config.latents, config.target_width],
    }
    return {
        "format": 1,
        "inputs": {name: ["pairs", "tokens"] for name in names},
        "outputs": {name: shapes[name] for name in outputs_of(student)},
        "labels": [
            {"code": label.code, "name": label.name, "gain": gain}
            for label, gain in zip(config.scheme.labels, config.scheme.unit_gains, strict=True)
        ],
        "perspectives": list(config.perspectives),
        "text": f"query, then {config.fields} of the product",
        "max_tokens": config.max_tokens,
        "opset": OPSET,
        "student": config.fingerprint,
        "versions": {name: version for name, version in versions().items() if name in ("torch", "transformers")},
    }


class OnnxStudent:
    """A graph in ONNX Runtime, asked with pairs."""

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerBase, config: StudentConfig, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.tokenizer, self.config = tokenizer, config

    def feeds(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Return the graph's inputs BxT for pairs."""
        batch = encode_pairs(self.tokenizer, pairs, self.config.max_tokens, self.config.fields)
        return {name: batch[name].numpy() for name in self.inputs}

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Return the outputs for pairs by their names, batch by batch."""
        starts = range(0, len(pairs), BATCH)
        parts = [self.session.run(None, self.feeds(pairs[start : start + BATCH])) for start in starts]
        return {
            name: np.concatenate(column) for name, column in zip(self.outputs, zip(*parts, strict=True), strict=True)
        }


def answers(
    student: Student, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """Return what the student in PyTorch says of pairs, by the names of the graph's outputs."""
    served, parts = ServedStudent(student), []
    for start in range(0, len(pairs), BATCH):
        config = student.config
        batch = encode_pairs(tokenizer, pairs[start : start + BATCH], config.max_tokens, config.fields)
        with torch.inference_mode():
            parts.append([part.numpy() for part in served(**batch)])
    return {
        name: np.concatenate(column) for name, column in zip(outputs_of(student), zip(*parts, strict=True), strict=True)
    }


def largest_differences(
    student: Student, tokenizer: PreTrainedTokenizerBase, graph: Path, pairs: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Return by how much at most each output of the graph differs from the student's."""
    found, expected = OnnxStudent(graph, tokenizer, student.config)(pairs), answers(student, tokenizer, pairs)
    return {name: float(np.abs(found[name] - expected[name]).max()) for name in expected}
