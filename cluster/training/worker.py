"""The worker's side of a training: set up, step, evaluate, checkpoint, save."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.base.devices import use_gpus
from cluster.base.whole_files import whole_file
from cluster.training.best_weights import BestWeights, best, mark_kept, waited_enough
from cluster.training.checkpoints import staging_place
from cluster.training.curves import write_tensorboard
from cluster.training.deepspeed_config import clips_itself, deepspeed_config
from cluster.training.lengths import lengths_of
from cluster.training.shares import build_model
from cluster.training.task import TrainTask, epoch_rows, parameter_groups, step_seed, worker_share


@dataclass
class TrainJob:
    """All that a worker is given."""

    task: TrainTask
    out: str
    scratch: str
    board: Any


@dataclass
class TrainState:
    """Where a training stands; saved with every checkpoint."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def train_worker(config: dict[str, Any]) -> None:
    """Run one worker's part of the training; called by Ray Train on every worker."""
    job: TrainJob = config["job"]
    loop = Loop(job)
    loop.restore()
    if loop.state.step == 0:
        loop.evaluate()
    while not loop.ended():
        loop.step()
        if loop.evaluation_due():
            loop.evaluate()
        if loop.state.step % job.task.settings.checkpoint_every_steps == 0 and not loop.ended():
            loop.checkpoint()
    loop.save()


