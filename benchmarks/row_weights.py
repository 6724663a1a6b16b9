"""How much real rows weigh in a student's training, beside what β says.

    python benchmarks/row_weights.py RUN [--betas 0.1 0.3 1] [--json FILE]

A step's loss is Σ w L / Σ w over its batch, so that a row's part depends on the rows beside it: in
a batch without a real row, β cancels. Batches are of like lengths, and real rows are longer or
shorter than synthetic ones. Over ten epochs of the run's own dataset: the share of real rows in
the weights of a batch, on average, with rows of like lengths together (as it is trained) and with
rows at random, beside their share in the whole.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from environment import environment

from sentisynth import schema
from sentisynth.config.load import read_run_config
from sentisynth.models.loading import load_tokenizer
from sentisynth.training.loop import endless_batches

EPOCHS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = read_run_config(arguments.run)
    table = pq.read_table(arguments.run / "dataset" / "train.parquet")
    is_synth = np.array(table[schema.IS_SYNTH].to_pylist())
    ids = load_tokenizer(arguments.run / "student")(table[schema.TEXT].to_pylist())["input_ids"]
    lengths = np.minimum([len(row) for row in ids], config.student.max_length)
    found = {}
    print(f"{'β':>5} {'in the whole':>13} {'random batches':>15} {'as trained':>11}")
    for beta in arguments.betas:
        weights = np.where(is_synth, beta, 1.0)
        size, seed = config.student.train.batch_size, config.seed
        found[beta] = {
            "whole": round(float(weights[~is_synth].sum() / weights.sum()), 3),
            "random batches": share(np.zeros_like(lengths), weights, is_synth, size, seed),
            "as trained": share(lengths, weights, is_synth, size, seed),
        }
        whole, random, trained = found[beta].values()
        print(f"{beta:5g} {whole:13.3f} {random:15.3f} {trained:11.3f}")
    if arguments.json:
        tokens = {
            "real": float(np.median(lengths[~is_synth])),
            "synthetic": float(np.median(lengths[is_synth])),
        }
        result = {**environment(), "rows": len(lengths), "median tokens": tokens, "shares": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def share(
    lengths: np.ndarray, weights: np.ndarray, is_synth: np.ndarray, size: int, seed: int
) -> float:
    """Mean over the batches of the real rows' share in a batch's weights."""
    n = EPOCHS * -(-len(lengths) // size)
    shares = [
        weights[batch][~is_synth[batch]].sum() / weights[batch].sum()
        for batch in islice(endless_batches(lengths, size, seed), n)
    ]
    return round(float(np.mean(shares)), 3)


if __name__ == "__main__":
    main()
