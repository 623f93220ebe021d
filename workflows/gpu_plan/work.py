"""How much work each stage has for a number of pairs: its rows, and the longest that the settings allow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpcot.asking.address.estimate import Estimate
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.config import AnswerSettings, JudgeSettings, SortedSettings
from mpcot.sources.candidate_file import count_candidates
from workflows.config import RunConfig

CHARS_PER_TOKEN = 4
SYSTEM_TOKENS = {"full": 400, "short": 100}  # an assumption for the system text, by `guide`
PAIR_TOKENS = 100  # an assumption for query, title and the template
QUESTION_TOKENS = 100  # an assumption for a perspective's question with its rules, and for a worked example's pair


@dataclass(frozen=True)
class Work:
    """The largest number of rows, the tokens of a row, and how many of these have their logits computed."""

    rows: int
    unit: str
    tokens: int
    learnt: int = 0


def answer_tokens(ask: AnswerSettings) -> int:
    """Return the tokens of the longest answer that both `max_chars` and `max_tokens` allow."""
    return min(ask.max_tokens, ask.max_chars // CHARS_PER_TOKEN + 8)


def prompt_tokens(ask: AnswerSettings) -> int:
    """Return an estimate of the tokens of a prompt, from pair, description, question and worked examples."""
    examples = ask.few_shot * (QUESTION_TOKENS + answer_tokens(ask))
    return _pair_tokens(ask) + QUESTION_TOKENS + examples


def _pair_tokens(ask: AnswerSettings) -> int:
    return SYSTEM_TOKENS[ask.guide] + PAIR_TOKENS + ask.description_chars // CHARS_PER_TOKEN


def split_sizes(config: RunConfig, pairs: int) -> dict[str, int]:
    """Return the number of pairs in each split. Candidates of a parquet file come to the unlabelled ones."""
    split = config.split
    hidden = split.train * split.unlabelled
    shares = {"train": split.train - hidden, "dev": split.dev, "test": split.test, "unlabelled": hidden}
    sizes = {name: round(pairs * share) for name, share in shares.items()}
    return sizes | {"unlabelled": sizes["unlabelled"] + (count_candidates(config.source.candidates) or 0)}


def pairs_asked(config: RunConfig, ask: AnswerSettings, pairs: int) -> int:
    """Return how many pairs a generation asks about, from its splits and within `pairs_per_split`."""
    sizes = split_sizes(config, pairs)
    if isinstance(ask, JudgeSettings) and ask.budget_pairs is not None:
        sizes["unlabelled"] = min(sizes["unlabelled"], ask.budget_pairs)
    return sum(min(sizes[name], ask.pairs_per_split or sizes[name]) for name in ask.splits)


def generated(config: RunConfig, ask: AnswerSettings, pairs: int) -> int:
    """Return the number of answers of a generation; a hinted retry may ask again about every training pair."""
    asked = pairs_asked(config, ask, pairs) * ask.samples
    if isinstance(ask, SortedSettings) and ask.hinted_retry:
        asked += pairs_asked(config, ask.model_copy(update={"splits": ("train",)}), pairs)
    return asked * len(config.perspectives.names)


def billed(config: RunConfig, ask: AnswerSettings, pairs: int) -> Estimate:
    """Return what a generation asks of an engine behind an address, and what that costs."""
    assert isinstance(config.engine, OpenAiEngine)
    answers = generated(config, ask, pairs)
    tokens = answers * prompt_tokens(ask), answers * answer_tokens(ask)
    return Estimate(answers, *tokens, config.engine.price_per_million)


def sft_work(config: RunConfig, pairs: int) -> Work:
    """Return the sequences of SFT, on the assumption that every rationale is kept."""
    answers = len(config.perspectives.names) * config.rationales.samples
    together = min(answers, config.sft.answers_per_sequence)
    asked = pairs_asked(config, config.rationales, pairs)
    rows = asked * math.ceil(answers / together)
    return _shared(config, min(rows, config.sft.max_rows or rows), "sequences", together, config.sft.max_tokens)


def preference_work(config: RunConfig, pairs: int, trained: bool = False) -> Work:
    """Return the preferences, on the assumption that every sampled pair gives `per_pair` of them.

    Args:
        trained: count only those that DPO trains on; the reference scores those of all splits.
    """
    asked = config.samples
    if trained:
        asked = asked.model_copy(update={"splits": tuple(name for name in asked.splits if name == "train")})
    most = pairs_asked(config, asked, pairs) * config.preferences.per_pair
    return _shared(config, min(most, config.preferences.max_rows or most), "preferences", 2, config.dpo.max_tokens)


def _shared(config: RunConfig, rows: int, unit: str, answers: int, max_tokens: int) -> Work:
    """Return rows with `answers` that share the tokens of the pair and each have their own question and answer."""
    ask = config.samples  # training and judging use the same form of prompt
    pair, answer = _pair_tokens(ask), answer_tokens(ask)
    tokens = pair + answers * (prompt_tokens(ask) - pair + answer)
    return Work(rows, unit, min(tokens, answers * max_tokens), answers * answer)


def target_work(config: RunConfig, pairs: int) -> Work:
    """Return the rationales that become vectors, one per judged pair and perspective, and other texts besides."""
    controls = {"permuted", "template"} & {*config.targets.controls}
    texts = len(config.perspectives.names) * (1 + len(controls)) + 2 * config.targets.embeds_pairs
    rows = pairs_asked(config, config.judge, pairs) * texts
    return Work(rows, "rationales", min(config.targets.max_tokens, answer_tokens(config.judge)))


def student_work(config: RunConfig, pairs: int) -> Work:
    """Return the pairs that the student learns from, and those of a labels-only student where one is trained too."""
    sizes = split_sizes(config, pairs)
    unlabelled = sizes["unlabelled"]
    if config.judge.budget_pairs is not None:
        unlabelled = min(unlabelled, config.judge.budget_pairs)
    rows = sizes["train"] + (unlabelled if config.student.use_unlabelled else 0)
    alone, unit = (sizes["train"], "pairs of two students") if config.student.baseline else (0, "pairs")
    return Work(rows + alone, unit, config.student.max_tokens)
