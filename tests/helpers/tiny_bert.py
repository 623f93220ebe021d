"""A BERT small enough for unit tests, with a WordPiece tokenizer of its own, as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = (
    "red",
    "blue",
    "drill",
    "lamp",
    "mug",
    "case",
    "phone",
    "shoe",
    "the",
    "is",
    "not",
    "a",
    "shopper",
    "wants",
)
WIDTH = 16


def tiny_tokenizer() -> BertTokenizer:
    """Return a lower-casing WordPiece tokenizer over a few words and all single letters."""
    pieces = [*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))})


def tiny_bert(folder: Path, max_positions: int = 64, layers: int = 2, width: int = WIDTH) -> Path:
    """Write a random BERT and its tokenizer into `folder`; the same weights every time."""
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=max_positions,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = BertModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
