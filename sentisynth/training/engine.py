"""What turns losses into optimiser steps: torch (one process or DDP), or DeepSpeed.

Both start from the same weights, groups and AdamW, get the same losses and rates, and give and
take the same state, so that a checkpoint of one can be gone on with by the other.
"""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from sentisynth.config.types import TrainConfig
from sentisynth.models.devices import autocast_dtype, best_device

MOMENTS = ("exp_avg", "exp_avg_sq")
ADAM_STEPS = "adam_steps"
DEFAULT_ZERO_STAGE = 0  # as fast as DDP; the others save memory and cost time
State = dict[str, torch.Tensor]
"""`weights.NAME`, `exp_avg.NAME` and `exp_avg_sq.NAME` of each trained parameter, whole, in fp32
on the CPU."""


class Engine(Protocol):
    """One optimiser over all workers. Every worker calls the same methods in the same order."""

    forward: nn.Module
    """The model to call."""
    autocast: torch.dtype | None
    device: torch.device
    is_partitioned: bool
    """Whether a forward pass needs all workers, since each holds a part of the weights."""

    def begin(self, *, is_last: bool) -> None:
        """Say, before a forward pass, whether its gradients are the last of a step: then all of
        the step's are summed over the workers.
        """
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss's gradients."""
        ...

    def step(self, rate: float) -> None:
        """Clip, update with this learning rate, and forget the gradients."""
        ...

    def state(self, *, moments: bool) -> State:
        """The trained weights, and the moments if asked for; empty but on the first worker."""
        ...

    def scale(self) -> dict[str, Any]:
        """The loss scale of fp16, and AdamW's own count of steps: fp16 skips some."""
        ...

    def load(self, state: State, scale: dict[str, Any]) -> None:
        """Go on from `state` and `scale`."""
        ...


def chosen_engine(config: TrainConfig) -> Literal["torch", "deepspeed"]:
    """`auto` is DeepSpeed where there are several workers or settings for it, else torch."""
    if config.engine != "auto":
        return config.engine
    asked = config.zero_stage is not None or config.deepspeed or config.offload != "none"
    return "deepspeed" if config.workers > 1 or asked else "torch"


def default_stage(config: TrainConfig) -> int:
    """DeepSpeed's stage where nothing says it: 0 is the fastest, and offloads nothing."""
    return DEFAULT_ZERO_STAGE if config.offload == "none" else 2


def make_engine(model: PreTrainedModel, config: TrainConfig, rank: int, world: int) -> Engine:
    """The engine that the configuration asks for, around a model on the CPU."""
    if chosen_engine(config) == "deepspeed":
        from sentisynth.training.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(model, config, rank, world)
    return TorchEngine(model, config, rank, world)


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that have gradients; a shared one once."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def parts_of(model: nn.Module) -> list[tuple[float, list[nn.Parameter]]]:
    """The parts of a model that have an optimiser each: a factor of the learning rate, parameters.

    A model of several says so by `rate_factors`, a mapping of name prefixes to factors.
    """
    factors: dict[str, float] = getattr(model, "rate_factors", {"": 1.0})
    return [
        (factor, [p for name, p in trained(model) if name.startswith(prefix)])
        for prefix, factor in factors.items()
    ]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices alone. Of several parts it is one in name only: AdamW treats
    each parameter by itself, and gradients are clipped part by part.
    """
    groups: list[dict[str, Any]] = []
    for factor, parameters in parts_of(model):
        matrices = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups += [
            {"params": matrices, "weight_decay": config.weight_decay, "factor": factor},
            {"params": others, "weight_decay": 0.0, "factor": factor},
        ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=config.learning_rate,
        betas=(0.9, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def set_rate(optimizer: Any, rate: float) -> None:
    """Give each group its learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


class TorchEngine:
    """Plain torch: autocast over fp32 weights, a loss scale for fp16, DDP with several workers."""

    is_partitioned = False

    def __init__(self, model: PreTrainedModel, config: TrainConfig, rank: int, world: int) -> None:
        self.device = best_device()
        self._model = model.to(self.device)
        self.autocast = autocast_dtype(config.precision, self.device)
        self._rank, self._world, self._max_norm = rank, world, config.max_grad_norm
        self.forward = model
        if world > 1:  # no second copy of the gradients
            self.forward = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.autocast == torch.float16 and self.device.type == "cuda"
        )
        self._optimizer = make_optimizer(model, config)
        self._parts = [parameters for _, parameters in parts_of(model)]

    def begin(self, *, is_last: bool) -> None:
        if isinstance(self.forward, DistributedDataParallel):
            self.forward.require_backward_grad_sync = is_last

    def backward(self, loss: torch.Tensor) -> None:
        self._scaler.scale(loss * self._world).backward()  # DDP takes the mean over workers

    def step(self, rate: float) -> None:
        set_rate(self._optimizer, rate)
        self._scaler.unscale_(self._optimizer)
        for parameters in self._parts:
            nn.utils.clip_grad_norm_(parameters, self._max_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def state(self, *, moments: bool) -> State:
        if self._rank:
            return {}
        found = {f"weights.{n}": _whole(p) for n, p in trained(self._model)}
        for name, p in trained(self._model) if moments else ():
            kept = self._optimizer.state.get(p, {})
            found |= {f"{m}.{name}": _whole(kept[m]) for m in MOMENTS if m in kept}
        return found

    def scale(self) -> dict[str, Any]:
        return {**self._scaler.state_dict(), ADAM_STEPS: adam_steps(self._optimizer)}

    def load(self, state: State, scale: dict[str, Any]) -> None:
        scale = dict(scale)
        steps = scale.pop(ADAM_STEPS, 0)
        with torch.no_grad():
            for name, p in trained(self._model):
                p.copy_(state[f"weights.{name}"])
                if f"{MOMENTS[0]}.{name}" in state:
                    kept = {m: state[f"{m}.{name}"].to(p.device) for m in MOMENTS}
                    step = torch.tensor(float(steps), device=p.device)
                    self._optimizer.state[p] = {"step": step, **kept}
        if scale and self._scaler.is_enabled():  # DeepSpeed's knows the scale alone
            self._scaler.load_state_dict({**self._scaler.state_dict(), **scale})


def adam_steps(optimizer: torch.optim.Optimizer) -> int:
    """Steps that AdamW has taken."""
    return max((int(kept["step"]) for kept in optimizer.state.values() if kept), default=0)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
