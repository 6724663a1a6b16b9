"""Ray Train: runs a training job of `training.jobs` on workers, and again if they are killed."""

import logging
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sentisynth import signals
from sentisynth.config.types import TrainConfig
from sentisynth.data.storage import is_remote
from sentisynth.errors import SentisynthError, TrainingError
from sentisynth.models.devices import check_gpu, memory_guarded
from sentisynth.runtime.actors import Reports
from sentisynth.runtime.leaving import leave_in_time
from sentisynth.runtime.placement import place_training, place_training_on_a_node
from sentisynth.runtime.ray_cluster import cluster_resources
from sentisynth.training.checkpoint import read_progress
from sentisynth.training.loop import Report

Job = Callable[[Report, str], None]
_POLL_S = 0.5
_LESS_MEMORY = "lower train.micro_batch_size, or set train.gradient_checkpointing=true"
_PEER_SIGNS = ("gloo", "Connection closed by peer", "Connection reset by peer")


def run_training(
    job: Job,
    config: TrainConfig,
    work: Path,
    on_report: Report,
    on_restart: Callable[[int, str], None],
) -> None:
    """Run `job(report, attempt)` on every worker; what the first reports goes to `on_report`.

    The job keeps its checkpoints in `work`: a directory that all nodes share, or a URI, and then
    all workers are on one node. `attempt` names each start of them. Workers that die are started
    again, and `on_restart(times, reason)` is told, until that has happened `config.max_restarts`
    times in a row without a checkpoint between; a job's own error is raised at once. Ray Train's
    own retries do not tell the two apart. Raises the SentisynthError of a worker as it is, and
    TrainingError.
    """
    resources = cluster_resources()
    place = place_training_on_a_node if is_remote(work) else place_training
    placed = place(config, resources)
    with _passing_on(on_report) as reports:

        def worker(attempt: str) -> None:
            leave_in_time()
            if placed["GPU"]:
                check_gpu()
            torch.set_num_threads(int(placed["CPU"]))
            first = ray.train.get_context().get_world_rank() == 0
            with memory_guarded("training", _LESS_MEMORY):
                job(lambda entry: ray.get(reports.add.remote(entry)) if first else None, attempt)

        deaths, times, step = 0, 0, read_progress(work).step
        while (error := _attempt(worker, config.workers, placed, work)) is not None:
            reason = _death(error)
            reached = read_progress(work).step
            deaths = 1 if reached > step else deaths + 1
            times, step = times + 1, reached
            if deaths > config.max_restarts:
                raise TrainingError(
                    f"training workers died {deaths} times in a row at step {step} ({reason}); "
                    f"the same command goes on from there, with less memory a step if you lower "
                    f"train.micro_batch_size"
                )
            on_restart(times, reason)


def _attempt(
    worker: Callable[[str], None], workers: int, placed: dict[str, float], work: Path
) -> TrainingFailedError | None:
    """Run it on all workers; returns the error if one of them was lost, raises any other."""
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    # Ray Train's own notes; nothing of ours is in them
    storage = Path(tempfile.mkdtemp()) if is_remote(work) else work / "ray"
    attempt = secrets.token_hex(8)
    # one worker needs no process group, whose store would listen on all of the node's addresses
    kind = TorchTrainer if workers > 1 else DataParallelTrainer
    trainer = kind(
        lambda: worker(attempt),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=placed["GPU"] > 0,
            resources_per_worker={k: v for k, v in placed.items() if v},
            placement_strategy="STRICT_PACK" if is_remote(work) else "PACK",
        ),
        run_config=ray.train.RunConfig(
            storage_path=str(storage),
            name="train",
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    try:
        with _own_interrupts():
            trainer.fit()
    except TrainingFailedError as error:
        own = _user_error(error)
        if own is not None:
            raise own from None
        if not _death(error):
            raise
        if isinstance(error, ControllerError):  # Ray Train then keeps the workers' resources
            raise TrainingError(
                f"a training worker died as it started ({_death(error)}); the same command tries "
                f"again"
            ) from None
        return error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    return None


@contextmanager
def _passing_on(on_report: Report) -> Iterator[Any]:
    """An actor that takes reports; a thread passes them on. What that raises is raised at the end:
    a record that cannot be written ends no training.
    """
    # beside the driver: a worker's node that is lost does not take it along
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    reports = ray.remote(Reports).options(num_cpus=0, scheduling_strategy=here).remote()
    finished, errors = threading.Event(), []

    def poll() -> None:
        last = False
        while not last:
            last = finished.wait(_POLL_S)
            for entry in ray.get(reports.take.remote()):
                try:
                    on_report(entry)
                except SentisynthError as error:
                    errors.append(error)

    poller = threading.Thread(target=poll, daemon=True)
    poller.start()
    try:
        yield reports
    finally:
        finished.set()
        poller.join()
        ray.kill(reports)
    if errors:
        raise errors[0]


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Ray Train answers Ctrl-C by leaving with status 0, and keeps its handler afterwards: a
    stopped training is no success, and what comes next is ours to stop.
    """
    with signals.kept():
        try:
            yield
        except SystemExit:
            raise signals.Stopped(signal.SIGINT) from None


def _causes(error: TrainingFailedError) -> Iterator[BaseException]:
    """What the workers failed of, and what that came from."""
    failures = [*getattr(error, "worker_failures", {}).values()]
    failures += [getattr(error, "controller_failure", None)]  # a worker that dies as it starts
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            yield cause
            told = getattr(cause, "cause", None) or getattr(cause, "health_check_failure", None)
            cause = told or cause.__cause__


def _user_error(error: TrainingFailedError) -> SentisynthError | None:
    return next((c for c in _causes(error) if isinstance(c, SentisynthError)), None)


def _death(error: TrainingFailedError) -> str:
    """In a few words, why a process was lost; empty if none was."""
    for cause in _causes(error):
        if isinstance(cause, ray.exceptions.OutOfMemoryError):
            return "the node ran out of memory"
        if isinstance(cause, ray.exceptions.RayActorError) or _lost_a_peer(cause):
            return "a worker or its node was lost"
    return ""


def _lost_a_peer(cause: BaseException) -> bool:
    """Whether a collective failed since another worker is gone; gloo has no class for that."""
    if isinstance(cause, torch.distributed.DistError):
        return True
    return isinstance(cause, RuntimeError) and any(sign in str(cause) for sign in _PEER_SIGNS)
