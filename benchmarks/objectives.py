"""Decoupled optimisers against ELECTRA's coupled objective, at small scale.

    python benchmarks/objectives.py --run RUN --out DIR [--steps N] [--seeds 41 42]
        [--layers 2 4 6] [--rates 1e-3 2e-3] [--json FILE]

RUN is a directory of `sentisynth pretrain encoder`: its tokenizer and rows are used. One encoder of
4 layers of 128 is trained for each kind of optimiser, size of the masked model, rate and seed, on
the same number of tokens, then judged by one masked model that was trained alone, and fine-tuned on
1,000 rows of Rotten Tomatoes. All start from one masked model of their shape, trained for as many
steps. The rate is the encoder's (decoupled; the masked model's is fixed) or that of both (coupled).
What is in DIR already is not trained again.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from environment import environment
from fine_tuning import fine_tuned, mean_and_spread

from sentisynth.config.load import load_config, load_pretrain_config
from sentisynth.data.files import directory_aside, read_json, write_json
from sentisynth.training.pretraining import pretrain

SHAPE = ["shape.layers=4", "shape.width=128", "shape.heads=2"]
SHAPE += ["masked.shape.width=128", "masked.shape.heads=2"]
ALONE = ["objective=masked", "start=null", "masked.shape.layers=4", "train.learning_rate=1e-3"]
JUDGE = ["seed=1", *ALONE]
START = ["seed=2", *ALONE, "masked.mask_rate=0.3", "weights=fp32"]
MASKED_RATE = 1e-3
TEACHER = ["teacher.train.learning_rate=2e-4"]
FIGURES = ("judged_detection_f1", "masked_loss", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[41, 42])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    steps = [f"train.steps={arguments.steps}", f"train.eval_every={arguments.steps}"]
    judge = trained(arguments, "judge", [*steps, *JUDGE])
    start = trained(arguments, "start", [*steps, *START])
    found: dict[str, list[dict[str, Any]]] = {}
    kinds = ("decoupled", "coupled")
    for seed in arguments.seeds:
        for layers, rate, kind in itertools.product(arguments.layers, arguments.rates, kinds):
            name = f"{kind}-{layers}-{rate:g}"
            overrides = [
                *steps,
                f"seed={seed}",
                f"optimizer={kind}",
                f"masked.shape.layers={layers}",
                f"masked.learning_rate={MASKED_RATE}",
                f"train.learning_rate={rate}",
                f"masked.judge={judge}",
                f"start.model={start}",
            ]
            place = trained(arguments, f"{name}-{seed}", overrides)
            entry = {**read_json(place / "metrics.json"), **tuned(place, seed)}
            found.setdefault(name, []).append({k: entry[k] for k in (*FIGURES, "seconds")})
            print(name, seed, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    print(table(found))
    if arguments.json:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("json", "run", "out")}
        alone = {p.name: read_json(p / "metrics.json")["masked_loss"] for p in (judge, start)}
        result = {**environment(), "settings": settings, "alone": alone, "encoders": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def trained(arguments: argparse.Namespace, name: str, overrides: list[str]) -> Path:
    """The directory of a pretrained model."""
    final: Path = arguments.out / name
    if final.is_dir():
        steps = read_json(final / "metrics.json")["steps"]
        if steps != arguments.steps:
            raise SystemExit(
                f"{final} made {steps} steps, not {arguments.steps}; give another --out"
            )
        return final
    config = load_pretrain_config("reviews-encoder-mini", [*SHAPE, *overrides])
    work = arguments.out / f".{name}"
    work.mkdir(parents=True, exist_ok=True)
    with directory_aside(final) as out:
        pretrain(
            config,
            arguments.run / "tokenizer",
            arguments.run / "rows",
            out=out,
            work=work,
            report=lambda _: None,
        )
    return final


def tuned(place: Path, seed: int) -> dict[str, float]:
    """Figures of a teacher that begins with this encoder."""
    file = place / "fine-tuned.json"
    if not file.is_file():
        config = load_config("quickstart", [*TEACHER, f"seed={seed}"])
        write_json(file, fine_tuned(config, str(place)))
    found: dict[str, float] = read_json(file)
    return {k: v for k, v in found.items() if k != "seconds"}


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| optimisers | layers of G | rate | F1 against the judge | G's loss | macro-F1, test |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in sorted(found.items()):
        cells = []
        for key, scale in zip(FIGURES, (1, 1, 100), strict=True):
            values = [scale * run[key] for run in runs]
            cells.append(mean_and_spread(values, 1 if scale == 100 else 3))
        kind, layers, rate = name.split("-", 2)
        lines.append(f"| {kind} | {layers} | {rate} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
