"""Settings of the reasoning stages: labels, perspectives, engine, rationales, preferences. Nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cluster.config import Resources, Settings, Workers
from mpcot.filters.config import DEFAULT, Filters
from mpcot.sources.config import LabelSettings

Split = Literal["train", "dev", "test", "unlabelled"]


class PerspectiveSettings(Settings):
    """Which perspectives to reason from, in this order, and where one's own lie."""

    names: tuple[str, ...] = Field(
        ("intent", "attributes", "rules"),
        description="shipped: intent, attributes, rules; the student has a latent vector for each",
    )
    folder: str | None = Field(None, description="folder of one's own NAME.toml files")

    @model_validator(mode="after")
    def _check(self) -> PerspectiveSettings:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"perspectives.names: give one or more different names, not {list(self.names)}")
        return self


class TeacherSettings(Settings):
    """The large model: a local folder or a hub name."""

    model: str = Field(description="folder or hub name of a chat model")


class Replicas(Resources):
    """How many engines run, and what each takes of a node."""

    min: PositiveInt = Field(1, description="engines at the least")
    max: PositiveInt = Field(1, description="engines at the most: as many as the cluster has room for")
    cpus: PositiveInt = Field(1, description="of one engine")
    gpus: NonNegativeInt = Field(0, description="of one engine; tensor parallel takes more")
    pairs_per_task: PositiveInt = Field(
        96, description="pairs that one engine is handed at a time; it has two such tasks, whose requests keep it full"
    )
    flush_rows: PositiveInt = Field(256, description="answers that may wait to be written")
    flush_seconds: PositiveFloat = Field(10.0, description="how long an answer may wait to be written")
    store: str | None = Field(
        None,
        description="where workers append their answers, if not in the run folder: s3://bucket/folder, one per run",
    )
    stalled_s: PositiveFloat = Field(600.0, description="an engine that finishes no answer for so long has hung")
    restarts: NonNegativeInt = Field(
        3,
        description="engines that died or hung and are started anew, before the stage stops; those that a request "
        "stopped which was found out do not count",
    )

    @model_validator(mode="after")
    def _range(self) -> Replicas:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}: raise it, or lower min")
        return self


class VllmEngine(Settings):
    """vLLM, on GPUs or on a CPU."""

    no_effect = frozenset(
        {"max_num_seqs", "enforce_eager", "tensor_parallel", "gpu_memory_utilization", "cpu_kv_cache_gib"}
    )
    kind: Literal["vllm"] = "vllm"
    max_model_len: PositiveInt = Field(2048, description="tokens of prompt and answer")
    max_num_seqs: PositiveInt = Field(64, description="requests in one step")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="auto: as the model is saved on a GPU; bfloat16 on processors that multiply it, else float32",
    )
    enforce_eager: bool = Field(False, description="no compilation and no CUDA graphs: a quicker start, slower steps")
    tensor_parallel: PositiveInt = Field(1, description="GPUs that share one engine")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of a GPU's memory that the engine takes")
    cpu_kv_cache_gib: PositiveInt = Field(1, description="KV cache of an engine on a CPU, GiB")
    replicas: Replicas = Replicas()

    def prompt_tokens(self, ask: AnswerSettings) -> int:
        """Return how many tokens a prompt may have."""
        return self.max_model_len - ask.max_tokens


class ScriptedEngine(Settings):
    """An engine that answers by rule, for tests of everything around a model."""

    no_effect = frozenset({"delay_s", "hangs_after", "stops_after", "stops_on", "log"})
    kind: Literal["scripted"] = "scripted"
    accuracy: float = Field(0.7, ge=0, le=1, description="share of answers whose verdict is the gold label")
    failure_share: float = Field(0.0, ge=0, le=1, description="share of answers that cannot be parsed")
    delay_s: float = Field(0.0, ge=0, description="what an answer takes")
    hangs_after: NonNegativeInt | None = Field(None, description="a replica answers so many requests, then no more")
    stops_after: NonNegativeInt | None = Field(None, description="likewise, but says that it is gone")
    stops_on: str | None = Field(None, description="a replica is gone once a request holds this text")
    log: str | None = Field(None, description="file that gets a line per request asked")
    replicas: Replicas = Replicas()


Engine = Annotated[VllmEngine | ScriptedEngine, Field(discriminator="kind")]


class AnswerSettings(Settings):
    """How the teacher is asked: form, length, sampling. Shared by rationales, samples and judgements."""

    samples: PositiveInt = Field(1, description="answers of each perspective to a pair")
    temperature: float = Field(0.7, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="likeliest tokens up to this much probability")
    max_tokens: PositiveInt = Field(128, description="output tokens of one answer, verdict included")
    min_chars: PositiveInt = Field(20, description="shortest rationale")
    max_chars: PositiveInt = Field(400, description="longest rationale, enforced by the engine")
    few_shot: NonNegativeInt = Field(0, description="worked examples per prompt")
    description_chars: NonNegativeInt = Field(0, description="characters of the product description in the prompt")
    when_too_long: Literal["reject", "cut"] = Field(
        "reject", description="a prompt over the engine's length fails, or its description is cut until it fits"
    )
    splits: tuple[Split, ...] = Field(("train",), description="whose pairs are asked about")
    pairs_per_split: PositiveInt | None = Field(None, description="at most so many pairs of each split")
    retries: NonNegativeInt = Field(1, description="further tries of an answer that failed, each with a new seed")
    retry_temperature: float = Field(
        0.7, gt=0, description="of further tries where `temperature` is 0: at 0 they would end as the first did"
    )
    max_failed_share: float = Field(0.2, ge=0, le=1, description="stop when a larger share of the answers failed")

    @model_validator(mode="after")
    def _check(self) -> AnswerSettings:
        if self.when_too_long == "cut" and not self.description_chars:
            raise ValueError("when_too_long 'cut' has nothing to cut: set description_chars, or 'reject'")
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars {self.min_chars} is above max_chars {self.max_chars}: no answer can be both")
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"samples {self.samples} at temperature 0 are all the same: raise temperature, or set 1")
        return self


