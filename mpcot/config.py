"""Settings of the stages that reason: perspectives, engine and answers. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cluster.config import Fields, Settings
from mpcot.asking.engines.config import OpenAiEngine, Replicas
from mpcot.filters.config import DEFAULT, Filters
from mpcot.sources.config import LabelSettings, PairsStage

Split = Literal["train", "dev", "test", "unlabelled"]

# The settings of `AnswerSettings` that show in a prompt. The teacher is judged with the prompts that it learnt from.
PROMPT_FORM = ("few_shot", "description_chars", "guide", "words", "max_chars")
CHARS_PER_WORD = 7  # of English prose, with the space
MOST_WORDS = 120


class PerspectiveSettings(Settings):
    """Which perspectives the teacher reasons from, in which order, and where your own are."""

    no_effect = frozenset({"folder", "rules_file"})  # their content counts

    names: tuple[str, ...] = Field(
        ("intent", "attributes", "rules"), description="their names, in the order of the student's vectors"
    )
    folder: str | None = Field(None, description="folder with your own perspectives as NAME.toml files")
    rules_file: str | None = Field(
        None, description="text file with the rules of your shop, one per line, in place of those shipped"
    )

    @model_validator(mode="after")
    def _check(self) -> PerspectiveSettings:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"perspectives.names: give one or more different names, not {list(self.names)}")
        return self


# By `teacher.tuning`: the sections of the config that say how the teacher is asked, in the order of their stages.
ASKING = {"sft+dpo": ("rationales", "samples", "judge"), "sft": ("rationales", "judge"), "none": ("judge",)}


class TeacherSettings(Settings):
    """The large model that reasons. With an engine behind an address, `engine.model` names it instead."""

    # The content of the model counts, and tuning decides which stages there are, not what any of them does.
    no_effect = frozenset({"model", "tuning"})

    model: str = Field(
        "",
        description="local folder or hub name of a chat model; needed unless nobody is asked, or a model behind an "
        "address, where it may name the tokenizer with which --dry-run counts",
    )
    tuning: Literal["sft+dpo", "sft", "none"] = Field(
        "sft+dpo", description="which trainings the teacher goes through before it judges; the others' stages fall away"
    )


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
        description="auto: on a GPU as the model is saved; on a CPU bfloat16 if it multiplies that, else float32",
    )
    enforce_eager: bool = Field(False, description="no compilation and no CUDA graphs: starts faster, then runs slower")
    tensor_parallel: PositiveInt = Field(1, description="GPUs that share one engine")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of a GPU's memory that the engine takes")
    cpu_kv_cache_gib: PositiveInt = Field(1, description="KV cache of an engine on a CPU, GiB")
    thinking: Literal["off", "on"] = Field(
        "off", description="on: a model that can think does so before its answer; only the answer is kept"
    )
    thinking_tokens: int = Field(512, ge=16, description="with thinking, the most tokens of it, end mark included")
    replicas: Replicas = Replicas()

    def prompt_tokens(self, ask: AnswerSettings) -> int:
        """Return how many tokens a prompt may have."""
        return self.max_model_len - ask.max_tokens - (self.thinking_tokens if self.thinking == "on" else 0)


class ScriptedEngine(Settings):
    """An engine that answers by rule and needs no model, for tests."""

    no_effect = frozenset({"start_s", "delay_s", "hangs_after", "stops_after", "stops_on", "log"})
    kind: Literal["scripted"] = "scripted"
    accuracy: float = Field(0.7, ge=0, le=1, description="share of answers whose verdict is the gold label")
    failure_share: float = Field(0.0, ge=0, le=1, description="share of answers that cannot be parsed")
    start_s: float = Field(0.0, ge=0, description="time that the start of a replica takes")
    delay_s: float = Field(0.0, ge=0, description="time that an answer takes")
    hangs_after: NonNegativeInt | None = Field(None, description="a replica answers this many requests, then hangs")
    stops_after: NonNegativeInt | None = Field(None, description="a replica answers this many requests, then stops")
    stops_on: str | None = Field(None, description="a replica stops at a request with this text")
    log: str | None = Field(None, description="file that gets one line per request")
    replicas: Replicas = Replicas()


Engine = Annotated[VllmEngine | ScriptedEngine | OpenAiEngine, Field(discriminator="kind")]


class AnswerSettings(Settings):
    """How the teacher is asked: form, length and sampling. Shared by rationales, samples and judgements."""

    no_effect = frozenset({"retries", "max_failed_share"})

    samples: PositiveInt = Field(1, description="answers per pair and perspective")
    temperature: float = Field(0.7, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens with this much probability")
    max_tokens: PositiveInt = Field(256, description="the most tokens of an answer, verdict included")
    min_chars: PositiveInt = Field(20, description="shortest rationale")
    max_chars: PositiveInt = Field(400, description="longest rationale, enforced by the engine")
    few_shot: NonNegativeInt = Field(0, description="worked examples in a prompt")
    description_chars: NonNegativeInt = Field(
        500, description="characters of attributes, bullets and description in the prompt; attributes come first"
    )
    guide: Literal["full", "short"] = Field(
        "full", description="the system text: with the whole guide to the labels, or a few lines for a very small model"
    )
    words: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="fewest and most words that the prompt asks for; empty: what max_chars has room for"
    )
    when_too_long: Literal["reject", "cut"] = Field("reject", description="the prompt fails, or loses description")
    splits: tuple[Split, ...] = Field(("train",), description="splits to ask about")
    pairs_per_split: PositiveInt | None = Field(None, description="the most pairs of each split; empty takes all")
    retries: NonNegativeInt = Field(1, description="further tries if an answer fails, each with a new seed")
    retry_temperature: float = Field(0.7, gt=0, description="temperature of further tries if temperature is 0")
    max_failed_share: float = Field(0.2, ge=0, le=1, description="the stage stops if more of the answers fail")

    @model_validator(mode="after")
    def _check(self) -> AnswerSettings:
        if self.when_too_long == "cut" and not self.description_chars:
            raise ValueError("when_too_long 'cut' has nothing to cut: set description_chars, or use 'reject'")
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars {self.min_chars} is above max_chars {self.max_chars}: no answer can be both")
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"samples {self.samples} at temperature 0 are all the same: raise temperature, or set 1")
        least, most = self.asked_words
        if least > most:
            raise ValueError(f"words {least} to {most}: write the fewest first")
        return self

    def temperature_after(self, tries: int) -> float:
        """Return the temperature of a request that was tried so often before."""
        return self.retry_temperature if tries and not self.temperature else self.temperature

    @property
    def asks_confidence(self) -> bool:
        """Whether an answer is to say how sure it is."""
        return False

    @property
    def asked_words(self) -> tuple[int, int]:
        """The fewest and the most words that the prompt asks for."""
        if self.words is not None:
            return self.words
        most = max(3, min(MOST_WORDS, self.max_chars // CHARS_PER_WORD))
        return most // 3, most


class SortedSettings(AnswerSettings):
    """How stages 2 and 4 ask the teacher. Their answers pass through filters."""

    filters: Filters = Field(DEFAULT, description="filters in their order; the first one that objects gives the reason")
    hinted_retry: bool = Field(False, description="ask again with a hint about pairs that have no right answer")

    @model_validator(mode="after")
    def _hint(self) -> SortedSettings:
        if self.hinted_retry and "train" not in self.splits:
            raise ValueError("hinted_retry has no effect on these splits: add train, or turn it off")
        return self


class RationaleSettings(SortedSettings):
    """How stage 2 asks the untrained teacher."""

    splits: tuple[Split, ...] = Field(("train",), description="splits to ask about; unlabelled: the majority decides")


class SampleSettings(SortedSettings):
    """How stage 4 asks the teacher after SFT."""

    samples: PositiveInt = Field(5, description="answers per pair and perspective")
    temperature: float = Field(1.0, ge=0, description="0 is greedy; preferences need different answers")
    splits: tuple[Split, ...] = Field(("train", "dev"), description="splits to ask about; dev is for judging DPO")


class JudgeSettings(AnswerSettings):
    """How stage 7 judges every pair."""

    engine: Literal["default", "none"] = Field(
        "default", description="none: nobody is asked, and the judgements of source.judgements are all there are"
    )
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    splits: tuple[Split, ...] = Field(("train", "dev", "test", "unlabelled"), description="splits to judge")
    budget_pairs: NonNegativeInt | None = Field(
        None,
        description="judge only so many unlabelled pairs, the first ones in the order of the source and of "
        "source.candidates; empty judges all",
    )
    fit: bool = Field(
        False, description="fit on dev how sure each perspective is and how much it counts, for vote and soft labels"
    )
    confidence: bool = Field(
        False,
        description="a model behind an address also writes how sure it is, in percent, of which soft labels are made "
        "where its server gives no log-probabilities",
    )

    @property
    def asks_confidence(self) -> bool:
        return self.confidence

    @model_validator(mode="after")
    def _needed_splits(self) -> JudgeSettings:
        if self.budget_pairs is not None and "unlabelled" not in self.splits:
            raise ValueError("budget_pairs counts unlabelled pairs: add unlabelled to splits, or take it out")
        if self.fit and "dev" not in self.splits:
            raise ValueError("fit needs judged dev pairs: add dev to splits, or turn it off")
        return self


class GivenPairsStage(PairsStage):
    """What stage 1 depends on if there are judgements from elsewhere, which name perspectives."""

    reads_only: ClassVar[Fields] = {"perspectives": ("names",)}

    perspectives: PerspectiveSettings = PerspectiveSettings()


class AskingStage(Settings):
    """What every stage that asks the teacher depends on."""

    seed: int
    labels: LabelSettings
    perspectives: PerspectiveSettings
    engine: Engine


class RationaleStage(AskingStage):
    """What stage 2 depends on."""

    teacher: TeacherSettings
    rationales: RationaleSettings


class SampleStage(AskingStage):
    """What stage 4 depends on."""

    samples: SampleSettings


class JudgeStage(AskingStage):
    """What stage 7 depends on."""

    judge: JudgeSettings


class UntunedJudgeStage(JudgeStage):
    """What stage 7 depends on if the teacher has not been trained."""

    teacher: TeacherSettings
