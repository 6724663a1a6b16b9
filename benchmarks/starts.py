"""What an encoder should begin with, and learn first: each for as many steps, then fine-tuned.

    python benchmarks/starts.py --run RUN --out DIR [--steps 1000] [--seeds 41 42 43]
        [--rates 3e-4] [--json FILE]

RUN is a directory of `sentisynth pretrain encoder`: its tokenizer, rows and embeddings are used,
with the shape, batch and rate of the recipe. Tables of embeddings begin with random numbers or with
the singular vectors of co-occurrence; layers stay as they are, or learn to fill masked tokens, to
tell the next one, or to detect replaced ones. The teacher of the quickstart begins with the result,
at the rate that is best on the validation rows. What is in DIR already is not made again.
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from encoders import add_arguments, trained, tuned
from environment import environment
from fine_tuning import mean_and_spread

from sentisynth.config.load import load_pretrain_config
from sentisynth.data.files import directory_aside, read_json, write_json
from sentisynth.models.loading import load_tokenizer, save_model
from sentisynth.models.pretraining import for_fine_tuning
from sentisynth.training.beginnings import EMBEDDINGS, put_embeddings
from sentisynth.training.pretraining import HELD_OUT, TRAIN, pretraining_task
from sentisynth.training.rows import Rows

ALONE = ["start=null", "train.learning_rate=1e-3"]
TASKS: dict[str, list[str] | None] = {
    "nothing": None,
    "15 % masked": ["objective=masked", *ALONE, "masked.mask_rate=0.15"],
    "30 % masked": ["objective=masked", *ALONE, "masked.mask_rate=0.3"],
    "next token": ["objective=causal", *ALONE],
    "replaced tokens": ALONE,
}
LOSSES = ("detection_loss", "masked_loss", "validation_loss", "detection_f1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, steps=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[41, 42, 43])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4])
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for embeddings in ("random", "cooccurrence"):
        for task, overrides in TASKS.items():
            name = f"{embeddings}, {task}"
            folder = "-".join(re.findall(r"\w+", name))
            place = made(arguments, folder, embeddings, overrides)
            figures = read_json(place / "metrics.json")
            runs = {
                rate: [tuned(place, rate, seed) for seed in arguments.seeds]
                for rate in arguments.rates
            }
            best = max(runs, key=lambda r: statistics.mean(x["validation"] for x in runs[r]))
            losses = {k: figures[k] for k in (*LOSSES, "tokens_seen", "seconds") if k in figures}
            found[name] = {**losses, "rate": best, "fine_tuned": runs[best]}
            print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    print(table(found))
    if arguments.json:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("json", "run", "out")}
        result = {**environment(), "settings": settings, "starts": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def made(
    arguments: argparse.Namespace, name: str, embeddings: str, overrides: list[str] | None
) -> Path:
    """The directory of an encoder."""
    if overrides is not None:
        return trained(arguments, name, [f"embeddings={embeddings}", *overrides])
    final: Path = arguments.out / name
    if not final.is_dir():
        config = load_pretrain_config("reviews-electra-mini", [f"embeddings={embeddings}"])
        tokenizer = load_tokenizer(arguments.run / "tokenizer")
        rows = [Rows.map(arguments.run / "rows" / split) for split in (TRAIN, HELD_OUT)]
        model = pretraining_task(config, tokenizer, *rows).model
        if embeddings == "cooccurrence":
            put_embeddings(model, arguments.run / "embeddings" / EMBEDDINGS)
        with directory_aside(final) as out:
            save_model(for_fine_tuning(model.detector.encoder), tokenizer, out)
            write_json(out / "metrics.json", {})
    return final


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| embeddings | layers learn | loss, nats | macro-F1 validation | macro-F1 test |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, entry in found.items():
        loss = next((f"{entry[key]:.3f}" for key in LOSSES if key in entry), "")
        cells = [
            mean_and_spread([100 * run[split] for run in entry["fine_tuned"]], 1)
            for split in ("validation", "test")
        ]
        lines.append(f"| {' | '.join(name.split(', '))} | {loss} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
