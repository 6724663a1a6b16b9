"""One explicit training loop for teacher, generator and student.

What differs, the rows, the loss and the metric, is a `Task`; what makes an optimiser step of a loss
is an `Engine`. Batches, order, dropout and initial weights depend on the seed and the rows alone,
so that a training that was killed and goes on from its checkpoint ends with the same weights.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from sentisynth.config.types import TrainConfig
from sentisynth.errors import ModelError
from sentisynth.seeding import derive_seed
from sentisynth.training.checkpoint import Progress, check_state, commit, read_progress, read_state
from sentisynth.training.engine import Engine, State, make_engine
from sentisynth.training.rows import Rows, share_out, world

_LEAST_WEIGHT = 1e-12
_BUCKET_BATCHES = 16  # rows of this many batches are sorted by length together
_CHECKPOINT_S = 20.0  # a training of seconds writes no checkpoint before its end
_LONGEST_UNSAVED_S = 300.0  # that a loss may cost where an evaluation is far
_PULSE_STEPS, _PULSE_S = 20, 5.0  # the loss is told between evaluations
LOWER_IS_BETTER = ("perplexity", "validation_loss")

Report = Callable[[dict[str, Any]], None]


class Task(Protocol):
    """What is learned: rows, their loss, and how well it goes."""

    model: PreTrainedModel
    rows: Rows
    metric: str
    """Name of the figure that chooses the best step, unless the configuration names another."""

    def weight(self, rows: np.ndarray) -> float:
        """What the rows (B,) of a batch weigh together; fillers weigh nothing."""
        ...

    def loss(self, forward: nn.Module, rows: np.ndarray) -> torch.Tensor:
        """Sum of weighted losses over the rows (B,): a scalar."""
        ...

    def evaluate(self, forward: nn.Module, autocast: torch.dtype | None) -> dict[str, float]:
        """Figures on the validation rows; every worker takes its share, all get the result."""
        ...


def seed_all(seed: int) -> None:
    """Seed torch for initial weights and dropout."""
    torch.manual_seed(seed % 2**63)


def fit(
    task: Task,
    config: TrainConfig,
    seed: int,
    report: Report,
    work: Path,
    *,
    total_steps: int | None = None,
    eval_every: int | None = None,
) -> Progress:
    """Train `task.model`; the weights of the best evaluation are then in `work`, see `checkpoint`.

    The loss of a step is Σ w_i L_i / Σ w_i over the rows of all workers and forward passes.
    A training that was killed goes on from its last checkpoint in `work`. `total_steps` and
    `eval_every` override what the epochs say. Raises ModelError if the loss is not finite.
    """
    progress = read_progress(work)
    options = {"total_steps": total_steps, "eval_every": eval_every}
    for entry in evaluations(task, config, seed, work, progress, pulse=report, **options):
        report(entry)
    return progress


def evaluations(
    task: Task,
    config: TrainConfig,
    seed: int,
    work: Path,
    progress: Progress,
    *,
    total_steps: int | None = None,
    eval_every: int | None = None,
    pulse: Report | None = None,
) -> Generator[dict[str, Any], None, None]:
    """`fit` step by step: train on from `progress`; gives the figures of each evaluation.

    `pulse` is told the training loss between evaluations that are far apart.
    """
    rank, world_size = world()
    per_epoch = math.ceil(len(task.rows) / config.batch_size)
    total = total_steps or per_epoch * config.epochs
    every = eval_every or config.eval_every or per_epoch
    parts = forward_passes(config, world_size)
    if progress.is_finished:
        return
    rate = _rate(config, total)
    engine = _started(task, config, progress, work, rank, world_size)
    best = _Best(config.metric or task.metric, progress)
    saved = clock = time.monotonic()
    heart = _Pulse(pulse)
    losses: list[torch.Tensor] = []
    batches = endless_batches(task.rows.lengths, config.batch_size, derive_seed(seed, "order"))
    for step, batch in enumerate(islice(batches, progress.step, total), progress.step + 1):
        seed_all(derive_seed(seed, "dropout", rank, step))
        shares = share_out(batch, rank, world_size, parts)
        losses.append(take_step(engine, task, shares, task.weight(batch), rate(step - 1)))
        progress.step = step
        is_evaluated = step % every == 0 or step == total
        is_due = config.checkpoint_every is not None and step % config.checkpoint_every == 0
        if not is_evaluated and not is_due and step % _PULSE_STEPS:
            continue
        recent = _summed(losses, engine.device).tolist()
        progress.losses += recent
        losses.clear()
        progress.seconds += time.monotonic() - clock
        clock = time.monotonic()
        heart.beat(recent, progress, total, config, is_evaluated)
        if is_evaluated:
            entry = _evaluated(task, engine, progress, per_epoch, config)
            best.offer(entry[best.metric], engine)
            progress.is_finished = step == total or 0 < config.early_stopping <= progress.since_best
            if progress.is_finished and progress.best_value is None:
                raise ModelError(
                    f"{best.metric} was no number in any evaluation; lower train.learning_rate "
                    f"(now {config.learning_rate:g}) or set train.precision=fp32"
                )
            waited = time.monotonic() - saved > _CHECKPOINT_S and config.checkpoint_every is None
            is_due = is_due or progress.is_finished or _agreed(waited, engine.device)
        elif not is_due and config.checkpoint_every is None:
            waited = time.monotonic() - saved > _LONGEST_UNSAVED_S
            is_due = _agreed(waited, engine.device)
        if is_due:
            _save(work, progress, engine, best, rank)
            saved = time.monotonic()
        if is_evaluated:
            try:
                yield {**entry, "total_steps": total}
            except GeneratorExit:  # ended from outside: what was reached shall not be lost
                if not is_due and world_size == 1:
                    _save(work, progress, engine, best, rank)
                raise
            clock = time.monotonic()  # what is done with the figures is no training
        if progress.is_finished:
            break
    if dist.is_initialized():
        dist.barrier()


def forward_passes(config: TrainConfig, world_size: int) -> int:
    """Forward passes of a worker for one optimiser step."""
    rows = -(-config.batch_size // world_size)
    return -(-rows // (config.micro_batch_size or rows))


def _started(
    task: Task, config: TrainConfig, progress: Progress, work: Path, rank: int, world_size: int
) -> Engine:
    """The engine around the model, at the step where the progress stands."""
    if config.gradient_checkpointing:
        if not task.model.supports_gradient_checkpointing:
            kind = type(task.model).__name__
            raise ModelError(f"{kind} has no gradient checkpointing; leave it out of train")
        task.model.gradient_checkpointing_enable({"use_reentrant": False})
    if not progress.step:
        return make_engine(task.model, config, rank, world_size)
    state = read_state(work, progress.step)
    check_state(task.model, state, work)
    engine = make_engine(task.model, config, rank, world_size)
    engine.load(state, progress.scale)
    return engine


def take_step(
    engine: Engine, task: Task, shares: list[np.ndarray], weight: float, rate: float
) -> torch.Tensor:
    """Learn from this worker's rows of a batch; returns its part of the loss, detached.

    `weight` is that of the whole batch; rows that all weigh nothing give no gradient.
    """
    engine.forward.train()
    total = torch.zeros((), device=engine.device)
    for i, rows in enumerate(shares):
        engine.begin(is_last=i == len(shares) - 1)
        with torch.autocast(
            engine.device.type, dtype=engine.autocast, enabled=engine.autocast is not None
        ):
            loss = task.loss(engine.forward, rows) / max(weight, _LEAST_WEIGHT)
        engine.backward(loss)
        total += loss.detach()
    engine.step(rate)
    return total


def _evaluated(
    task: Task, engine: Engine, progress: Progress, per_epoch: int, config: TrainConfig
) -> dict[str, float]:
    """Evaluate, and note the figures."""
    mean_loss = _finite(float(np.mean(progress.losses)), progress, config)
    progress.losses.clear()
    engine.forward.eval()
    figures = task.evaluate(engine.forward, engine.autocast)
    progress.evaluations.append(
        {
            "step": progress.step,
            "epoch": progress.step / per_epoch,
            "train_loss": mean_loss,
            **figures,
        }
    )
    return progress.evaluations[-1]


class _Pulse:
    """Tells the training loss between evaluations that are far apart."""

    def __init__(self, report: Report | None) -> None:
        self._report, self._told = report, time.monotonic()

    def beat(
        self,
        losses: list[float],
        progress: Progress,
        total: int,
        config: TrainConfig,
        is_evaluated: bool,
    ) -> None:
        """The mean of these losses, unless something was told a moment ago or is told now."""
        is_due = time.monotonic() - self._told > _PULSE_S
        if self._report is None or not (is_due or is_evaluated):
            return
        if not is_evaluated:
            loss = _finite(float(np.mean(losses)), progress, config)
            self._report({"step": progress.step, "total_steps": total, "train_loss": loss})
        self._told = time.monotonic()


def _finite(loss: float, progress: Progress, config: TrainConfig) -> float:
    if not math.isfinite(loss):
        raise ModelError(
            f"the training loss is {loss} at step {progress.step}; lower train.learning_rate "
            f"(now {config.learning_rate:g}) or set train.precision=fp32"
        )
    return loss


class _Best:
    """The trained weights of the best evaluation, on the first worker, until they are written."""

    def __init__(self, metric: str, progress: Progress) -> None:
        self.metric, self._progress = metric, progress
        self._weights: State | None = None

    def offer(self, value: float, engine: Engine) -> None:
        """Take the weights if their figure is the best so far."""
        value = -value if self.metric in LOWER_IS_BETTER else value
        progress = self._progress
        best = -math.inf if progress.best_value is None else progress.best_value
        if not value > best:  # not a number is never better
            progress.since_best += 1
            return
        progress.best_value, progress.best_step, progress.since_best = value, progress.step, 0
        self._weights = engine.state(moments=False)

    def take(self) -> State | None:
        """What has not been written yet."""
        weights, self._weights = self._weights, None
        return weights


def _save(work: Path, progress: Progress, engine: Engine, best: _Best, rank: int) -> None:
    """Write a checkpoint; of a finished training, the best weights alone."""
    state = None if progress.is_finished else engine.state(moments=True)
    progress.scale = engine.scale()
    if rank == 0:
        commit(work, progress, state, best.take())


def _summed(losses: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The loss of each step, summed over the workers."""
    stacked = torch.stack(losses) if losses else torch.zeros(0, device=device)
    if dist.is_initialized() and len(losses):
        dist.all_reduce(stacked)
    return stacked.cpu()


