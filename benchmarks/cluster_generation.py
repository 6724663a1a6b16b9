"""Tokens a second of all GPUs of a cluster (jobs/bench_generation.py).

One actor a GPU, or one a CPU where there is none, each with our engine and random weights of GPT-2
small's shape: first one actor alone, then all together. Efficiency is what all reach, divided by
what one reaches times their number. The limit is that of one actor's device, from the rate of
products and the memory bandwidth that are measured there.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import limits
import ray
import torch
from environment import environment
from transformers import GPT2Config, GPT2LMHeadModel

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.data.units import Unit
from sentisynth.generation.batch_engine import BatchEngine
from sentisynth.models.devices import best_device, device_facts, inference_dtype
from sentisynth.runtime.ray_cluster import cluster_resources, connected

PROMPT = [50000, 11, 22, 33]


class Generator:
    """An engine that generates for a while."""

    def __init__(self, batch: int, layers: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        device = best_device()
        self._dtype = inference_dtype("auto", device)
        model = GPT2LMHeadModel(GPT2Config(n_layer=layers)).to(device).eval()
        endless = SimpleNamespace(eos_token_id=-1)
        self._engine = BatchEngine(model, endless, self._dtype)
        self._batch, self._next, self._layers = batch, 0, layers
        self.run(0.0)

    def run(self, seconds: float) -> tuple[int, float]:
        """Tokens made in at least so many seconds, and how long that took."""
        started, tokens = time.perf_counter(), 0
        while not tokens or time.perf_counter() - started < seconds:
            unit = Unit(0, self._next, self._batch)
            rows = self._engine(PROMPT, unit, 1, SamplingConfig())
            tokens += sum(len(row or []) for row in rows)
            self._next += 1
        return tokens, time.perf_counter() - started

    def limit(self) -> float:
        """Tokens a second that this device could make at most."""
        precision = "bf16" if self._dtype == torch.bfloat16 else "fp32"
        positions = len(PROMPT) + SamplingConfig().max_new_tokens / 2
        measured = limits.limits(1)
        return limits.limit(self._batch, measured, precision, positions, self._layers)

    def device(self) -> str:
        facts = device_facts()
        return facts.name or facts.kind


def main(given: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, help="rows of a batch; 2048 on GPUs, 64 on CPUs")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--actors", type=int, help="one a GPU, or one a CPU, if not given")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(given)
    for module in (sys.modules[__name__], limits):  # no node imports these files
        ray.cloudpickle.register_pickle_by_value(module)
    with connected():
        found = measure(arguments)
    for name, value in found.items():
        print(f"{name:28} {value if not isinstance(value, list) else ', '.join(value)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**environment(), **found}, indent=1) + "\n")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    cluster = cluster_resources()
    on_gpu = cluster.gpus > 0
    n = arguments.actors or int(cluster.gpus if on_gpu else cluster.cpus)
    options = {"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": 1}
    batch = arguments.batch or (2048 if on_gpu else 64)
    actors = [
        ray.remote(Generator).options(**options).remote(batch, arguments.layers) for _ in range(n)
    ]
    devices = ray.get([actor.device.remote() for actor in actors])
    bound = ray.get(actors[0].limit.remote())
    tokens, seconds = ray.get(actors[0].run.remote(arguments.seconds))
    alone = tokens / seconds
    made = ray.get([actor.run.remote(arguments.seconds) for actor in actors])
    total = sum(tokens / seconds for tokens, seconds in made)
    return {
        "actors": n,
        "devices": sorted(set(devices)),
        "batch": batch,
        "tokens per second, one alone": round(alone),
        "share of the limit, one alone": round(alone / bound, 3),
        "tokens per second, all": round(total),
        "tokens per second, each": round(total / n),
        "scaling efficiency": round(total / (n * alone), 3),
    }
