"""A Llama small enough for unit tests, with a byte-level BPE tokenizer of its own, as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<end>", "<system>", "<user>", "<assistant>")
SENTENCES = (
    "You judge how well a product answers a shopper's query.",
    "Query: red drill Product: cordless drill in red, 18 V, with two batteries Brand: Mug",
    "What does the shopper want to do, and does this product do it?",
    "The shopper wants to drill holes; this case only holds a drill, it is not one.",
    "Compare type, brand, model, size, colour and count one by one. Answer for the query and product above.",
    "\nVerdict: E\nVerdict: S\nVerdict: C\nVerdict: I\nVerdict: 0\nVerdict: 1\nVerdict: 2\nVerdict: 3",
)
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
VOCABULARY = 512
WIDTH = 32


def tiny_llama_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows every byte and a few merges; the same one every time."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<pad>")
    made.chat_template = template
    return made


def tiny_llama(folder: Path, tied: bool = True) -> Path:
    """Write a random two-layer Llama of width 32 and its tokenizer into `folder`; the same weights every time."""
    tokenizer = tiny_llama_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