def _agreed(wanted: bool, device: torch.device) -> bool:
    """The first worker's answer."""
    if not dist.is_initialized():
        return wanted
    answer = torch.tensor(float(wanted), device=device)
    dist.broadcast(answer, src=0)
    return bool(answer)


def endless_batches(lengths: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of batch after batch: each epoch all rows once, similar lengths together."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(lengths))
        batches = []
        for start in range(0, len(order), batch_size * _BUCKET_BATCHES):
            bucket = order[start : start + batch_size * _BUCKET_BATCHES]
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        for i in random.permutation(len(batches)):
            yield batches[i]


def decay_until(config: TrainConfig, step: int, total: int) -> float:
    """Π (1 − λη) over the first `step` steps: what AdamW's decay leaves of a weight without
    gradient.
    """
    rate = _rate(config, total)
    return math.prod(1 - config.weight_decay * rate(s) for s in range(step))


def _rate(config: TrainConfig, total: int) -> Callable[[int], float]:
    """The learning rate of a step, counted from 0."""
    warmup, peak = int(config.warmup_ratio * total), config.learning_rate

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if config.schedule == "constant":
            return peak
        progress = (step - warmup) / max(1, total - warmup)
        if config.schedule == "linear":
            return peak * (1 - progress)
        return peak * (1 + math.cos(math.pi * progress)) / 2

    return rate
