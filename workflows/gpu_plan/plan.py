"""`broadfast plan` works out which stages of a config fit on given GPUs, and about how long they take.

`plan_stages` is a pure function from settings and data sheets to one row per stage. It counts with the longest texts
that the settings allow, so its hours are an upper estimate by the formulas of `cluster.gpus.speed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cluster.gpus.memory import (
    GB,
    Gpu,
    Memory,
    Training,
    generation_memory,
    inference_memory,
    known_gpus,
    kv_bytes_per_token,
    training_memory,
    training_way_out,
    weight_bytes,
)
from cluster.gpus.speed import (
    Generation,
    answers_per_second,
    forward_tokens_per_second,
    training_tokens_per_second,
)
from cluster.models.size import ModelSize, model_size
from distill.config import TargetSettings
from mpcot.config import AnswerSettings, VllmEngine
from teacher.config import Lora, PreferenceSettings, Tuning
from workflows.config import RunConfig
from workflows.gpu_plan.work import (
    Work,
    answer_tokens,
    generated,
    preference_work,
    prompt_tokens,
    sft_work,
    student_work,
    target_work,
)
from workflows.stages import Stage, stage_asks

Batched = PreferenceSettings | TargetSettings


@dataclass(frozen=True)
class Fleet:
    """The GPUs that there are, and the number of pairs to work on."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    pairs: int

    @property
    def count(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class StagePlan:
    """One stage with `copies` engines or workers of `each` GPUs. `problem` says why it cannot run, and the way out.

    `tokens_per_s` is that of all copies together, and counts output tokens in a generation and all tokens elsewhere. It
    and `hours` are None where nothing fits, and in fp32, for which the table of GPUs has no figure.
    """

    stage: str
    copies: int
    each: float
    memory: Memory
    work: str
    tokens_per_s: float | None = None
    hours: float | None = None
    note: str = ""
    problem: str = ""


def plan_stages(config: RunConfig, fleet: Fleet, stages: Sequence[Stage]) -> list[StagePlan]:
    """Return the plan of every stage to which the config gives GPUs, and leave out the others.

    Raises:
        UserError: the size of a model is not known.
    """
    chosen = [stage for stage in stages if stage.short in PLANNERS and stage.need(config).gpus]
    return [_on(fleet, stage.need(config).gpus, PLANNERS[stage.short](config, fleet, stage)) for stage in chosen]


def _on(fleet: Fleet, least: float, plan: StagePlan) -> StagePlan:
    """Return the plan, with a problem where it needs more GPUs than there are or than the nodes can place."""
    room = fleet.nodes * math.floor(fleet.gpus_per_node / plan.each)  # each engine or worker is on one node
    if plan.problem or least <= min(fleet.count, room * plan.each):
        return plan
    has = f"there are {fleet.count}"
    if least <= fleet.count:
        has = f"of {plan.each:g} each the nodes hold {room * plan.each:g}"
    problem = f"asks for at least {least:g} GPUs and {has}: lower its workers or replicas, or add --nodes"
    return replace(plan, tokens_per_s=None, hours=None, problem=problem)


def _generation(config: RunConfig, fleet: Fleet, stage: Stage) -> StagePlan:
    engine = config.engine
    if not isinstance(engine, VllmEngine):
        return StagePlan(stage.name, engine.replicas.max, engine.replicas.gpus, Memory(reserve=0), "scripted answers")
    ask = stage_asks(config, stage)
    model = model_size("teacher.model", config.teacher.model)
    width, each = weight_bytes(engine.dtype), round(stage.need(config).gpus / engine.replicas.min)
    copies = min(engine.replicas.max, fleet.nodes * (fleet.gpus_per_node // each))
    memory = _engine_memory(engine, model, fleet.gpu, width, engine.tensor_parallel)
    answers = generated(config, ask, fleet.pairs)
    row = StagePlan(stage.name, copies, each, memory, f"{answers:,} answers")
    if problem := _generation_problem(engine, ask, model, fleet, width, each):
        return replace(row, problem=problem)
    tokens = math.floor(memory.kv_cache / kv_bytes_per_token(model, width, engine.tensor_parallel))
    prompt, answer = prompt_tokens(ask), answer_tokens(ask)
    sequences = min(engine.max_num_seqs, tokens // (prompt + answer))
    rate = copies * answers_per_second(
        model, fleet.gpu, Generation(engine.tensor_parallel, sequences, prompt, answer, width)
    )
    note = f"KV cache for {tokens:,} tokens, {sequences} sequences of {prompt} + {answer} tokens at once"
    return _timed(replace(row, note=note), engine.dtype, rate * answer, answers * answer)


def _engine_memory(engine: VllmEngine, model: ModelSize, gpu: Gpu, width: int, parallel: int) -> Memory:
    return generation_memory(model, gpu, width, parallel, engine.gpu_memory_utilization)


def _generation_problem(
    engine: VllmEngine, ask: AnswerSettings, model: ModelSize, fleet: Fleet, width: int, each: int
) -> str:
    """Return why an engine cannot start or answer, or an empty text where it can."""

    def fits(gpu: Gpu, parallel: int) -> bool:
        one = engine.max_model_len * kv_bytes_per_token(model, width, parallel)
        return _engine_memory(engine, model, gpu, width, parallel).kv_cache >= one

    parallel, here, room = engine.tensor_parallel, fleet.gpus_per_node, engine.max_model_len - ask.max_tokens
    if room < prompt_tokens(ask):
        return (
            f"engine.max_model_len {engine.max_model_len} leaves {room} tokens for a prompt of about "
            f"{prompt_tokens(ask)}: raise it, or lower max_tokens {ask.max_tokens}"
        )
    if each > here:
        return f"an engine takes {each} GPUs and a node has {here}: lower engine.tensor_parallel and replicas.gpus"
    if model.heads % parallel:
        return f"engine.tensor_parallel {parallel} does not divide the model's {model.heads} attention heads"
    if fits(fleet.gpu, parallel):
        return ""
    held = _engine_memory(engine, model, fleet.gpu, width, parallel).weights / GB
    wanted = f"weights of {held:.1f} GB per GPU leave no room for the KV cache of one sequence of "
    wanted += f"engine.max_model_len {engine.max_model_len} tokens. "
    wider = (n for n in range(parallel + 1, here + 1) if model.heads % n == 0)
    if enough := next((n for n in wider if fits(fleet.gpu, n)), None):
        return f"{wanted}Set engine.tensor_parallel and engine.replicas.gpus to {enough}"
    return wanted + _larger_gpu(lambda gpu: fits(gpu, parallel))


def _larger_gpu(fits: Callable[[Gpu], bool]) -> str:
    names = [name for name, gpu in known_gpus().items() if fits(gpu)]
    return (
        f"It would fit on {', '.join(names)}" if names else "No GPU of the table is large enough: take a smaller model"
    )


def trained_parameters(model: ModelSize, tuning: Tuning) -> int:
    """Return how many parameters a tuning trains."""
    if isinstance(tuning, Lora):
        return model.lora_parameters(tuning.rank, tuning.target_modules)
    return above_frozen_layers(model, tuning.frozen_layers)


def above_frozen_layers(model: ModelSize, layers: int) -> int:
    """Return how many parameters are trained with so many frozen layers, below which the embeddings are frozen too."""
    return model.parameters - (model.embedding + layers * model.layer if layers else 0)


def _training(config: RunConfig, fleet: Fleet, stage: Stage) -> StagePlan:
    """Plan a training, of the teacher by SFT or DPO or of the student."""
    if stage.short == "student":
        model, work = model_size("student.model", config.student.model), student_work(config, fleet.pairs)
        settings, trained = config.student.train, above_frozen_layers(model, config.student.frozen_layers)
    else:
        model, section = model_size("teacher.model", config.teacher.model), getattr(config, stage.short)
        work = sft_work(config, fleet.pairs) if stage.short == "sft" else preference_work(config, fleet.pairs, True)
        settings, trained = section.train, trained_parameters(model, section.tuning)
    workers, recompute = settings.workers, settings.gradient_checkpointing
    plan = Training(settings, trained, work.tokens, work.learnt)
    memory = training_memory(model, plan)
    length = f"{settings.steps} steps" if settings.steps else f"{settings.epochs} epochs"
    row = StagePlan(
        stage.name, workers.count, workers.gpus_per_worker, memory, f"<= {work.rows:,} {work.unit}",
        note=f"{trained:,} trained parameters, {length}, at most {work.tokens} tokens a row",
    )  # fmt: skip
    if memory.total > fleet.gpu.memory:
        changes = training_way_out(model, plan, fleet.gpu.memory)
        names = ", ".join(f"{stage.short}.train.{change}" for change in changes)
        way_out = f"Set {names}" if changes else "No setting helps: tune with LoRA, or take a smaller model"
        return replace(row, problem=f"{_too_large(memory, fleet.gpu.memory)}. {way_out}")
    rate = training_tokens_per_second(model, fleet.gpu, workers.count, trained < model.parameters, recompute)
    models = 2 if stage.short == "student" and config.student.baseline else 1
    read = settings.steps * settings.global_batch * models if settings.steps else work.rows * settings.epochs
    return _timed(row, settings.precision, rate, read * work.tokens)


def _timed(row: StagePlan, precision: str, rate: float, tokens: int) -> StagePlan:
    """Add tokens per second and hours, except in fp32."""
    return row if weight_bytes(precision) == 4 else replace(row, tokens_per_s=rate, hours=tokens / rate / 3600)


def _too_large(memory: Memory, room: float) -> str:
    return f"a worker takes about {memory.total / GB:.1f} GB and has {room / GB:g}"


def _forward(stage: Stage, fleet: Fleet, settings: Batched, model: ModelSize, precision: str, work: Work) -> StagePlan:
    batch, count, gpus = settings.batch_size, settings.workers.count, settings.workers.gpus_per_worker
    memory = inference_memory(model, weight_bytes(precision), batch * work.tokens, batch * work.learnt)
    note = f"{batch} rows at a time, at most {work.tokens} tokens a row"
    row = StagePlan(stage.name, count, gpus, memory, f"<= {work.rows:,} {work.unit}", note=note)
    room = fleet.gpu.memory * min(1, gpus)
    if memory.total > room:
        most = math.floor(batch * (1 - (memory.total - room) / memory.activations))
        way_out = (
            f"Lower {stage.short}.batch_size to {most}" if most >= 1 else "Give a worker more, or take a smaller model"
        )
        return replace(row, problem=f"{_too_large(memory, room)}. {way_out}")
    return _timed(row, precision, forward_tokens_per_second(model, fleet.gpu, count), work.rows * work.tokens)


def _reference(config: RunConfig, fleet: Fleet, stage: Stage) -> StagePlan:
    model, work = model_size("teacher.model", config.teacher.model), preference_work(config, fleet.pairs)
    return _forward(stage, fleet, config.preferences, model, config.dpo.train.precision, work)


def _targets(config: RunConfig, fleet: Fleet, stage: Stage) -> StagePlan:
    model, work = model_size("targets.encoder", config.targets.encoder), target_work(config, fleet.pairs)
    return _forward(stage, fleet, config.targets, model, config.targets.precision, work)


PLANNERS: dict[str, Callable[[RunConfig, Fleet, Stage], StagePlan]] = {
    "rationales": _generation,
    "sft": _training,
    "samples": _generation,
    "preferences": _reference,
    "dpo": _training,
    "judgements": _generation,
    "targets": _targets,
    "student": _training,
}
