"""DeepSpeed as the engine of the training loop, ZeRO stages 0 to 3 (Rajbhandari et al., "ZeRO:
memory optimizations toward training trillion parameter models", 2020). The one user of DeepSpeed.

The optimiser is torch's fused AdamW on every device, offloaded or not, and gradients travel by
torch's own backends: no operator of DeepSpeed's has to be compiled on the machine.
"""

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from sentisynth.config.types import TrainConfig
from sentisynth.errors import ConfigError
from sentisynth.models.devices import autocast_dtype, best_device
from sentisynth.training.engine import (
    ADAM_STEPS,
    MOMENTS,
    State,
    adam_steps,
    default_stage,
    make_optimizer,
    set_rate,
    trained,
)

_SHM_OPERATOR = "deepspeed_shm_comm"  # compiled at the first use on a CPU; gloo does the same


class DeepSpeedEngine:
    """`deepspeed.initialize` around the model; bf16 and fp16 are DeepSpeed's own modes, with fp32
    master weights.
    """

    autocast: torch.dtype | None = None

    def __init__(self, model: PreTrainedModel, config: TrainConfig, rank: int, world: int) -> None:
        with _quiet():
            import deepspeed
            import deepspeed.ops
            from deepspeed import utils

            deepspeed.ops.__compatible_ops__[_SHM_OPERATOR] = False
            self._utils = utils
            self.device = best_device()
            settings = deepspeed_settings(config, self.device, world)
            self._stage = settings["zero_optimization"]["stage"]
            self.is_partitioned = self._stage == 3
            self._rank, self._world, self._model = rank, world, model
            if not dist.is_initialized():  # one process of its own
                backend = "nccl" if self.device.type == "cuda" else "gloo"
                os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
                store = torch._C._distributed_c10d.HashStore()
                dist.init_process_group(backend, store=store, rank=0, world_size=1)
            try:
                self._engine, *_ = deepspeed.initialize(
                    model=model,
                    optimizer=make_optimizer(model, config),
                    config=settings,
                    dist_init_required=False,
                )
            except (ValueError, TypeError, AssertionError, NotImplementedError) as error:
                reason = " ".join(str(error).split())[:300]
                raise ConfigError(f"DeepSpeed refuses train.deepspeed: {reason}") from None
        self.forward: nn.Module = self._engine
        self._optimizer = self._engine.optimizer
        # stage 0 in 16 bits: whole masters in fp32 beside the weights
        pairs = zip(
            getattr(self._optimizer, "fp16_groups", ()),
            getattr(self._optimizer, "fp32_groups", ()),
            strict=False,
        )
        self._masters = {id(p): m for ps, ms in pairs for p, m in zip(ps, ms, strict=True)}

    def begin(self, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)

    def backward(self, loss: torch.Tensor) -> None:
        # DeepSpeed takes the mean over workers
        self._engine.backward(loss * self._world, scale_wrt_gas=False)

    def step(self, rate: float) -> None:
        set_rate(self._optimizer, rate)
        self._engine.step()

    def state(self, *, moments: bool) -> State:
        self._link_moments()
        keys = ["weights", *(MOMENTS if moments else ())]
        found: State = {}
        for key in keys:
            for name, p in trained(self._model):
                whole = self._whole(p, key)
                if self._rank == 0 and whole is not None:
                    found[f"{key}.{name}"] = whole.detach().to("cpu", torch.float32, copy=True)
        return found

    def scale(self) -> dict[str, Any]:
        scaler, steps = self._scaler(), adam_steps(self._inner)
        return {ADAM_STEPS: steps} | ({} if scaler is None else {"scale": float(scaler.cur_scale)})

    def load(self, state: State, scale: dict[str, Any]) -> None:
        self._make_moments(scale.get(ADAM_STEPS, 0))
        for name, p in trained(self._model):
            for key in ("weights", *MOMENTS):
                if f"{key}.{name}" in state:
                    self._put(p, key, state[f"{key}.{name}"].to(self.device))
        scaler = self._scaler()
        if scaler is not None and "scale" in scale:
            scaler.cur_scale = scale["scale"]

    def _scaler(self) -> Any:
        """What holds fp16's loss scale, if anything does."""
        found = getattr(self._optimizer, "loss_scaler", None)
        return found or getattr(self._optimizer, "loss_scale_config", None)

    def _is_plain(self, p: nn.Parameter) -> bool:
        """Whether the parameter, or its master, is whole on every worker: stage 0."""
        return not hasattr(p, "ds_id") and not hasattr(p, "_hp_mapping")

    def _whole(self, p: nn.Parameter, key: str) -> torch.Tensor | None:
        if self._is_plain(p):
            master = self._masters.get(id(p), p)
            return master if key == "weights" else self._inner.state.get(master, {}).get(key)
        if key == "weights":
            return self._utils.safe_get_full_fp32_param(p)
        if not any(self._inner.state.values()):  # before the first step
            return None
        return self._utils.safe_get_full_optimizer_state(p, key)

    def _put(self, p: nn.Parameter, key: str, value: torch.Tensor) -> None:
        if self._is_plain(p):
            master = self._masters.get(id(p), p)
            with torch.no_grad():
                (master if key == "weights" else self._inner.state[master][key]).copy_(value)
                if key == "weights":
                    p.copy_(value)
        elif self.is_partitioned:
            self._put_partition(p, key, value)
        elif key != "weights":
            self._utils.safe_set_full_optimizer_state(p, value, key)
        else:
            self._utils.safe_set_full_fp32_param(p, value)
            p.data.copy_(value)

    def _put_partition(self, p: Any, key: str, value: torch.Tensor) -> None:
        """The worker's part of a weight or moment; the last worker's may be padded."""
        size = p.ds_tensor.numel()
        own = value.flatten()[self._rank * size : (self._rank + 1) * size]
        own = nn.functional.pad(own, (0, size - own.numel()))
        if key == "weights":
            self._utils.safe_set_local_fp32_param(p, own)
            p.ds_tensor.data.copy_(own)
        else:
            self._utils.safe_set_local_optimizer_state(p, own, key)

    @property
    def _inner(self) -> torch.optim.Optimizer:
        return getattr(self._optimizer, "optimizer", self._optimizer)

    def _make_moments(self, steps: int) -> None:
        """Give each flat partition its moments, which appear at the first step otherwise."""
        flat = getattr(self._optimizer, "fp32_partitioned_groups_flat", None)  # stage 3
        if flat is None:
            flat = [p for group in self._inner.param_groups for p in group["params"]]
        for p in flat:
            step = torch.tensor(float(steps), device=p.device)
            zeros = {m: torch.zeros_like(p, dtype=torch.float32) for m in MOMENTS}
            self._inner.state[p] = {"step": step, **zeros}
        self._link_moments()

    def _link_moments(self) -> None:
        """Let parameters know their part of the flat moments. DeepSpeed does that at the end of
        the first group's first step, when the other groups have no moments yet.
        """
        if hasattr(self._optimizer, "_hp_optimizer_states_linked"):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()


