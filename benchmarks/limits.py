"""What a machine could do at most: matrix products and memory bandwidth, measured here."""

import math
import time
from functools import partial
from typing import Any

import torch

from sentisynth.models.kernels import library


def limits(threads: int) -> dict[str, float]:
    """Measured: TFLOP/s of products at 256 rows with laid-out weights, and bytes a second."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    from sentisynth.models.devices import multiplies_int8
    from sentisynth.models.int8 import Int8Linear
    from sentisynth.models.linear import Linear

    found = {}
    with torch.inference_mode():
        size = 4096 if device.type == "cuda" else 256
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            layer = Linear(torch.randn(3072, 768, dtype=dtype, device=device), None)
            x = torch.randn(size, 768, dtype=dtype, device=device)
            seconds = best(partial(layer, x), device)
            found[f"{name} TFLOP/s"] = 2 * size * 768 * 3072 / seconds / 1e12
        if multiplies_int8(device.type):
            product = Int8Linear(torch.randn(3072, 768), None)  # with the rounding of its rows
            seconds = best(partial(product, torch.randn(size, 768)), device)
            found["int8 TFLOP/s"] = 2 * size * 768 * 3072 / seconds / 1e12
        source = torch.ones(2**27, dtype=torch.float32, device=device)
        found["GB/s"] = source.nbytes / best(source.sum, device, 5) / 1e9
    return {name: round(value, 3) for name, value in found.items()}


def best(call: Any, device: torch.device, repeats: int = 30) -> float:
    seconds = []
    calls = 50 if device.type == "cuda" else 1  # a launch takes as long as a product there
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - started) / calls)
    return min(seconds)


def limit(
    batch: int, measured: dict[str, float], precision: str, positions: float, layers: int = 12
) -> float:
    """Tokens a second of GPT-2 small's shape if products, weights and caches took what they must
    and nothing else did; `positions` are read of a row's cache, on average.
    """
    width = 768
    parameters = (50257 + 1024) * width + layers * (12 * width + 13) * width
    half = "bf16" if torch.cuda.is_available() else "fp32"  # what fp16 is multiplied as fast as
    rate = half if precision == "fp16" else precision
    if f"{rate} TFLOP/s" not in measured:
        return math.nan
    size = 2 if rate == "bf16" or (precision == "int8" and library() is not None) else 4
    products = 2 * parameters * batch / (measured[f"{rate} TFLOP/s"] * 1e12)
    bytes_each = {"fp32": 4, "int8": 1}.get(precision, 2)
    weights = parameters * bytes_each / (measured["GB/s"] * 1e9)
    cache = 2 * layers * width * size * batch * positions / (measured["GB/s"] * 1e9)
    return batch / (max(products, weights) + cache)
