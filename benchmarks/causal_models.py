"""Causal base models beside each other: bits a character on labelled texts that none has seen.

    python benchmarks/causal_models.py [RECIPE] --models NAME=MODEL ... [--json FILE]

Each text of the recipe's validation and test rows is one sequence between two end-of-text tokens,
as the models were trained. Tokenizers differ, so that perplexities do not compare; bits a character
do, with the end of a text as one character. The interval is two standard errors over the texts.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from environment import environment
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from sentisynth import schema
from sentisynth.config.load import load_config
from sentisynth.data.splits import load_corpus
from sentisynth.models.loading import load_pretrained, load_tokenizer, resolve_model

ROWS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=MODEL")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = load_config(arguments.recipe, [])
    splits = load_corpus(config.data, config.seed).splits()
    texts = [t for name in ("validation", "test") for t in splits[name][schema.TEXT].to_pylist()]
    characters = np.array([len(text) + 1 for text in texts])
    found = {}
    print(f"{'model':24} {'parameters':>12} {'tokens a text':>14} {'bits a character':>20}")
    for entry in arguments.models:
        name, _, reference = entry.partition("=")
        path = resolve_model(reference)
        model = load_pretrained(AutoModelForCausalLM, path, torch.float32).eval()
        nats, tokens = scored(model, load_tokenizer(path), texts)
        rate = nats.sum() / characters.sum() / math.log(2)
        error = (nats / math.log(2) - rate * characters).std() / characters.mean()
        found[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens a text": round(tokens / len(texts), 2),
            "bits a character": round(float(rate), 4),
            "two standard errors": round(2 * float(error) / math.sqrt(len(texts)), 4),
        }
        bits = f"{rate:.3f} ± {found[name]['two standard errors']:.3f}"
        print(f"{name:24} {found[name]['parameters']:12,} {tokens / len(texts):14.1f} {bits:>20}")
    if arguments.json:
        result = {**environment(), "recipe": arguments.recipe, "texts": len(texts), "models": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


@torch.inference_mode()
def scored(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> tuple[np.ndarray, int]:
    """Nats of each text, its end included, and the number of tokens in all."""
    end_id = tokenizer.eos_token_id
    nats, tokens = [], 0
    for start in range(0, len(texts), ROWS):
        bodies = tokenizer(texts[start : start + ROWS], add_special_tokens=False)["input_ids"]
        rows = [[end_id, *body, end_id] for body in bodies]
        longest = max(map(len, rows))
        ids_BS = torch.tensor([row + [end_id] * (longest - len(row)) for row in rows])
        lengths_B = torch.tensor([len(row) for row in rows])
        logits_BSV = model(ids_BS).logits[:, :-1].float()
        nats_BS = -logits_BSV.log_softmax(-1).gather(2, ids_BS[:, 1:, None]).squeeze(2)
        is_text_BS = torch.arange(1, longest) < lengths_B[:, None]
        nats += (nats_BS * is_text_BS).sum(dim=1).tolist()
        tokens += int(is_text_BS.sum())
    return np.array(nats), tokens


if __name__ == "__main__":
    main()
