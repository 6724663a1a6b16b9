"""What one of two training workers does in test_engines; both run all cases in turn."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from sentisynth.config.types import TrainConfig
from sentisynth.data.files import write_json
from sentisynth.training.loop import fit
from tests.training.test_loop import reweighted, stop_after, task, without_dropout

STEPS = 30
# else every tensor of so small a model stays whole
PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
ENGINES: dict[str, dict[str, object]] = {
    "torch": {"engine": "torch"},
    "torch-accumulated": {"engine": "torch", "micro_batch_size": 2},
    "zero-0": {"engine": "deepspeed", "zero_stage": 0},
    "zero-1": {"engine": "deepspeed", "zero_stage": 1},
    "zero-2": {"engine": "deepspeed", "zero_stage": 2},
    "zero-3": {"engine": "deepspeed", "zero_stage": 3, "deepspeed": PARTITIONED},
    "zero-1-accumulated": {"engine": "deepspeed", "zero_stage": 1, "micro_batch_size": 2},
    "zero-2-offloaded": {"engine": "deepspeed", "zero_stage": 2, "offload": "optimizer"},
    "zero-0-bf16": {"engine": "deepspeed", "zero_stage": 0, "precision": "bf16"},
    "zero-1-bf16": {"engine": "deepspeed", "zero_stage": 1, "precision": "bf16"},
    "zero-3-bf16": {"engine": "deepspeed", "zero_stage": 3, "precision": "bf16"},
}


def config_of(name: str, workers: int) -> TrainConfig:
    settings = {
        "workers": workers,
        "epochs": 20,
        "batch_size": 5,  # no multiple of the workers: one of them gets a filler
        "learning_rate": 4e-3,
        "eval_every": 10,
        "checkpoint_every": 15,
        "precision": "fp32",
    }
    return TrainConfig.model_validate({**settings, **ENGINES[name]})


def curve(tiny_bert: Path, name: str, workers: int, out: Path) -> None:
    """Train for 30 steps undisturbed, and again with a stop after 18, which goes back to 15."""
    config = config_of(name, workers)
    for kind in ("undisturbed", "stopped"):
        work = out / kind
        for attempt in range(1 if kind == "undisturbed" else 2):
            learned = without_dropout(task(tiny_bert, 6))
            learned.rows = reweighted(learned.rows, [1.0, 0.3, 0.0] * 4)
            is_stopped = kind == "stopped" and not attempt
            if is_stopped:
                stop_after(learned, 18 * (config.micro_batch_size or 1))
            entries: list[dict[str, float]] = []
            try:
                progress = fit(learned, config, 5, entries.append, work, total_steps=STEPS)
            except KeyboardInterrupt:
                assert is_stopped
            else:
                assert not is_stopped
        if not dist.is_initialized() or dist.get_rank() == 0:
            write_json(out / f"{kind}.json", progress.evaluations)


def main(tiny_bert: str, out: str, rank: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    dist.init_process_group(
        "gloo", init_method=f"file://{out}/rendezvous", rank=int(rank), world_size=2
    )
    for name in ENGINES:
        curve(Path(tiny_bert), name, 2, Path(out) / name)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
