"""Prepares the pairs of all contestants, and the same weights in the form that each contestant loads.

The student is trained for some minutes on the labels of the invented catalogue, so that its answers are worth
comparing; its verdict heads learn the label too. Peers load the same encoder with a plain classifier of four labels, or
with a head of one label if they take no other.
"""

from __future__ import annotations

import copy
import json
import random
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import BertForSequenceClassification

from cluster.models.folders import check_model
from distill.config import Extractor, PolyExtractor, StudentConfig
from distill.student.inputs import encode_pairs
from distill.student.model import CONFIG, Student, build_student, load_tokenizer
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.catalogue.make_pairs import make_pairs

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "all-minilm-l6-v2"
FOLDER = ROOT / "runs" / "benchmark-serving"
TRAIN, HELD_OUT, BATCH, EPOCHS = 2000, 2000, 32, 4
Pairs = list[dict[str, Any]]


def make_pairs_of_real_length(seed: int = 1) -> Pairs:
    """Return labelled pairs of the catalogue that are about as long as those of the Shopping Queries Dataset.

    There, 5, 50 and 95 % of the us pairs have at most 15, 34 and 58 MiniLM tokens. The catalogue's titles are shorter,
    so a random number of words from other products' descriptions, which say nothing about the label, follows them.
    """
    rng, found = random.Random(seed), make_pairs(TRAIN + HELD_OUT, 8, 0.5, seed)
    words = cycle(word for pair in found for word in pair.product.description.split())
    return [
        {
            "id": str(i),
            "query": pair.query.text,
            "title": pair.product.title,
            "description": " ".join(islice(words, min(60, round(rng.lognormvariate(2.6, 0.6))))),
            "label": pair.judgement.label,
        }
        for i, pair in enumerate(found)
    ]


def prepare(pairs: Pairs) -> Path:
    """Train and save all forms unless they are there already; return their folder, which has `pairs.json` too."""
    (FOLDER / "peer").mkdir(parents=True, exist_ok=True)
    (FOLDER / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    if not (FOLDER / "export" / CONFIG).is_file():
        student, tokenizer = trained(pairs[:TRAIN]), load_tokenizer(MODEL)
        for name, labels in (("peer", len(student.config.scheme.labels)), ("peer-one-label", 1)):
            save_peer(student, FOLDER / name, labels)
            tokenizer.save_pretrained(FOLDER / name)
        student.save(FOLDER / "export", tokenizer)
    return FOLDER


def untrained(extractor: Extractor) -> Student:
    """Return a student with this extractor, before its training."""
    config = StudentConfig(
        scheme=load_scheme("esci"),
        perspectives=("intent", "attributes", "rules"),
        extractor=extractor,
        per_perspective=extractor.kind != "none",
        target_width=384,
        max_tokens=128,
        fields="title+description",
    )
    return build_student(check_model("benchmark", str(MODEL)), config)


def trained(pairs: Pairs) -> Student:
    """Train a student on labels for `EPOCHS` epochs of `pairs`."""
    torch.manual_seed(0)
    student, tokenizer = untrained(PolyExtractor()).train(), load_tokenizer(MODEL)
    config = student.config
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-4, fused=True)
    steps = EPOCHS * len(pairs) // BATCH
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        chosen = [pairs[(step * BATCH + i) % len(pairs)] for i in range(BATCH)]
        labels = torch.tensor([config.scheme.codes.index(pair["label"]) for pair in chosen])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = student(**encode_pairs(tokenizer, chosen, config.max_tokens, config.fields))
        loss = torch.nn.functional.cross_entropy(output.logits.float(), labels)
        verdicts = output.perspective_logits.float().transpose(1, 2)
        loss = loss + 0.1 * torch.nn.functional.cross_entropy(verdicts, labels[:, None].expand(-1, verdicts.shape[2]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return student.eval()


def save_peer(student: Student, folder: Path, labels: int) -> None:
    """Write the student's encoder with a plain classifier of so many labels, as other libraries load it."""
    config = copy.deepcopy(student.encoder.config)
    config.num_labels = labels
    peer = BertForSequenceClassification(config)
    peer.bert.load_state_dict(student.encoder.state_dict(), strict=False)  # the pooler stays random
    peer.save_pretrained(folder)
