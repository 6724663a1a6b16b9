"""One explicit training loop for teacher, generator and student.

What differs, the rows, the loss and the metric, is a `Task`. Batches, order and initial weights
depend on the seed and the rows alone.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from sentisynth.config.types import TrainConfig
from sentisynth.models.loading import autocast_dtype, best_device
from sentisynth.seeding import derive_seed

_BUCKET_BATCHES = 16  # rows of this many batches are sorted by length together


class Task(Protocol):
    """What is learned: rows by position, their loss, and how well it goes."""

    model: PreTrainedModel
    metric: str
    """Name of the figure that chooses the best step; see `maximise`."""
    maximise: bool

    def lengths(self) -> np.ndarray:
        """Tokens of each training row (N,)."""
        ...

    def loss(self, forward: nn.Module, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of weighted losses over the rows, and the sum of their weights: two scalars."""
        ...

    def evaluate(self, autocast: torch.dtype | None) -> dict[str, float]:
        """Figures on the validation rows, `metric` among them."""
        ...


@dataclass
class History:
    """What a training left behind; the model holds the weights of `best_step`."""

    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    steps: int = 0
    seconds: float = 0.0


def seed_all(seed: int) -> None:
    """Seed torch for initial weights and dropout."""
    torch.manual_seed(seed % 2**63)


def fit(
    task: Task,
    config: TrainConfig,
    seed: int,
    report: Callable[[dict[str, Any]], None],
    total_steps: int | None = None,
    eval_every: int | None = None,
) -> History:
    """Train `task.model`, leave it with its best weights, and return the figures.

    The loss of a step is Σ w_i L_i / Σ w_i over the rows of all workers. `total_steps` and
    `eval_every` override what the epochs say.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = best_device()
    model = task.model.to(device)
    forward = DistributedDataParallel(model) if world > 1 else model
    autocast = autocast_dtype(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
    lengths = task.lengths()
    steps_per_epoch = math.ceil(len(lengths) / config.batch_size)
    total = total_steps or steps_per_epoch * config.epochs
    every = eval_every or config.eval_every or steps_per_epoch
    optimizer = torch.optim.AdamW(_decay_groups(model, config), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(config, total))
    history, best, losses = History(), _Best(task.maximise, config.early_stopping), []
    started = time.perf_counter()
    seed_all(derive_seed(seed, "dropout", rank))
    batches = endless_batches(lengths, config.batch_size, derive_seed(seed, "order"))
    for step in range(1, total + 1):
        forward.train()
        rows = next(batches)[rank::world]
        cast = nullcontext() if autocast is None else torch.autocast(device.type, dtype=autocast)
        with cast:
            loss_sum, weight_sum = task.loss(forward, rows)
        weight_of_all = weight_sum.detach().clone()
        if world > 1:
            dist.all_reduce(weight_of_all)
        loss = loss_sum * world / weight_of_all  # DDP averages gradients over workers
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        losses.append(loss.detach())
        if step % every == 0 or step == total:
            figures = task.evaluate(autocast)
            mean_loss = torch.stack(losses).mean().item()
            entry = {"step": step, "epoch": step / steps_per_epoch, "train_loss": mean_loss}
            history.evaluations.append(entry | figures)
            report({**entry, **figures, "total_steps": total})
            losses.clear()
            if best.offer(step, figures[task.metric], model):
                break
    history.steps, history.seconds = step, time.perf_counter() - started
    history.best_step = best.restore(model)
    return history


class _Best:
    """Keeps the weights of the best evaluation in memory, and says when to stop."""

    def __init__(self, maximise: bool, patience: int) -> None:
        self._sign, self._patience = (1 if maximise else -1), patience
        self._value, self._step, self._since = -math.inf, 0, 0
        self._state: dict[str, torch.Tensor] = {}

    def offer(self, step: int, value: float, model: nn.Module) -> bool:
        """Take the weights if they are better; True once patience has run out."""
        if self._sign * value > self._value:
            self._value, self._step, self._since = self._sign * value, step, 0
            self._state = {
                k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()
            }
        else:
            self._since += 1
        return 0 < self._patience <= self._since

    def restore(self, model: nn.Module) -> int:
        """Put the best weights back and return their step; 0 where no figure was finite."""
        if self._state:
            model.load_state_dict(self._state)
        return self._step


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


def _decay_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _rate(config: TrainConfig, total: int) -> Callable[[int], float]:
    warmup = int(config.warmup_ratio * total)

    def share_of_peak(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.schedule == "constant":
            return 1.0
        progress = (step - warmup) / max(1, total - warmup)
        return (
            1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
        )

    return share_of_peak
