"""Trainings whose workers may be lost: a job of `training.jobs`, again from its last checkpoint."""

import math
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from sentisynth.config.types import TrainConfig
from sentisynth.data.storage import is_remote
from sentisynth.errors import PlacementError, SentisynthError, TrainingError
from sentisynth.runtime.nodes import gpu_requests
from sentisynth.runtime.placement import place_training, place_training_on_a_node
from sentisynth.runtime.ray_cluster import cluster_resources
from sentisynth.runtime.train import NO_ROOM, KeptGroup, Shape, kept_group
from sentisynth.training.checkpoint import read_progress
from sentisynth.training.engine import chosen_engine
from sentisynth.training.loop import Report

Job = Callable[[Report, str], None]
_TICK_S = 2.0


def run_training(
    job: Job,
    config: TrainConfig,
    work: Path,
    on_report: Report,
    on_restart: Callable[[int, str], None],
    kept: KeptGroup | None = None,
    *,
    wait_s: float = 0.0,
    on_wait: Callable[[str], None] = lambda _: None,
) -> None:
    """Run `job(report, attempt)` on every worker; what the first reports goes to `on_report`.

    The job keeps its checkpoints in `work`: a directory that all nodes share, or a URI, and then
    all workers are on one node. `attempt` names each start of them. Workers that die are started
    again on the cluster as it is then, and `on_restart(times, reason)` is told, until that has
    happened `config.max_restarts` times in a row without a checkpoint between; nodes that are
    missing then, and what others have of the cluster, are waited for `wait_s`, and `on_wait(what)`
    is told. A job's own error is raised at once. Ray Train's own retries do not tell the two apart.
    Raises the SentisynthError of a worker as it is, PlacementError and TrainingError; what
    `on_report` raises is raised at the end, since a record that cannot be written ends no training.

    Workers are taken from `kept`, and left there, where one process may run several jobs.
    """
    shape = _shape(config, on_one_node=is_remote(work))
    refused: list[Exception] = []

    def pass_on(entry: dict[str, Any]) -> None:
        try:
            on_report(entry)
        except (SentisynthError, OSError) as error:
            refused.append(error)

    deaths, times, step, full_s = 0, 0, read_progress(work).step, 0.0
    with _groups(kept, config, work) as groups:
        while True:
            named, begun = partial(_named, job, secrets.token_hex(8)), time.monotonic()
            reason = groups.run(shape, named, pass_on)
            if reason is None:
                break
            full_s = full_s + time.monotonic() - begun if reason == NO_ROOM else 0.0
            if 0 < full_s < wait_s:
                on_wait(f"{reason}: others have what they need")
                continue
            reached = read_progress(work).step
            deaths = 1 if reached > step else deaths + 1
            times, step = times + 1, reached
            if deaths > config.max_restarts:
                raise TrainingError(
                    f"training workers were lost {deaths} times in a row at step {step} "
                    f"({reason}); the same command goes on from there, with less memory a step if "
                    f"you lower train.micro_batch_size"
                )
            on_restart(times, reason)
            shape = _shape_again(config, shape, wait_s, on_wait)
    if refused:
        raise refused[0]


def _shape(config: TrainConfig, *, on_one_node: bool) -> Shape:
    """What the cluster has for the workers. Raises PlacementError."""
    place = place_training_on_a_node if on_one_node else place_training
    placed = place(config, cluster_resources())
    return Shape(
        workers=config.workers, cpus=placed["CPU"], gpus=placed["GPU"], on_one_node=on_one_node
    )


def _shape_again(
    config: TrainConfig, before: Shape, wait_s: float, on_wait: Callable[[str], None]
) -> Shape:
    """The same after a loss, on the kind of device that it had: nodes may come back, and a cluster
    that scales itself is asked for the GPUs. Raises PlacementError after `wait_s`.
    """
    until, told = time.monotonic() + wait_s, ""
    with gpu_requests(math.ceil(before.workers * before.gpus)) as request:
        while True:
            try:
                shape = _shape(config, on_one_node=before.on_one_node)
                if shape.gpus or not before.gpus:
                    return shape
                why = "the GPUs that the training ran on are gone"
            except PlacementError as error:
                why = str(error)
            request()
            if time.monotonic() > until:
                raise PlacementError(
                    f"{why}; nodes were lost, and none came back within {wait_s:g} s"
                )
            if why != told:
                on_wait(why)
            told = why
            time.sleep(_TICK_S)


def _groups(
    kept: KeptGroup | None, config: TrainConfig, work: Path
) -> AbstractContextManager[KeptGroup]:
    """Where workers come from. Collectives, and what DeepSpeed keeps, are made for one training."""
    if kept is not None and config.workers == 1 and chosen_engine(config) == "torch":
        return nullcontext(kept)
    if kept is not None:
        kept.end(at_once=False)  # what it holds is needed
    return kept_group(Path(tempfile.mkdtemp()) if is_remote(work) else work / "ray")


def _named(job: Job, attempt: str, report: Report) -> None:
    job(report, attempt)
