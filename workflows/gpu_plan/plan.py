"""`broadfast plan`: what of a config fits on which GPUs, and about how long it takes.

`plan_stages` is pure: settings and data-sheet figures in, one row per stage out. Lengths are the longest that
the settings allow, so hours are an upper estimate of what the formulas of `cluster.gpus.speed` give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cluster.config import TrainSettings
from cluster.gpus.memory import (
    GB,
    Gpu,
    Memory,
    Training,
    generation_memory,
    gpus,
    inference_memory,
    kv_bytes_per_token,
    training_memory,
    training_way_out,
)
from cluster.gpus.speed import (
    Generation,
    answers_per_second,
    forward_tokens_per_second,
    training_tokens_per_second,
)
from cluster.models.size import ModelSize, model_size
from mpcot.config import AnswerSettings, VllmEngine
from teacher.config import Lora, Tuning
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
from workflows.stages import Stage


@dataclass(frozen=True)
class Fleet:
    """The GPUs that there are, and the pairs that there is to do."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    pairs: int

    @property
    def count(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class StagePlan:
    """One stage: `copies` engines or workers of `each` GPUs. `problem` says why it cannot be, with the way out.

    `tokens_per_s` is over all copies: output tokens of a generation, all tokens elsewhere. It and `hours` are
    None where nothing fits, or where the work is in fp32, for which the table of GPUs has no figure.
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
    """Return the plan of every stage that the config gives GPUs; the others are left out.

    Raises:
        UserError: a model whose size is not known.
    """
    chosen = [stage for stage in stages if stage.short in PLANNERS and stage.need(config).gpus]
    return [_on(fleet, stage.need(config).gpus, PLANNERS[stage.short](config, fleet, stage)) for stage in chosen]


def _on(fleet: Fleet, least: float, plan: StagePlan) -> StagePlan:
    """Return the plan, refused where its least number of GPUs is more than there are or than nodes can hold."""
    room = fleet.nodes * math.floor(fleet.gpus_per_node / plan.each)  # each engine or worker lies on one node
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
    ask: AnswerSettings = getattr(config, {"judgements": "judge"}.get(stage.short, stage.short))
    model = model_size("teacher.model", config.teacher.model)
    width, each = 4 if engine.dtype == "float32" else 2, round(stage.need(config).gpus / engine.replicas.min)
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
    timed = (None, None) if width == 4 else (rate * answer, answers / rate / 3600)
    return replace(row, tokens_per_s=timed[0], hours=timed[1], note=note)


def _engine_memory(engine: VllmEngine, model: ModelSize, gpu: Gpu, width: int, parallel: int) -> Memory:
    return generation_memory(model, gpu, width, parallel, engine.gpu_memory_utilization)


def _generation_problem(
    engine: VllmEngine, ask: AnswerSettings, model: ModelSize, fleet: Fleet, width: int, each: int
) -> str:
    """Return why an engine cannot start or answer, or nothing."""

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
    names = [name for name, gpu in gpus().items() if fits(gpu)]
    return f"It would fit on {', '.join(names)}" if names else "No GPU of the table would do: take a smaller model"


def trained_parameters(model: ModelSize, tuning: Tuning) -> int:
    """Return the parameters that a tuning trains; frozen layers keep the embeddings from training too."""
    if isinstance(tuning, Lora):
        return model.lora_parameters(tuning.rank, tuning.target_modules)
    frozen = model.embedding + tuning.frozen_layers * model.layer if tuning.frozen_layers else 0
    return model.parameters - frozen


def _training(
    stage: Stage, fleet: Fleet, settings: TrainSettings, model: ModelSize, trained: int, work: Work
) -> StagePlan:
    workers, recompute = settings.workers, settings.gradient_checkpointing
    plan = _training_plan(settings, trained, work)
    memory = training_memory(model, plan)
    row = StagePlan(
        stage.name, workers.count, workers.gpus_per_worker, memory, f"<= {work.rows:,} {work.unit}",
        note=f"{trained:,} trained parameters, {settings.epochs} epochs, at most {work.tokens} tokens a row",
    )  # fmt: skip
    if memory.total > fleet.gpu.memory:
        changes = training_way_out(model, plan, fleet.gpu.memory)
        names = ", ".join(f"{stage.short}.train.{change}" for change in changes)
        way_out = f"Set {names}" if changes else "No setting mends that: tune with LoRA, or take a smaller model"
        return replace(row, problem=f"{_too_large(memory, fleet.gpu.memory)}. {way_out}")
    if plan.precision_bytes == 4:
        return row
    rate = training_tokens_per_second(model, fleet.gpu, workers.count, trained < model.parameters, recompute)
    return replace(row, tokens_per_s=rate, hours=work.rows * work.tokens * settings.epochs / rate / 3600)


def _training_plan(settings: TrainSettings, trained: int, work: Work) -> Training:
    workers = settings.workers.count
    return Training(
        trained=trained,
        sequence_tokens=work.tokens,
        learnt_tokens=work.learnt,
        micro_batch=min(settings.micro_batch, max(1, settings.global_batch // workers)),
        workers=workers,
        precision_bytes=_width(settings.precision),
        zero_stage=settings.zero_stage,
        recompute=settings.gradient_checkpointing,
        offload_optimizer=settings.offload.optimizer == "cpu",
        offload_parameters=settings.offload.parameters == "cpu",
    )


def _width(precision: str) -> int:
    """Return the bytes of a weight; `auto` is bf16 on a GPU."""
    return 4 if precision in ("fp32", "bf16_mixed") else 2


def _too_large(memory: Memory, room: float) -> str:
    return f"a worker takes about {memory.total / GB:.1f} GB and has {room / GB:g}"


def _forward(
    stage: Stage, fleet: Fleet, model: ModelSize, precision: str, batch: int, workers: tuple[int, float], work: Work
) -> StagePlan:
    memory = inference_memory(model, _width(precision), batch * work.tokens, batch * work.learnt)
    note = f"{batch} rows at a time, at most {work.tokens} tokens a row"
    row = StagePlan(stage.name, *workers, memory, f"<= {work.rows:,} {work.unit}", note=note)
    room = fleet.gpu.memory * min(1, workers[1])
    if memory.total > room:
        most = math.floor(batch * (1 - (memory.total - room) / memory.activations))
        way_out = (
            f"Lower {stage.short}.batch_size to {most}" if most >= 1 else "Give a worker more, or take a smaller model"
        )
        return replace(row, problem=f"{_too_large(memory, room)}. {way_out}")
    if _width(precision) == 4:
        return row
    rate = forward_tokens_per_second(model, fleet.gpu, workers[0])
    return replace(row, tokens_per_s=rate, hours=work.rows * work.tokens / rate / 3600)


def _teacher(config: RunConfig) -> ModelSize:
    return model_size("teacher.model", config.teacher.model)


def _sft(config: RunConfig, fleet: Fleet, stage: Stage) -> StagePlan:
    model, work = _teacher(config), sft_work(config, fleet.pairs)
    return _training(stage, fleet, config.sft.train, model, trained_parameters(model, config.sft.tuning), work)


def _dpo(config: RunConfig, fleet: Fleet, stage: Stage) -> StagePlan:
    model, work = _teacher(config), preference_work(config, fleet.pairs, trained=True)
    return _training(stage, fleet, config.dpo.train, model, trained_parameters(model, config.dpo.tuning), work)


def _student(config: RunConfig, fleet: Fleet, stage: Stage) -> StagePlan:
    model = model_size("student.model", config.student.model)
    work = student_work(config, fleet.pairs)
    return _training(stage, fleet, config.student.train, model, model.parameters, work)


def _reference(config: RunConfig, fleet: Fleet, stage: Stage) -> StagePlan:
    settings, work = config.preferences, preference_work(config, fleet.pairs)
    workers = settings.workers.count, settings.workers.gpus_per_worker
    precision = config.dpo.train.precision
    return _forward(stage, fleet, _teacher(config), precision, settings.batch_size, workers, work)


def _targets(config: RunConfig, fleet: Fleet, stage: Stage) -> StagePlan:
    settings, work = config.targets, target_work(config, fleet.pairs)
    model = model_size("targets.encoder", settings.encoder)
    workers = settings.workers.count, settings.workers.gpus_per_worker
    return _forward(stage, fleet, model, settings.precision, settings.batch_size, workers, work)


PLANNERS: dict[str, Callable[[RunConfig, Fleet, Stage], StagePlan]] = {
    "rationales": _generation,
    "sft": _sft,
    "samples": _generation,
    "preferences": _reference,
    "dpo": _dpo,
    "judgements": _generation,
    "targets": _targets,
    "student": _student,
}
