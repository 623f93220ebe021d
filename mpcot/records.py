"""The records that stages hand to one another, as Arrow schemas. Each names its producer and consumers."""

from __future__ import annotations

import pyarrow as pa

SPLITS = ("train", "dev", "test", "unlabelled")

# 1-pairs/pairs.parquet -> every later stage. `label` is null exactly where split is "unlabelled".
PAIR = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("locale", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("brand", pa.string()),
        pa.field("description", pa.string()),
        pa.field("label", pa.string()),
        pa.field("split", pa.string(), nullable=False),
    ]
)

# 1-pairs/seeds.parquet -> 3-sft. Rationales that a source brings; `origin` says who wrote them.
SEED = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("perspective", pa.string(), nullable=False),
        pa.field("rationale", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
    ]
)

# 1-pairs/failed.parquet -> people. `row` is the source row as JSON, cut to 2,000 characters.
FAILED_ROW = pa.schema(
    [
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("row", pa.string(), nullable=False),
    ]
)

# The parts that the workers of 2-rationales, 4-samples and 7-judgements write -> the same stages.
# `logprobs` holds one log-probability per label, in the scheme's order; `reason` says why an answer failed, and
# `tries` how often it was asked for.
ANSWER = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("perspective", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("rationale", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("logprobs", pa.list_(pa.float32())),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("output_tokens", pa.int32()),
        pa.field("tries", pa.int32()),
        pa.field("reason", pa.string()),
    ]
)

# 2-rationales and 4-samples {kept,filtered,failed}.parquet -> 3-sft, 5-preferences, 11-report, `inspect`.
# `reason` is null for kept rows; `hinted` marks answers to a prompt that gave the gold label away.
# `weight` is 1 where the pair has a gold label, else the share of its answers with the majority's verdict.
SORTED = ANSWER.append(pa.field("hinted", pa.bool_(), nullable=False)).append(pa.field("weight", pa.float32()))

# The `reason` of a well-formed answer whose verdict is wrong: 5-preferences takes these as rejected candidates.
NOT_GOLD = "verdict is not gold"
# Likewise of an unlabelled pair, where only the majority can say what is right.
NOT_MAJORITY = "verdict is not the majority's"

# 5-preferences/preferences.parquet -> 6-dpo. Log-probabilities are sums over the answer's tokens.
PREFERENCE = pa.schema(
    [
        pa.field("preference_id", pa.string(), nullable=False),
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("chosen_perspective", pa.string(), nullable=False),
        pa.field("rejected_perspective", pa.string(), nullable=False),
        pa.field("chosen_prompt", pa.string(), nullable=False),
        pa.field("chosen", pa.string(), nullable=False),
        pa.field("rejected_prompt", pa.string(), nullable=False),
        pa.field("rejected", pa.string(), nullable=False),
        pa.field("chosen_reference_logprob", pa.float32()),
        pa.field("rejected_reference_logprob", pa.float32()),
    ]
)

# 7-judgements/judgements.parquet -> 8-targets, 9-student, 11-report. Lists run over perspectives, in
# config order; `soft` is the mean distribution over labels in scheme order; an unanswered perspective
# holds null. `agreement` is the share of perspectives that voted for `vote`.
JUDGEMENT = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("vote", pa.string(), nullable=False),
        pa.field("agreement", pa.float32(), nullable=False),
        pa.field("soft", pa.list_(pa.float32()), nullable=False),
        pa.field("verdicts", pa.list_(pa.string()), nullable=False),
        pa.field("rationales", pa.list_(pa.string()), nullable=False),
        pa.field("perspective_soft", pa.list_(pa.list_(pa.float32())), nullable=False),
    ]
)

# 8-targets/targets.parquet -> 9-student. One vector of the frozen encoder's width per perspective.
TARGET = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("vectors", pa.list_(pa.list_(pa.float32())), nullable=False),
    ]
)
