"""What a sweep costs beside its bare trainings.

    python benchmarks/trials.py --run DIR --sweep alpha-beta --seconds S [--every K] [--json FILE]

DIR holds a finished sweep that took S seconds of wall time (`time sentisynth sweep ...`). Trains
every K-th of its trials again without Ray, Tune, MLflow or files: plain processes, one a core as in
the sweep, each going from one trial to the next with torch, data and model class loaded. Prints S
over the bare time of as many trials.
"""

import argparse
import json
import multiprocessing as mp
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import environment

from sentisynth.config.load import read_run_config
from sentisynth.training.trials import Trial, TrialRunner, read_results

_RUNNER: TrialRunner  # of a process of the pool, as its directory
_SCRATCH: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--sweep", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = read_results(arguments.run / "sweep" / arguments.sweep / "trials")
    chosen = list(results.values())[:: arguments.every]
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        first = (arguments.run.resolve(), arguments.sweep, Path(scratch))
        with mp.get_context("spawn").Pool(cores, load, first) as pool:
            pool.map(warm, [chosen[0]["trial"]] * cores, 1)
            started = time.monotonic()
            again = pool.map(train, [result["trial"] for result in chosen], 1)
            bare = time.monotonic() - started
    same = sum(
        best == result["best"]["macro_f1"] for best, result in zip(again, chosen, strict=True)
    )
    figures = {
        "trials": len(results),
        "at once": cores,
        "sweep, seconds": arguments.seconds,
        "trials trained bare": len(chosen),
        "of them with the same best figure": same,
        "bare, seconds": bare,
        "sweep over bare": arguments.seconds / (bare * len(results) / len(chosen)),
    }
    for name, value in figures.items():
        print(f"{name:36} {value:.3f}" if isinstance(value, float) else f"{name:36} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**environment(), **figures}, indent=1) + "\n")


def load(run: Path, sweep: str, scratch: Path) -> None:
    import torch

    torch.set_num_threads(1)
    global _RUNNER, _SCRATCH
    _SCRATCH = Path(tempfile.mkdtemp(dir=scratch))
    shared = run / "sweep" / sweep / "shared"
    _RUNNER = TrialRunner(shared, _SCRATCH, read_run_config(run), run / "teacher")


def warm(trial: dict[str, Any]) -> None:
    next(_RUNNER.train(Trial(**trial)))
    shutil.rmtree(_SCRATCH)
    _SCRATCH.mkdir()


def train(trial: dict[str, Any]) -> float:
    """The best validation macro-F1."""
    return max(entry["macro_f1"] for entry in _RUNNER.train(Trial(**trial)))


if __name__ == "__main__":
    main()