def deepspeed_settings(
    config: TrainConfig, device: torch.device | None, world: int
) -> dict[str, Any]:
    """The JSON that DeepSpeed gets: the user's, and ours where his says nothing or `auto`.

    Raises ConfigError where the two contradict each other. Where the device is not known yet, what
    hangs on it is left out.
    """
    rows = -(-config.batch_size // world)
    parts = -(-rows // (config.micro_batch_size or rows))
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": -(-rows // parts),
        "train_batch_size": -(-rows // parts) * parts * world,
        "gradient_accumulation_steps": parts,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {},
        "fp16": {},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {},
    }
    kind = None if device is None else device.type
    if device is not None or config.precision != "auto":
        dtype = autocast_dtype(config.precision, device or torch.device("cpu"))
        if dtype == torch.float16 and kind == "cpu":
            raise ConfigError("DeepSpeed has no fp16 on a CPU; set train.precision=fp32 or bf16")
        ours["bf16"] = {"enabled": dtype == torch.bfloat16}
        ours["fp16"] = {"enabled": dtype == torch.float16}
    settings = copy.deepcopy(config.deepspeed or {})
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise ConfigError(
                f"train.deepspeed has a section {key!r}; leave it out: train.learning_rate, "
                f"schedule, warmup_ratio and weight_decay say it"
            )
    _agree(settings, ours, "train.deepspeed")
    zero = settings["zero_optimization"]
    if zero.get("stage") == "auto":
        del zero["stage"]
    if config.zero_stage is not None:
        _agree(zero, {"stage": config.zero_stage}, "train.deepspeed.zero_optimization")
    zero.setdefault("stage", default_stage(config))
    if config.offload != "none":
        device_of = {"device": "cpu", "pin_memory": kind == "cuda"}
        zero.setdefault("offload_optimizer", device_of)
        if config.offload == "parameters":
            zero.setdefault("offload_param", device_of)
    return settings


def _agree(theirs: dict[str, Any], ours: dict[str, Any], name: str) -> None:
    """Fill in what is missing or `auto`. Raises ConfigError at a contradiction."""
    for key, value in ours.items():
        found = theirs.get(key, "auto")
        if found == "auto":
            theirs[key] = value
        elif isinstance(value, dict):
            if not isinstance(found, dict):
                raise ConfigError(f"{name}.{key} is {found!r}; it must be a mapping")
            _agree(found, value, f"{name}.{key}")
        elif found != value:
            raise ConfigError(
                f"{name}.{key} is {found!r}, the rest of the configuration says {value!r}; change "
                f'one of them, or write "auto" there'
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed tells of its accelerator and its settings while it is imported and started."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        logger.setLevel(max(level, logging.ERROR))
