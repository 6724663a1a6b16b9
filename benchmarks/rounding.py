"""What a precision costs generation: the batch engine's next-token distributions beside fp32's.

    python benchmarks/rounding.py [RECIPE] --models NAME=MODEL ... [--precisions bf16 fp16 int8]
        [--rows N] [--json FILE]

On the recipe's validation and test rows, each text between two end-of-text tokens, one token after
another as in generation: Kullback–Leibler divergence from the distribution in fp32, in nats a
token, mean and 99th percentile; how often the likeliest token is the same; and perplexity.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from environment import environment
from transformers import AutoModelForCausalLM

from sentisynth import schema
from sentisynth.config.load import load_config
from sentisynth.data.splits import load_corpus
from sentisynth.generation.gpt2 import Decoder
from sentisynth.models.devices import best_device, inference_dtype, multiplies_int8
from sentisynth.models.loading import load_pretrained, load_tokenizer, resolve_model

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=MODEL")
    parser.add_argument("--precisions", nargs="+", default=default_precisions())
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = load_config(arguments.recipe, [])
    splits = load_corpus(config.data, config.seed).splits()
    texts = [t for name in ("validation", "test") for t in splits[name][schema.TEXT].to_pylist()]
    found: dict[str, Any] = {}
    header = f"{'KL':>9} {'KL, 99 %':>9} {'same top':>9} {'perplexity':>11}"
    print(f"{'model':20} {'precision':10} {header}")
    for entry in arguments.models:
        name, _, reference = entry.partition("=")
        found[name] = compared(resolve_model(reference), texts[: arguments.rows], arguments)
        for precision, row in found[name].items():
            print(
                f"{name:20} {precision:10} {row['KL']:9.5f} {row['KL, 99th percentile']:9.5f} "
                f"{row['same top token']:9.2%} {row['perplexity']:11.3f}"
            )
    if arguments.json:
        rows = min(arguments.rows, len(texts))
        result = {**environment(), "recipe": arguments.recipe, "texts": rows, "models": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def default_precisions() -> list[str]:
    """What this device multiplies."""
    return ["bf16", "fp16"] + ["int8"] * multiplies_int8(best_device().type)


def compared(path: Path, texts: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of each precision, fp32 first."""
    tokenizer, device = load_tokenizer(path), best_device()
    names = ["fp32", *arguments.precisions]
    # a decoder casts the model's own layers
    decoders = {
        name: Decoder(
            load_pretrained(AutoModelForCausalLM, path, torch.float32).to(device).eval(),
            inference_dtype(name, device),
        )
        for name in names
    }
    nats: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    divergence: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    is_same: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    end_id = tokenizer.eos_token_id
    for start in range(0, len(texts), BATCH):
        bodies = tokenizer(texts[start : start + BATCH], add_special_tokens=False)["input_ids"]
        rows = [[end_id, *body, end_id] for body in bodies]
        longest = max(map(len, rows))
        ids_BS = torch.tensor([row + [end_id] * (longest - len(row)) for row in rows]).to(device)
        lengths_B = torch.tensor([len(row) for row in rows]).to(device)
        caches = {name: decoders[name].cache(len(rows), 0) for name in names}
        for position in range(longest - 1):
            alive = lengths_B > position + 1
            exact_BV = None
            for name, decoder in decoders.items():
                logits_BV, shift_B = decoder.step(ids_BS[:, position], caches[name])
                logits_BV = logits_BV.float()[alive]
                if shift_B is not None:
                    logits_BV = logits_BV + shift_B[alive, None]
                logs_BV = logits_BV.log_softmax(dim=1)
                exact_BV = logs_BV if exact_BV is None else exact_BV
                nats[name].append(-logs_BV.gather(1, ids_BS[alive, position + 1, None])[:, 0])
                divergence[name].append((exact_BV.exp() * (exact_BV - logs_BV)).sum(dim=1))
                is_same[name].append(logs_BV.argmax(dim=1) == exact_BV.argmax(dim=1))
    return {
        name: {
            "KL": round(torch.cat(divergence[name]).mean().item(), 6),
            "KL, 99th percentile": round(torch.cat(divergence[name]).quantile(0.99).item(), 6),
            "same top token": round(torch.cat(is_same[name]).float().mean().item(), 5),
            "perplexity": round(torch.cat(nats[name]).mean().exp().item(), 4),
            "tokens": len(torch.cat(nats[name])),
        }
        for name in names
    }


if __name__ == "__main__":
    with torch.inference_mode():
        main()
