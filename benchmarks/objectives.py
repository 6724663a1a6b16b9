"""Decoupled optimisers against ELECTRA's coupled objective, at small scale.

    python benchmarks/objectives.py --run RUN --out DIR [--steps N] [--alone-steps N]
        [--seeds 41 42] [--layers 2 4 6] [--rates 5e-4 2e-3] [--json FILE]

RUN is a directory of `sentisynth pretrain encoder`: its tokenizer, rows and embeddings are used.
One encoder of 4 layers of 128 is trained for each kind of optimiser, size of the masked model, rate
and seed, on the same number of tokens, then judged by one masked model that was trained alone, and
fine-tuned on 1,000 rows of Rotten Tomatoes. All start from one causal model of their shape; it and
the judge are trained for --alone-steps. The rate is the encoder's (decoupled; the masked model G's
is 5e-4) or that of both (coupled, where G has the start's embeddings): at 5e-4 both have the same.
Precision is the average precision over the judge's replacements, macro-F1 is in per cent. What is
in DIR already is not trained again.
"""

import argparse
import itertools
import json
import sys
from typing import Any

from encoders import add_arguments, trained, tuned
from environment import environment
from fine_tuning import mean_and_spread

from sentisynth.data.files import read_json

SHAPE = ["shape.layers=4", "shape.width=128", "shape.heads=2"]
SHAPE += ["masked.shape.width=128", "masked.shape.heads=2"]
ALONE = [*SHAPE, "start=null", "train.learning_rate=1e-3"]
JUDGE = ["seed=1", "objective=masked", *ALONE]
START = ["seed=2", "objective=causal", "weights=fp32", *ALONE]
MASKED_RATE, TEACHER_RATE = 5e-4, 3e-4
FIGURES = ("judged_detection_f1", "judged_detection_ap", "masked_loss", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, steps=2000)
    parser.add_argument("--alone-steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[41, 42])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 2e-3])
    arguments = parser.parse_args()
    judge = trained(arguments, "judge", JUDGE, arguments.alone_steps)
    start = trained(arguments, "start", START, arguments.alone_steps)
    found: dict[str, list[dict[str, Any]]] = {}
    kinds = ("decoupled", "coupled")
    for seed in arguments.seeds:
        for layers, rate, kind in itertools.product(arguments.layers, arguments.rates, kinds):
            name = f"{kind}-{layers}-{rate:g}"
            overrides = [
                *SHAPE,
                f"seed={seed}",
                f"optimizer={kind}",
                f"masked.shape.layers={layers}",
                f"masked.learning_rate={MASKED_RATE}",
                f"train.learning_rate={rate}",
                f"masked.judge={judge}",
                f"start.model={start}",
            ]
            place = trained(arguments, f"{name}-{seed}", overrides)
            entry = {**read_json(place / "metrics.json"), **tuned(place, TEACHER_RATE, seed)}
            found.setdefault(name, []).append({k: entry[k] for k in (*FIGURES, "seconds")})
            print(name, seed, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    print(table(found))
    if arguments.json:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("json", "run", "out")}
        result = {**environment(), "settings": settings, "encoders": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| optimisers | layers of G | rate | F1, judge | precision, judge | G's loss | test |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in sorted(found.items()):
        cells = []
        for key, scale in zip(FIGURES, (1, 1, 1, 100), strict=True):
            values = [scale * run[key] for run in runs]
            cells.append(mean_and_spread(values, 1 if scale == 100 else 3))
        kind, layers, rate = name.split("-", 2)
        lines.append(f"| {kind} | {layers} | {rate} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
