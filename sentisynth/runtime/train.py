"""Ray Train: workers that are started once and run one job after another.

It runs one function on its workers. Here that is a loop that asks an actor for jobs:
trainings of the same shape share the start, which takes longer than a small training.
"""

import gc
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray import cloudpickle
from ray.train.torch import TorchTrainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sentisynth.errors import SentisynthError, TrainingError
from sentisynth.models.allocator import VARIABLES
from sentisynth.models.devices import check_gpu, memory_guarded
from sentisynth.runtime.actors import Desk
from sentisynth.runtime.leaving import leave_in_time
from sentisynth.runtime.ray_cluster import hide_gpus

Report = Callable[[dict[str, Any]], None]
Job = Callable[[Report], None]
_POLL_S = 0.25
_LONGEST_END_S = 15
_MOST_FAILED_STARTS = 2  # before the cluster is looked at again; Ray Train waits a minute in each
NO_ROOM = "the cluster had no room for its workers"
_STARTED_TOO_LATE = "WorkerGroupStartupTimeoutError"  # Ray Train's, which it does not export
_PEER_SIGNS = ("gloo", "Connection closed by peer", "Connection reset by peer")
_LESS_MEMORY = "lower train.micro_batch_size, or set train.gradient_checkpointing=true"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How many workers, and what each is given."""

    workers: int
    cpus: float
    gpus: float
    on_one_node: bool


class WorkerGroup:
    """Workers of one shape. They end with the first job that fails, and with the first of them that
    is lost.
    """

    def __init__(self, shape: Shape, storage: Path) -> None:
        """Ray Train keeps notes under `storage`; nothing of ours."""
        self.shape, self._storage = shape, storage
        self._jobs, self._begun = 0, 0
        # beside the driver: a worker's node that is lost does not take it along
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        many = shape.workers + 8  # each worker may wait in a call
        options = {"num_cpus": 0, "scheduling_strategy": here, "max_concurrency": many}
        self._desk: Any = ray.remote(Desk).options(**options).remote()
        self._failed: BaseException | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._fit, name="ray-train", daemon=True).start()

    def run(self, job: Job, on_report: Report) -> str | None:
        """Run `job(report)` on every worker; what the first reports goes to `on_report`. Returns
        why a worker was lost, or None when the job is done. Raises its SentisynthError as it is.
        """
        self._asked(self._desk.put, self._jobs, [cloudpickle.dumps(job)])
        self._jobs += 1
        while True:
            has_ended = self._ended.wait(_POLL_S)
            entries, self._begun, finished = self._asked(self._desk.collect)
            for entry in entries:
                on_report(entry)
            if finished == self._jobs * self.shape.workers:
                return None
            if has_ended:
                return _loss(self._failed or TrainingError("Ray Train ended before its job"))

    def _asked(self, method: Any, *arguments: Any) -> Any:
        try:
            return ray.get(method.remote(*arguments))
        except ray.exceptions.RayActorError:
            raise TrainingError(
                "the process between this one and the training's workers was lost; the same "
                "command goes on from the last checkpoint"
            ) from None

    @property
    def was_lost_idle(self) -> bool:
        """Whether it ended between two jobs, and the second was not begun."""
        return self._ended.is_set() and 0 < self._begun < self._jobs

    @property
    def is_alive(self) -> bool:
        """Whether it takes another job."""
        return not self._ended.is_set()

    def end(self, *, at_once: bool) -> None:
        """Let the workers go; `at_once` kills them in the middle of a job, and those that start.
        Ray Train itself is not killed: it gives back what was reserved.
        """
        try:
            ray.get(self._desk.close.remote())
            until = time.monotonic() + _LONGEST_END_S
            while not self._ended.wait(_POLL_S) and time.monotonic() < until:
                for worker in ray.get(self._desk.workers.remote()) if at_once else ():
                    ray.kill(worker)
        except ray.exceptions.RayError:
            pass  # the desk is gone, and nobody can ask it for a job
        finally:
            with suppress(ray.exceptions.RayError):
                ray.kill(self._desk)

    def _fit(self) -> None:
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)
        shape, desk = self.shape, self._desk
        # one worker needs no process group, whose store would listen on all of the node's addresses
        kind = TorchTrainer if shape.workers > 1 else DataParallelTrainer
        given = {"CPU": shape.cpus, "GPU": shape.gpus}
        try:
            kind(
                lambda: _work(desk, shape),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=shape.workers,
                    use_gpu=shape.gpus > 0,
                    resources_per_worker={k: v for k, v in given.items() if v},
                    placement_strategy="STRICT_PACK" if shape.on_one_node else "PACK",
                ),
                run_config=ray.train.RunConfig(
                    storage_path=str(self._storage),
                    name=secrets.token_hex(4),
                    worker_runtime_env={} if shape.gpus else {"env_vars": VARIABLES},
                    failure_config=ray.train.FailureConfig(
                        max_failures=0,
                        max_preemption_failures=0,
                        controller_failure_limit=_MOST_FAILED_STARTS,
                    ),
                ),
            ).fit()
        except BaseException as error:  # noqa: BLE001  the thread that asks raises it
            self._failed = error
        finally:
            self._ended.set()


def _work(desk: Any, shape: Shape) -> None:
    """What a worker does."""
    leave_in_time()
    hide_gpus()
    if shape.gpus:
        check_gpu()
    is_first = ray.train.get_context().get_world_rank() == 0
    ray.get(desk.enter.remote(ray.get_runtime_context().current_actor))

    def report(entry: dict[str, Any]) -> None:
        if is_first:
            ray.get(desk.add.remote(entry))

    position = 0
    while (job := ray.get(desk.take.remote(position))) is not None:
        ray.get(desk.begin.remote(position))
        torch.set_num_threads(int(shape.cpus))
        with memory_guarded("training", _LESS_MEMORY):
            cloudpickle.loads(job)(report)
        del job
        gc.collect()  # the next may need the memory
        if shape.gpus:
            torch.cuda.empty_cache()
        ray.get(desk.finish.remote())
        position += 1


class KeptGroup:
    """A place for a group between two trainings."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        self._group: WorkerGroup | None = None

    def run(self, shape: Shape, job: Job, on_report: Report) -> str | None:
        """As WorkerGroup.run, by the group that is there if it is of this shape and alive, else by
        a new one.
        """
        group = self._of(shape)
        loss = group.run(job, on_report)
        return self._of(shape).run(job, on_report) if group.was_lost_idle else loss

    def _of(self, shape: Shape) -> WorkerGroup:
        if self._group is None or self._group.shape != shape or not self._group.is_alive:
            self.end(at_once=False)
            self._group = WorkerGroup(shape, self._storage)
        return self._group

    def end(self, *, at_once: bool) -> None:
        """Let the group go, if there is one."""
        if self._group is not None:
            self._group.end(at_once=at_once)
            self._group = None


@contextmanager
def kept_group(storage: Path) -> Iterator[KeptGroup]:
    """Workers that may be used more than once in the block; see WorkerGroup for `storage`."""
    kept = KeptGroup(storage)
    try:
        yield kept
        kept.end(at_once=False)
    except BaseException:
        kept.end(at_once=True)
        raise
    finally:
        shutil.rmtree(storage, ignore_errors=True)  # of a driver that was killed, too


def _loss(error: BaseException) -> str:
    """Why a worker was lost, in a few words. Raises the error where none was."""
    if not isinstance(error, TrainingFailedError):
        raise error
    own = next((c for c in _causes(error) if isinstance(c, SentisynthError)), None)
    if own is not None:
        raise own from None
    is_preempted = isinstance(error, PreemptionError)
    reason = "a node was taken away" if is_preempted else _death(error)
    if any(type(cause).__name__ == _STARTED_TOO_LATE for cause in _causes(error)):
        return NO_ROOM
    if not reason:
        raise error
    if isinstance(error, ControllerError):  # Ray Train then keeps the workers' resources
        raise TrainingError(
            f"a training worker died as it started ({reason}); the same command tries again"
        ) from None
    return reason


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
