"""What it costs on a CPU that memory which is freed goes back to the kernel.

    python benchmarks/allocator.py [--repeats 3] [--json FILE]

A training step of the causal recipe's shape (GPT-2, 6 layers of 256, 8,192 pieces, 64 rows of 100
tokens, fp32), and a unit of 256 candidates of 32 tokens by our engine (GPT-2 small's shape, random
weights, in each precision). Each in a process that keeps what it frees, as workers that train on
CPUs do (`sentisynth.models.allocator`), and in one as the C library leaves it, in turn in each
repetition; of each the third of three, with the page faults in it. Peak memory is the process'.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from environment import environment

from sentisynth.models.allocator import VARIABLES
from sentisynth.models.devices import multiplies_int8

TASKS = ["training step", "unit, fp32"]
PROMPT = [50000, 11, 22, 33]


def training() -> Callable[[], Any]:
    import torch.nn.functional as F
    from transformers import GPT2Config, GPT2LMHeadModel

    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    shape = {"vocab_size": 8192, "n_positions": 128, "n_embd": 256, "n_layer": 6, "n_head": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "activation_function": "gelu_pytorch_tanh"}
    model = GPT2LMHeadModel(GPT2Config(**shape, **ends, **off)).train()
    ids = torch.randint(0, 8192, (64, 100))

    def step() -> None:
        model.zero_grad()
        logits = model(input_ids=ids[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()

    return step


def generation(precision: str) -> Callable[[], Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    from sentisynth.config.synthesis import SamplingConfig
    from sentisynth.data.units import Unit
    from sentisynth.generation.batch_engine import BatchEngine

    model = GPT2LMHeadModel(GPT2Config()).eval()
    dtype = torch.int8 if precision == "int8" else torch.float32
    engine = BatchEngine(model, SimpleNamespace(eos_token_id=-1), dtype)
    sampling = SamplingConfig(
        max_new_tokens=32, temperature=0.8, top_k=50, top_p=0.95, repetition_penalty=1.2
    )
    return lambda: engine(PROMPT, Unit(0, 0, 256), 1, sampling)


def measured(task: str) -> dict[str, float]:
    torch.manual_seed(0)
    run = training() if task == TASKS[0] else generation(task.partition(", ")[2])
    for _ in range(3):
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        run()
        seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt - before.ru_minflt
    return {"seconds": seconds, "faults": faults, "peak MB": after.ru_maxrss / 1024}


def in_a_process(task: str, keeps: bool) -> dict[str, float]:
    variables = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--task", task],
        env=variables | (VARIABLES if keeps else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--task", help="this one, in this process")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measured(arguments.task)))
        return
    tasks = [*TASKS, *(["unit, int8"] if multiplies_int8("cpu") else [])]
    found: dict[str, list[tuple[dict[str, float], ...]]] = {task: [] for task in tasks}
    for _ in range(arguments.repeats):
        for task in tasks:
            found[task].append(tuple(in_a_process(task, keeps) for keeps in (False, True)))
    print(f"{'':16} {'as it is, s':>12} {'kept, s':>8} {'ratio (min to max)':>22} {'faults':>17}")
    for task, pairs in found.items():
        both = [statistics.median(pair[k]["seconds"] for pair in pairs) for k in (0, 1)]
        ratios = [pair[0]["seconds"] / pair[1]["seconds"] for pair in pairs]
        told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        faults = [statistics.median(pair[k]["faults"] for pair in pairs) for k in (0, 1)]
        print(f"{task:16} {both[0]:12.2f} {both[1]:8.2f} {told:>22}", end=" ")
        print(f"{faults[0]:8,.0f} {faults[1]:8,.0f}")
        peaks = [statistics.median(pair[k]["peak MB"] for pair in pairs) for k in (0, 1)]
        print(f"{'':16} peak memory {peaks[0]:,.0f} and {peaks[1]:,.0f} MB")
    if arguments.json:
        result = {**environment(), "pairs": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
