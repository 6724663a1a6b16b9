"""Ray Train: runs a training job of `training.jobs` on workers."""

import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from sentisynth import signals
from sentisynth.config.types import TrainConfig
from sentisynth.errors import SentisynthError
from sentisynth.runtime.actors import Reports
from sentisynth.runtime.ray_cluster import cluster_resources, place_training
from sentisynth.training.jobs import Report

_POLL_S = 0.5


def run_training(
    job: Callable[[Report], None], config: TrainConfig, storage: Path, on_report: Report
) -> None:
    """Run `job(report)` on every worker and pass what the first one reports to `on_report`.

    `storage` is shared by all nodes, holds Ray Train's own state meanwhile, and is removed.
    Raises the SentisynthError of a worker as it is.
    """
    placed = place_training(config, cluster_resources())
    reports = ray.remote(Reports).options(num_cpus=0).remote()

    def worker() -> None:
        torch.set_num_threads(int(placed["CPU"]))
        first = ray.train.get_context().get_world_rank() == 0
        job(lambda entry: ray.get(reports.add.remote(entry)) if first else None)

    trainer = TorchTrainer(
        worker,
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=placed["GPU"] > 0,
            resources_per_worker={k: v for k, v in placed.items() if v},
        ),
        run_config=ray.train.RunConfig(storage_path=str(storage), name="train"),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    finished = threading.Event()
    poller = threading.Thread(target=_poll, args=(reports, on_report, finished), daemon=True)
    poller.start()
    try:
        with _own_interrupts():
            trainer.fit()
    except TrainingFailedError as error:
        raise _user_error(error) or error from None
    finally:
        finished.set()
        poller.join()
        ray.kill(reports)
        shutil.rmtree(storage, ignore_errors=True)


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


def _poll(reports: Any, on_report: Report, finished: threading.Event) -> None:
    last = False
    while not last:
        last = finished.wait(_POLL_S)
        for entry in ray.get(reports.take.remote()):
            on_report(entry)


def _user_error(error: TrainingFailedError) -> SentisynthError | None:
    for failure in getattr(error, "worker_failures", {}).values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, SentisynthError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return None