class SortedSettings(AnswerSettings):
    """What stages 2 and 4 share: their answers are sorted into kept and filtered ones."""

    filters: Filters = Field(DEFAULT, description="steps in order; the first that objects to an answer is its reason")
    hinted_retry: bool = Field(
        False, description="training pairs whose every answer was wrong are asked again with the gold label as a hint"
    )

    @model_validator(mode="after")
    def _hint(self) -> SortedSettings:
        if self.hinted_retry and "train" not in self.splits:
            raise ValueError("hinted_retry has no effect on these splits: it asks about training pairs only")
        return self


class RationaleSettings(SortedSettings):
    """Stage 2: the untrained teacher thinks broad."""

    splits: tuple[Split, ...] = Field(
        ("train",), description="whose pairs are asked about; unlabelled ones have the majority as their verdict"
    )


class SampleSettings(SortedSettings):
    """Stage 4: the SFT teacher answers each training pair again."""

    samples: PositiveInt = Field(5, description="answers of each perspective to a pair")
    temperature: float = Field(1.0, ge=0, description="0 is greedy; conflicts need variety")
    splits: tuple[Split, ...] = Field(("train", "dev"), description="whose pairs are asked about; dev judges DPO")


class JudgeSettings(AnswerSettings):
    """Stage 7: the DPO teacher judges every pair."""

    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    splits: tuple[Split, ...] = Field(("train", "dev", "test", "unlabelled"), description="whose pairs are asked about")


class PreferenceSettings(Settings):
    """Stage 5: which conflicts become chosen/rejected pairs."""

    no_effect = frozenset({"batch_size"})

    per_pair: PositiveInt = Field(4, description="at most so many preference pairs of one query-product pair")
    cross_perspective: bool = Field(True, description="chosen and rejected may come from different perspectives")
    margin_by: Literal["probability", "log_probability"] = Field(
        "probability", description="what the margin is a gap of: the gold label's (log-)probability at the verdict"
    )
    min_margin: float = Field(0.0, ge=0, description="least margin of chosen over rejected; natural logarithms")
    max_margin: float | None = Field(None, gt=0, description="largest margin: beyond it there is little to learn")
    unknown_margin: Literal["keep", "drop"] = Field(
        "keep", description="answers without a probability, such as seeds and hinted ones"
    )
    pick: Literal["random", "widest", "narrowest"] = Field(
        "random", description="which margins go first where more than per_pair are spread alike over perspectives"
    )
    fallback: tuple[Literal["rationales", "seeds"], ...] = Field(
        ("rationales", "seeds"), description="where a chosen answer comes from when no sample of a pair is right"
    )
    label_ratio: float | None = Field(
        None, ge=1, description="at most so many times as many preferences of a gold label as of the rarest"
    )
    perspective_ratio: float | None = Field(
        None, ge=1, description="likewise of a perspective among the chosen answers, and among the rejected ones"
    )
    max_rows: PositiveInt | None = Field(None, description="preferences at the most; empty takes all")
    when_empty: Literal["stop", "skip"] = Field("stop", description="what no conflict at all does: stop, or skip DPO")
    batch_size: PositiveInt = Field(16, description="rows per forward pass of the reference job")
    workers: Workers = Field(Workers(), description="actors of the reference job")

    @model_validator(mode="after")
    def _check(self) -> PreferenceSettings:
        if self.max_margin is not None and self.max_margin < self.min_margin:
            raise ValueError(f"max_margin {self.max_margin:g} is below min_margin {self.min_margin:g}: nothing is left")
        if self.margin_by == "probability" and self.min_margin > 1:
            raise ValueError(f"min_margin {self.min_margin:g}: probabilities differ by 1 at most")
        return self


class RationaleStage(Settings):
    """What stage 2 depends on."""

    seed: int
    labels: LabelSettings
    perspectives: PerspectiveSettings
    teacher: TeacherSettings
    engine: Engine
    rationales: RationaleSettings


class SampleStage(Settings):
    """What stage 4 depends on."""

    seed: int
    labels: LabelSettings
    perspectives: PerspectiveSettings
    engine: Engine
    samples: SampleSettings


class JudgeStage(Settings):
    """What stage 7 depends on."""

    seed: int
    labels: LabelSettings
    perspectives: PerspectiveSettings
    engine: Engine
    judge: JudgeSettings
