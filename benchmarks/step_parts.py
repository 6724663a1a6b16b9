"""Where a decoding step of ours in int8 goes, by parts that are timed alone.

    python benchmarks/step_parts.py [--rows 128] [--repeats 20] [--json FILE]

GPT-2 small's shape, random weights, one thread; 128 rows are its half of a batch of 256 on two.
`products` are all of the linear layers of a step with the rounding of their rows, `cache` what a
step takes longer at the middle of 64 new tokens than at the first, `sampler` what turns logits into
a token; `rest` is what is left of the step, below zero where the parts took longer alone. Medians.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from engines import NEW, PROMPT, SAMPLING
from environment import environment
from transformers import GPT2Config, GPT2LMHeadModel

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.generation.gpt2 import Decoder
from sentisynth.generation.likeliest import History
from sentisynth.generation.sampling import distribution, draw
from sentisynth.models.int8 import Int8Linear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        calls = parts(arguments.rows)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(arguments.repeats):
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
    ms = {name: 1000 * statistics.median(of) for name, of in seconds.items()}
    cache = ms["step"] - ms["first step"]
    whole = ms["step"] + ms["sampler"]
    found = {
        "products": ms["products"],
        "cache": cache,
        "sampler": ms["sampler"],
        "rest": ms["step"] - cache - ms["products"],
    }
    for name, of in found.items():
        print(f"{name:<10}{of:8.2f} ms {100 * of / whole:5.0f} %")
    print(f"{'step':<10}{whole:8.2f} ms, {arguments.rows} rows, one thread")
    if arguments.json:
        shape = {"rows": arguments.rows, "ms": found, "step": whole}
        arguments.json.write_text(json.dumps({**environment(), **shape}, indent=1) + "\n")


def parts(rows: int) -> dict[str, Callable[[], object]]:
    """Calls of which each is timed."""
    torch.manual_seed(0)
    decoder = Decoder(GPT2LMHeadModel(GPT2Config()).eval(), torch.int8)
    cache = decoder.prefill(PROMPT)[1].spread(rows, len(PROMPT) + NEW)
    tokens = torch.randint(0, 50000, (rows,))
    history = History.begin(PROMPT, rows, len(PROMPT) + NEW, tokens.device)
    sampling, uniforms = SamplingConfig(max_new_tokens=NEW, **SAMPLING), torch.rand(rows)
    logits, shift = torch.randn(rows, 50257), torch.zeros(rows)
    shapes = [(768, 2304)] * 12 + [(768, 768)] * 12 + [(768, 3072)] * 12 + [(3072, 768)] * 12
    shapes.append((768, 50257))
    layers = [
        (Int8Linear(torch.randn(n_out, n_in), None), torch.randn(rows, n_in))
        for n_in, n_out in shapes
    ]

    def step(length: int) -> None:
        cache.length = length
        decoder.step(tokens, cache)

    def sample() -> None:
        draw(
            *distribution(logits, history.until(len(PROMPT) + NEW // 2), sampling, shift), uniforms
        )

    return {
        "step": lambda: step(len(PROMPT) + NEW // 2),
        "first step": lambda: step(len(PROMPT)),
        "products": lambda: [layer(x) for layer, x in layers],
        "sampler": sample,
    }


if __name__ == "__main__":
    main()
