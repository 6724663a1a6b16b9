"""What a base model is worth: the teacher of a recipe, fine-tuned from each on several seeds.

    python benchmarks/fine_tuning.py RECIPE [key=value ...] --models NAME=MODEL ...
        [--seeds 41 42 43] [--rates 1e-4 3e-4] [--json FILE]

MODEL is a reference as in a recipe; `scratch:MODEL` is random weights of MODEL's shape, with its
tokenizer. The seed draws the labelled rows, the head and the order. Each model gets the learning
rate of `--rates` with the best mean on the validation rows; figures are of the test rows, at the
weights of the best evaluation on the validation rows.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from environment import environment
from transformers import AutoModel

from sentisynth.config.load import load_config
from sentisynth.config.types import RunConfig
from sentisynth.data.files import write_table
from sentisynth.data.splits import load_corpus
from sentisynth.evaluation.evaluate import predictions
from sentisynth.models.loading import load_tokenizer, read_config, resolve_model, save_model
from sentisynth.models.metrics import macro_f1
from sentisynth.training.jobs import teach
from sentisynth.training.loop import seed_all

SCRATCH = "scratch:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=MODEL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[41, 42, 43])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tried: dict[str, dict[float, list[dict[str, float]]]] = {}
    for entry, rate, seed in itertools.product(arguments.models, arguments.rates, arguments.seeds):
        name, _, model = entry.partition("=")
        chosen = [f"teacher.train.learning_rate={rate}", f"seed={seed}"]
        config = load_config(arguments.recipe, [*arguments.overrides, *chosen])
        runs = tried.setdefault(name, {}).setdefault(rate, [])
        runs.append(fine_tuned(config, model))
        print(name, rate, seed, json.dumps(runs[-1]), file=sys.stderr, flush=True)
    found = {
        f"{name}, rate {rate:g}": rates[rate]
        for name, rates in tried.items()
        for rate in [max(rates, key=lambda r: statistics.mean(x["validation"] for x in rates[r]))]
    }
    print(table(found))
    if arguments.json:
        result = {**environment(), "seeds": arguments.seeds, "chosen": found, "tried": tried}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def fine_tuned(config: RunConfig, model: str) -> dict[str, float]:
    """macro-F1 and accuracy on the test rows, macro-F1 on the validation rows, seconds."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        for name in ("corpus", "work", "out"):
            (place / name).mkdir()
        if model.startswith(SCRATCH):
            model = untrained(model.removeprefix(SCRATCH), config.seed, place / "start")
        teacher = config.teacher.model_copy(update={"model": model})
        config = config.model_copy(update={"teacher": teacher})
        for name, rows in load_corpus(config.data, config.seed).splits().items():
            write_table(place / "corpus" / f"{name}.parquet", rows)
        started = time.perf_counter()
        teach(config, place / "corpus", place / "out", place / "work", lambda _: None)
        seconds = time.perf_counter() - started
        figures = {"seconds": seconds}
        for split in ("validation", "test"):
            labels, predicted = predictions(place / "out", split)
            figures[split] = macro_f1(labels, predicted, len(config.data.labels))
        return figures


def untrained(model: str, seed: int, out: Path) -> str:
    """A directory with random weights of the shape of a model, and its tokenizer."""
    path = resolve_model(model)
    seed_all(seed)
    save_model(AutoModel.from_config(read_config(path)), load_tokenizer(path), out)
    return str(out)


def table(found: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| start | validation | test | each seed, test |", "| --- | --- | --- | --- |"]
    for name, runs in found.items():
        cells = [
            mean_and_spread([100 * run[split] for run in runs], 1)
            for split in ("validation", "test")
        ]
        each = ", ".join(f"{100 * run['test']:.1f}" for run in runs)
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {each} |")
    return "\n".join(lines)


def mean_and_spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation; of one value, that alone."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
