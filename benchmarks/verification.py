"""Verification: rows a second of the shape of DeBERTa-v3-base, ours against transformers.

    python benchmarks/verification.py [--rows N] [--repeats N] [--precisions fp32 bf16]
        [--json FILE]

Random weights of DeBERTa-v3-base's shape (184 M parameters, 86 M of them in the layers) and the
lengths of the embedded Rotten Tomatoes texts (pieces of the embedded tokenizer of 8,192, and two
more), in the order of the file. In turn in each repetition:

- ours: sorted by length, micro-batches by token budget, our attention, weights laid out.
- eager, same micro-batches: transformers' model on the same batches, in the same precision.
- plain loop: transformers' model on batches of 64 in the order given, padded to the longest.

The largest difference of the logits is printed, too.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from limits import limits
from shapes import deberta

from sentisynth.config.load import load_config
from sentisynth.data.sources import read_rows
from sentisynth.models.classifier import pad, score
from sentisynth.models.inference import lay_out
from sentisynth.models.loading import load_tokenizer, resolve_model
from sentisynth.stages.verify import TOKENS_PER_BATCH

CAST = {"bf16": torch.bfloat16, "fp32": torch.float32}
IN_LAYERS = 12 * 12 * 768**2  # parameters that every token is multiplied with


def model(dtype: torch.dtype, device: torch.device) -> Any:
    made = deberta(0, vocabulary=128100, width=768, layers=12, heads=12, layer_norm_eps=1e-7)
    return made.eval().to(device, dtype)


def real_lengths(n: int) -> list[int]:
    config = load_config("quickstart")
    texts = read_rows(config.data.source, config.data)["text"].to_pylist()
    tokenizer = load_tokenizer(resolve_model("package:gpt2-mini"))
    return [len(ids) + 2 for ids in tokenizer(texts[:n])["input_ids"]]


@torch.inference_mode()
def plain(net: Any, ids: list[list[int]]) -> np.ndarray:
    found = []
    for start in range(0, len(ids), 64):
        inputs, mask = (x.to(net.device) for x in pad(ids[start : start + 64], 0))
        found.append(net(input_ids=inputs, attention_mask=mask).logits.float().cpu().numpy())
    return np.concatenate(found)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192 if on_gpu else 256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--length", type=int, help="all rows so long, in place of real lengths")
    parser.add_argument("--tokens", type=int, default=TOKENS_PER_BATCH["cuda" if on_gpu else "cpu"])
    parser.add_argument("--precisions", nargs="+", default=["bf16"] if on_gpu else ["fp32", "bf16"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if on_gpu else "cpu")
    lengths = [arguments.length] * arguments.rows if arguments.length else []
    lengths = lengths or (real_lengths(10**6) * 8)[: arguments.rows]
    random = np.random.default_rng(0)
    ids = [random.integers(5, 128000, n).tolist() for n in lengths]
    measured = limits(torch.get_num_threads())
    result: dict[str, Any] = {
        **environment(),
        "rows": len(ids),
        "tokens": sum(lengths),
        "mean length": statistics.mean(lengths),
        "measured limits": measured,
    }
    for precision in arguments.precisions:
        dtype = CAST[precision]
        eager, fast = model(dtype, device), lay_out(model(torch.float32, device), dtype)
        budget = {"pad_id": 0, "tokens_per_batch": arguments.tokens}
        calls = {
            "ours": partial(score, fast, ids, **budget),
            "eager, same micro-batches": partial(score, eager, ids, **budget),
            "plain loop": partial(plain, eager, ids),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        logits = {}
        for call in calls.values():
            call()
        for _ in range(arguments.repeats):
            for name, call in calls.items():
                started = time.perf_counter()
                logits[name] = call()
                seconds[name].append(time.perf_counter() - started)
        bound = measured[f"{precision} TFLOP/s"] * 1e12 / (2 * IN_LAYERS * sum(lengths) / len(ids))
        medians = {name: len(ids) / statistics.median(s) for name, s in seconds.items()}
        off = float(np.abs(logits["ours"] - logits["eager, same micro-batches"]).max())
        print(f"\n{precision}, {len(ids)} rows of {statistics.mean(lengths):.1f} tokens on average")
        print(f"{'':28} {'rows/s':>10} {'ours / it':>10} {'of limit':>9}")
        for name, rate in medians.items():
            print(f"{name:28} {rate:10,.1f} {medians['ours'] / rate:10.2f} {rate / bound:9.0%}")
        print(f"largest difference of a logit: {off:.2g}", flush=True)
        result[precision] = {
            "rows per second": {n: [round(len(ids) / s, 2) for s in v] for n, v in seconds.items()},
            "limit, rows per second": round(bound, 1),
            "largest difference of a logit": off,
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
