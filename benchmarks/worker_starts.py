"""What it costs to start trainings: some that do nothing, with workers of their own and shared.

    python benchmarks/worker_starts.py [--trainings 3] [--repeats 3] [--json FILE]

Each imports what a training of ours imports, and reports once. In a local session, one worker.
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from environment import environment

from sentisynth.config.types import TrainConfig
from sentisynth.runtime.ray_cluster import connected
from sentisynth.runtime.recovery import run_training
from sentisynth.runtime.train import kept_group
from sentisynth.training.loop import Report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainings", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"workers of their own": [], "shared": []}
    with connected():
        for _ in range(arguments.repeats):
            for name, found in seconds.items():
                found.append(round(took(arguments.trainings, shared=name == "shared"), 1))
    for name, found in seconds.items():
        middle = statistics.median(found)
        print(f"{arguments.trainings} trainings, {name:22} {middle:6.1f} s   {found}")
    if arguments.json:
        result = {**environment(), "trainings": arguments.trainings, "seconds": seconds}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def took(trainings: int, *, shared: bool) -> float:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        with kept_group(work / "shared") if shared else nullcontext() as group:
            for _ in range(trainings):
                run_training(nothing, TrainConfig(), work, ignored, ignored, group)
    return time.perf_counter() - started


def nothing(report: Report, _: str) -> None:
    import sentisynth.training.jobs  # noqa: F401

    report({"step": 0})


def ignored(*_: Any) -> None:
    pass


if __name__ == "__main__":
    main()
