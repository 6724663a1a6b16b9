"""One explicit training loop for teacher, generator and student.

What differs, the rows, the loss and the metric, is a `Task`. Batches, order and initial weights
depend on the seed and the rows alone.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from sentisynth.config.types import TrainConfig
from sentisynth.errors import ModelError
from sentisynth.models.devices import autocast_dtype, best_device
from sentisynth.seeding import derive_seed

_LEAST_WEIGHT = 1e-12
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
    lengths = task.lengths()
    steps_per_epoch = math.ceil(len(lengths) / config.batch_size)
    total = total_steps or steps_per_epoch * config.epochs
    every = eval_every or config.eval_every or steps_per_epoch
    stepper = _Stepper(task, config, total, world)
    history, best, losses = History(), _Best(task.maximise, config.early_stopping), []
    started = time.perf_counter()
    seed_all(derive_seed(seed, "dropout", rank))
    batches = endless_batches(lengths, config.batch_size, derive_seed(seed, "order"))
    for step in range(1, total + 1):
        batch = next(batches)  # every worker gets a row, if need be one twice
        losses.append(stepper(np.resize(batch, max(len(batch), world))[rank::world]))
        if step % every and step != total:
            continue
        figures = _agreed(task.evaluate(stepper.autocast), world)
        mean_loss = torch.stack(losses).mean().item()
        losses.clear()
        if not math.isfinite(mean_loss):
            raise ModelError(
                f"the training loss is {mean_loss} at step {step}; lower train.learning_rate "
                f"(now {config.learning_rate:g}) or set train.precision=fp32"
            )
        entry = {"step": step, "epoch": step / steps_per_epoch, "train_loss": mean_loss, **figures}
        history.evaluations.append(entry)
        report({**entry, "total_steps": total})
        if best.offer(step, figures[task.metric], task.model):
            break
    history.steps, history.seconds = step, time.perf_counter() - started
    history.best_step = best.restore(task.model)
    return history


class _Stepper:
    """One optimiser step: forward, weighted mean over all workers, backward, clip, update."""

    def __init__(self, task: Task, config: TrainConfig, total: int, world: int) -> None:
        device = best_device()
        model = task.model.to(device)
        self.autocast = autocast_dtype(config.precision, device)
        self._task, self._config, self._world, self._device = task, config, world, device
        self._forward = DistributedDataParallel(model) if world > 1 else model
        self._scaler = torch.amp.GradScaler(
            device.type, enabled=self.autocast == torch.float16 and device.type == "cuda"
        )
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(_decay_groups(self._trained, config))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, _rate(config, total))

    def __call__(self, rows: np.ndarray) -> torch.Tensor:
        """Learn from this worker's rows and return the loss, detached."""
        self._forward.train()
        with torch.autocast(
            self._device.type, dtype=self.autocast, enabled=self.autocast is not None
        ):
            loss_sum, weight_sum = self._task.loss(self._forward, rows)
        weight_of_all = weight_sum.detach().clone()
        if self._world > 1:
            dist.all_reduce(weight_of_all)
        # DDP averages gradients over workers; rows that all weigh nothing give no gradient.
        loss = loss_sum * self._world / weight_of_all.clamp_min(_LEAST_WEIGHT)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._trained, self._config.max_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        return loss.detach()


def _agreed(figures: dict[str, float], world: int) -> dict[str, float]:
    """The first worker's figures, on every worker: all stop at the same step."""
    if world == 1:
        return figures
    box = [figures]
    dist.broadcast_object_list(box, src=0)
    return box[0]


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


def _decay_groups(trained: list[nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [{**group, "lr": config.learning_rate} for group in groups]


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
