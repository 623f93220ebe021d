"""The records that stages hand to one another, as Arrow schemas. Each names its producer and its consumers."""

from __future__ import annotations

import pyarrow as pa

SPLITS = ("train", "dev", "test", "unlabelled")


def texts(*names: str) -> list[pa.Field]:
    """Return columns of text. A question mark after a name allows nulls."""
    return [pa.field(name.rstrip("?"), pa.string(), nullable=name.endswith("?")) for name in names]


# Name and value of what a source says of a product in fields of its own; null if it says nothing.
ATTRIBUTES = pa.field("attributes", pa.map_(pa.string(), pa.string()))

# 1-pairs/pairs.parquet -> every later stage. `label` is null exactly if the split is "unlabelled". `ratings` are the
# labels that several people gave, if the source has them. `mpcot/details.py` joins what a product has beside title and
# brand into one text.
PAIR = pa.schema(
    [
        *texts("pair_id", "query_id", "product_id", "locale", "query", "title", "brand?", "description?", "bullets?"),
        ATTRIBUTES,
        *texts("label?", "split"),
        pa.field("ratings", pa.list_(pa.string())),
    ]
)

# 1-pairs/seeds.parquet -> 3-sft, 5-preferences. Rationales that a source brings; `origin` says who wrote them.
SEED = pa.schema(texts("pair_id", "perspective", "rationale", "verdict", "origin"))

# 1-pairs/judgements.parquet -> 7-judgements. Judgements from elsewhere (`source.judgements`), at most one of a pair and
# perspective, or one of the pair as a whole, whose perspective is null. `probabilities` are in the order of the scheme,
# or null.
GIVEN_JUDGEMENT = pa.schema(
    [
        *texts("pair_id", "perspective?", "rationale?", "verdict", "origin"),
        pa.field("probabilities", pa.list_(pa.float32())),
    ]
)

# 1-pairs/failed.parquet -> people. `row` is the row of the source as JSON, cut to 2,000 characters.
FAILED_ROW = pa.schema([pa.field("source_row", pa.int64(), nullable=False), *texts("reason", "row")])

# The parts that the workers of 2-rationales, 4-samples and 7-judgements write -> the same stages.
# `logprobs` holds one log-probability per label in the order of the scheme: those of the engine or, where it gives none
# and the answer says how sure it is, those that follow from its confidence. `reason` says why an answer failed, and
# `tries` how often it was asked for. Tokens are those of all tries. `cached_tokens`, the part of `prompt_tokens` that
# was in the host's cache, is null where tokens are not billed.
ANSWER = pa.schema(
    [
        *texts("key", "pair_id", "perspective"),
        pa.field("sample", pa.int32(), nullable=False),
        *texts("rationale?", "verdict?"),
        pa.field("logprobs", pa.list_(pa.float32())),
        *(pa.field(name, pa.int32()) for name in ("prompt_tokens", "cached_tokens", "output_tokens", "tries")),
        *texts("reason?"),
    ]
)

# 2-rationales and 4-samples {kept,filtered,failed}.parquet -> 3-sft, 5-preferences, 11-report, `inspect`.
# `reason` is null in kept rows. `hinted` marks answers to a prompt that gave the gold label away. `weight` is 1 if the
# pair has a gold label, or else the share of its answers that have the verdict of the majority.
SORTED = ANSWER.append(pa.field("hinted", pa.bool_(), nullable=False)).append(pa.field("weight", pa.float32()))

# The `reason` of a well-formed answer whose verdict is wrong: 5-preferences takes these as rejected answers.
NOT_GOLD = "verdict is not gold"
# The same for an unlabelled pair, for which only the majority can tell what is right.
NOT_MAJORITY = "verdict is not the majority's"

# 5-preferences/preferences.parquet -> 6-dpo. Log-probabilities are sums over the tokens of the answer.
PREFERENCE = pa.schema(
    [
        *texts("preference_id", "pair_id", "split", "chosen_perspective", "rejected_perspective"),
        *texts("chosen_prompt", "chosen", "rejected_prompt", "rejected"),
        pa.field("chosen_reference_logprob", pa.float32()),
        pa.field("rejected_reference_logprob", pa.float32()),
    ]
)

# 7-judgements/judgements.parquet -> 8-targets, 9-student, 11-report. Lists have an entry per perspective, in the order
# of the config, or null where a perspective did not answer. `soft` is the mean distribution over the labels in the
# order of the scheme. `agreement` is the share of the perspectives that voted for `vote`. `origin` says who judged:
# "teacher", or the origin of a judgement from elsewhere. A judgement of the pair as a whole has no verdicts, an
# agreement of 1, and its origin in every place.
JUDGEMENT = pa.schema(
    [
        *texts("pair_id", "vote"),
        pa.field("agreement", pa.float32(), nullable=False),
        pa.field("soft", pa.list_(pa.float32()), nullable=False),
        pa.field("verdicts", pa.list_(pa.string()), nullable=False),
        pa.field("rationales", pa.list_(pa.string()), nullable=False),
        pa.field("perspective_soft", pa.list_(pa.list_(pa.float32())), nullable=False),
        pa.field("origin", pa.list_(pa.string())),
    ]
)

# 8-targets/targets.parquet -> 9-student. One vector per perspective, as wide as those of the frozen encoder and not yet
# transformed (`targets.transform`). `query` and `title` have a vector each where the transform or a control needs them,
# and `permuted` and `template` one per perspective where `targets.controls` names them; else they are null.
TARGET = pa.schema(
    [
        *texts("pair_id"),
        pa.field("vectors", pa.list_(pa.list_(pa.float32())), nullable=False),
        *(pa.field(name, pa.list_(pa.list_(pa.float32()))) for name in ("permuted", "template")),
        *(pa.field(name, pa.list_(pa.float32())) for name in ("query", "title")),
    ]
)