class Loop:
    """One worker's training: the engine, the data in a fixed order, and the state."""

    def __init__(self, job: TrainJob) -> None:
        import ray.train
        import torch

        context = ray.train.get_context()
        self.job, self.task, self.settings = job, job.task, job.task.settings
        use_gpus(self.settings.workers.gpus_per_worker)
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        if not torch.cuda.is_available():
            torch.set_num_threads(self.settings.workers.cpus_per_worker)
        self.rows = self.task.train_rows()
        self.dev = self.task.dev_rows()
        self.lengths = lengths_of(self.task, self.rows, Path(job.scratch))
        self.groups = self.task.groups(self.rows)
        self.per_epoch = -(-len(self.rows) // self.settings.global_batch)
        self.steps = self.settings.steps_over(len(self.rows))
        self.plan = deepspeed_config(self.settings, self.task.precision)
        self.clips = clips_itself(self.settings, self.task.precision)
        self.engine = self._engine()
        self.state = TrainState()
        self.started = time.monotonic()
        self.batches: tuple[int, Any] = (-1, None)
        self.best = BestWeights(Path(job.scratch))

    def _engine(self) -> Any:
        import deepspeed
        import torch
        from transformers import get_scheduler

        # On a CPU, DeepSpeed would compile an all-reduce kernel of its own: a minute at every user's first start,
        # and a failure where there is no compiler. Gloo needs none.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

        torch.manual_seed(self.task.seed)
        model = build_model(self.task, self.plan)
        if self.settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        groups, decay = parameter_groups(self.task, model), self.settings.weight_decay
        optimizer = torch.optim.AdamW(groups, weight_decay=decay, fused=True)
        warmup = round(self.steps * self.settings.warmup_ratio)
        name = {"constant": "constant_with_warmup"}.get(self.settings.schedule, self.settings.schedule)
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=lambda inner: get_scheduler(name, inner, warmup, self.steps),
            config=self.plan,
            dist_init_required=False,
        )
        if self.world == 1 and not self.plan["zero_optimization"]["stage"]:
            # One worker has nothing to average: DeepSpeed would copy all gradients out and back at every step.
            engine.enable_backward_allreduce = False
        return engine

    def restore(self) -> None:
        """Go on from the run's last checkpoint, if there is one."""
        import ray.train

        saved = ray.train.get_checkpoint()
        if saved is None:
            return
        with saved.as_directory() as folder:
            _, state = self.engine.load_checkpoint(folder, tag="state", load_module_strict=False)
            if self.rank == 0:
                self.best.copy_from(Path(folder))
        self.state = TrainState(**state["state"])

    def ended(self) -> bool:
        """Say whether all steps are done, or enough evaluations went by without a better one."""
        return self.state.step >= self.steps or waited_enough(self.state.history, self.settings)

    def step(self) -> None:
        """One optimizer step over the next global batch; the loss is the mean over its units on all workers."""
        import torch

        state, count = self.state, self.plan["gradient_accumulation_steps"]
        self.task.progress = state.step / self.steps
        epoch = state.step // self.per_epoch
        if self.batches[0] != epoch:
            self.batches = (epoch, epoch_rows(self.lengths, self.settings, self.task.seed, epoch, self.groups))
        whole = self.batches[1][state.step % self.per_epoch].tolist()
        mine = worker_share(whole, self.rank, self.world, self.groups is not None)
        size = len(mine) // count
        torch.manual_seed(step_seed(self.task.seed, state.step, self.rank))
        micro = [self._batch([self.rows[i] for i in mine[k * size : (k + 1) * size]]) for k in range(count)]
        units = self._sum({"units": float(sum(b["units"] for b in micro))})["units"]
        self.engine.train()
        totals: dict[str, float] = {}
        for batch in micro:
            loss, figures = self.task.loss(self.engine, batch)
            # DeepSpeed divides by the micro batches and by the workers; this makes it one mean over units.
            self.engine.backward(loss * (self.world * count / units))
            if self.clips and self.engine.is_gradient_accumulation_boundary():
                torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.settings.max_grad_norm)
            self.engine.step()
            for name, value in {"loss": float(loss.detach()), **figures}.items():
                totals[name] = totals.get(name, 0.0) + value
        state.step += 1
        means = {name: value / units for name, value in self._sum(totals).items()}
        self._log("train", {**means, "learning_rate": self.engine.get_lr()[0], "units": units})

    def evaluation_due(self) -> bool:
        """Say whether the step is the last, or ends an epoch after which the held-out rows are judged."""
        epochs, inside = divmod(self.state.step, self.per_epoch)
        last = self.state.step == self.steps
        return last or (inside == 0 and epochs % self.settings.evaluate_every_epochs == 0)

    def evaluate(self) -> None:
        """Judge the held-out rows, shared among the workers, log the figures, and put the best weights aside."""
        import torch

        if not len(self.dev):
            return
        order = sorted(range(len(self.dev)), key=lambda i: self.task.length(self.dev[i]))
        size = self.settings.micro_batch * 2
        chunks = [order[i : i + size] for i in range(0, len(order), size)]
        # With ZeRO-3 every worker must take part in every forward pass: all get as many chunks.
        while len(chunks) % self.world:
            chunks.append(chunks[-1])
        self.engine.eval()
        found: dict[int, dict[str, Any]] = {}
        with torch.no_grad():
            for chunk in chunks[self.rank :: self.world]:
                batch = self._batch([self.dev[i] for i in chunk])
                found.update(zip(chunk, self.task.predict(self.engine, batch), strict=True))
        records = self._gather(found)
        self._log("dev", self._agreed(self.task.summarise([records[i] for i in sorted(records)])))
        history = self.state.history
        if self.settings.keep == "best" and best(history, self.settings) is history[-1]:
            state = self._weights()
            if self.rank == 0:
                self.best.put(state)

    def checkpoint(self) -> None:
        """Report a checkpoint: every worker adds its shard to one folder."""
        import ray.train

        self.state.seconds += time.monotonic() - self.started
        self.started = time.monotonic()
        folder = staging_place(self.settings.staging, Path(self.job.scratch), self.rank)
        shutil.rmtree(folder, ignore_errors=True)  # a worker that was killed here has left its own
        folder.mkdir(parents=True)
        client = {"state": vars(self.state)}
        self.engine.save_checkpoint(str(folder), tag="state", client_state=client, exclude_frozen_parameters=True)
        if self.rank == 0:
            self.best.copy_to(folder)
        ray.train.report({"step": self.state.step}, ray.train.Checkpoint.from_directory(folder))
        shutil.rmtree(folder, ignore_errors=True)

    def save(self) -> None:
        """Let the task write its model folder from the weights that are kept."""
        import torch.distributed as dist

        mark_kept(self.state.history, self.settings)
        last = self.settings.keep == "last"
        state = self._weights() if last else {}
        out = Path(self.job.out)
        if self.rank == 0:
            lines = [json.dumps(row) + "\n" for row in self.state.history]
            with whole_file(out / "history.jsonl") as partial:
                partial.write_text("".join(lines), encoding="utf-8")
            write_tensorboard(self.state.history, out / "tensorboard")
            # Last: a stage that finds the model takes all of it as done.
            self.task.save(state if last else self.best.get(), out / "model")
        dist.barrier()

    def _weights(self) -> dict[str, Any]:
        """Return the trained parameters by name on rank 0, on the CPU; every worker must call it."""
        import deepspeed

        state = {}
        for name, parameter in self.engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.settings.zero_stage == 3):
                if self.rank == 0 and parameter.requires_grad:
                    state[name] = parameter.detach().cpu().clone()
        return state

    def _batch(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.task.collate(rows)
        device = self.engine.device
        return {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}

    def _sum(self, values: dict[str, float]) -> dict[str, float]:
        import torch
        import torch.distributed as dist

        if self.world == 1:
            return values
        names = sorted(values)
        total = torch.tensor([values[n] for n in names], dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(total)
        return dict(zip(names, total.tolist(), strict=True))

    def _gather(self, found: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        import torch.distributed as dist

        if self.world == 1:
            return found
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, found)
        return {i: record for part in parts for i, record in part.items()}

    def _agreed(self, figures: dict[str, float]) -> dict[str, float]:
        """Return rank 0's figures on every worker: what is best and when to stop must not differ by a bit."""
        import torch.distributed as dist

        if self.world == 1:
            return figures
        agreed = [figures]
        dist.broadcast_object_list(agreed)
        return agreed[0]

    def _log(self, split: str, figures: dict[str, float]) -> None:
        state = self.state
        seconds = state.seconds + time.monotonic() - self.started
        row = {"step": state.step, "epoch": state.step / self.per_epoch, "split": split, **figures, "seconds": seconds}
        state.history.append(row)
        if self.rank == 0:
            shown = {k: v for k, v in figures.items() if k in ("loss", "margin", "accuracy", "macro_f1")}
            named = {f"{split} {k}": v for k, v in shown.items()}
            self.job.board.put.remote("rank 0", state.step, state.step if self.ended() else self.steps, named)
