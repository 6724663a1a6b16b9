"""One sampling step, ours beside transformers' processors, with cuts of every kind.

    python benchmarks/sampler.py [--rows 256] [--threads 2] [--repeats 5] [--json FILE]

50,257 tokens, 40 seen in each row, penalty 1.2, temperature 0.8. Probabilities of the r-th token
fall like r to the power of −a, with a from 0.9 to 2.2 over the rows: nuclei are of all sizes, as in
text. A step is processors, softmax and one draw a row; the two in turn, median (minimum to
maximum), in milliseconds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import environment
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.generation.likeliest import History
from sentisynth.generation.sampling import distribution, draw

VOCABULARY, SEEN = 50257, 40
CUTS = {"top-k 50, top-p 0.95": (50, 0.95), "top-p 0.95": (0, 0.95), "none": (0, 1.0)}


def ours(config: SamplingConfig, seen_BL: torch.Tensor) -> Callable[[torch.Tensor], Any]:
    history = History(seen_BL, torch.zeros_like(seen_BL, dtype=torch.bool))
    uniforms = torch.rand(len(seen_BL), dtype=torch.float64)
    return lambda logits: draw(*distribution(logits, history, config), uniforms)


def theirs(config: SamplingConfig, seen_BL: torch.Tensor) -> Callable[[torch.Tensor], Any]:
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(config.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        steps.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        steps.append(TopPLogitsWarper(config.top_p))
    return lambda logits: torch.multinomial(steps(seen_BL, logits).softmax(dim=1), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    falling = -torch.arange(1, VOCABULARY + 1).float().log()
    powers = torch.linspace(0.9, 2.2, arguments.rows)
    logits_BV = torch.stack([(falling * a)[torch.randperm(VOCABULARY)] for a in powers])
    seen_BL = torch.stack([torch.randperm(VOCABULARY)[:SEEN] for _ in powers])
    found: dict[str, dict[str, list[float]]] = {}
    with torch.inference_mode():
        for cut, (top_k, top_p) in CUTS.items():
            config = SamplingConfig(
                temperature=0.8, top_k=top_k, top_p=top_p, repetition_penalty=1.2
            )
            steps = {"ours": ours(config, seen_BL), "transformers": theirs(config, seen_BL)}
            found[cut] = {name: [] for name in steps}
            for _ in range(arguments.repeats + 1):
                for name, step in steps.items():
                    copied = logits_BV.clone()
                    begun = time.perf_counter()
                    step(copied)
                    found[cut][name].append(1e3 * (time.perf_counter() - begun))
            found[cut] = {name: times[1:] for name, times in found[cut].items()}  # slow at first
    print("| cut | ours | transformers | theirs / ours |\n| --- | --- | --- | --- |")
    for cut, measured in found.items():
        middles = {name: statistics.median(times) for name, times in measured.items()}
        cells = [f"{middles[n]:.0f} ({min(x):.0f}–{max(x):.0f})" for n, x in measured.items()]
        print(f"| {cut} | {' | '.join(cells)} | {middles['transformers'] / middles['ours']:.1f} |")
    if arguments.json:
        settings = {"rows": arguments.rows, "threads": arguments.threads, "seed": 0}
        result = {**environment(), "settings": settings, "milliseconds": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
