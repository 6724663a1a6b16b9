"""Stage C as one Ray Data stream: plan, generate, screen, verify, write.

A row of the stream is a unit, from the source to the receipt (or a bundle of units, where they take
milliseconds); a task is one row in one pool. What Ray makes again after a death is therefore a
unit, whose bytes are the same each time. Each stage has a pool of its own, or, where all stages
share the CPUs, one pool runs them one after the other.
"""

import itertools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sentisynth.data.receipts import Receipt
from sentisynth.data.units import Unit
from sentisynth.errors import PlacementError, SentisynthError
from sentisynth.runtime.actors import (
    FAILED,
    Bundle,
    Mailbox,
    Reports,
    UnitStages,
    finished_units,
    source_row,
)
from sentisynth.runtime.plan import UnitPlan
from sentisynth.runtime.pools import StreamPool
from sentisynth.runtime.ray_cluster import gpu_kinds
from sentisynth.runtime.watch import ClusterWatch, NodesGainedError, NodesLostError, UnbalancedError

_TICK_S = 1.0
_LONGEST_LOADING_S = 1800
_LONGEST_END_S = 600.0  # that units at work may take to finish when no more are wanted
_LONGEST_STOP_S = 10.0  # that the stream may take to end when the process is told to stop
_HOPELESS_RESTARTS = 10  # of actors, a pool's largest size each, without a finished unit


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A unit whose file is in the pool."""

    receipt: Receipt
    seconds: dict[str, float]
    """How long each stage took."""


class UnitStream:
    """Runs units through the stages and yields each once its file is in the pool.

    Units are handed out up to the horizons that `want` sets, few at a time (see `UnitPlan`). To be
    used as a context manager, whose end is the stream's.
    """

    def __init__(
        self,
        pools: list[StreamPool],
        *,
        n_labels: int,
        size: int,
        done: set[Unit],
        shuffle: int | None = None,
        show_ray_progress: bool = False,
    ) -> None:
        self._watch = ClusterWatch()
        actors = sum(pool.placed.max_actors for pool in pools)
        self._plan = UnitPlan(
            n_labels=n_labels,
            size=size,
            n_workers=actors,
            n_waiting=actors if len(pools) == 1 else 0,  # those between pools were begun
            done=done,
            shuffle=shuffle,
        )
        self._most_restarts = _HOPELESS_RESTARTS * actors
        self.restarts: Counter[str] = Counter()
        """Actors by stage that Ray started again; one that runs several counts for each."""
        self.n_restarts = self._restarts_in_vain = 0
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {
            "num_cpus": 0,
            "max_restarts": -1,
            "max_task_retries": -1,
            "scheduling_strategy": here,
        }
        self._mailbox: Any = ray.remote(Mailbox).options(**options, max_concurrency=64).remote()
        self._reports: Any = ray.remote(Reports).options(**options).remote()
        self._sent: list[Bundle] = []
        self._failed: SentisynthError | None = None
        self._is_running = False

        self._rows = self._through(pools, show_ray_progress)
        self._found: queue.SimpleQueue[pa.Table | Exception | None] = queue.SimpleQueue()
        self._row: Iterator[tuple[Receipt, dict[str, float]]] = iter(())
        self._stopped = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def _through(self, pools: list[StreamPool], show_ray_progress: bool) -> ray.data.Dataset:
        """The mailbox' bundles, a row each, through all pools; nothing runs yet."""
        context = ray.data.DataContext.get_current().copy()
        context.target_max_block_size = 1  # so that the source gives each row away at once
        if any(pool.placed.gpus for pool in pools):  # generators take their GPUs first
            context.wait_for_min_actors_s = _LONGEST_LOADING_S
        context.execution_no_progress_timeout_s = -1  # a unit may take an hour; see ClusterWatch
        context.enable_progress_bars = context.print_on_execution_start = show_ray_progress
        logging.getLogger("ray.data").setLevel(logging.INFO if show_ray_progress else logging.ERROR)
        with ray.data.DataContext.current(context):
            rows = ray.data.read_datasource(
                _Source(self._mailbox), override_num_blocks=1, num_cpus=0
            )
            kinds = gpu_kinds()
            own_kind = next(iter(kinds)) if len(kinds) == 1 else None
            for pool in pools:
                rows = rows.map_batches(
                    UnitStages,
                    fn_constructor_args=(pool.builds, self._mailbox, self._reports),
                    batch_size=1,  # a bundle; a stage with a GPU has to say it
                    batch_format="pyarrow",
                    num_cpus=pool.placed.cpus,
                    num_gpus=pool.placed.gpus or None,
                    compute=ray.data.ActorPoolStrategy(
                        min_size=pool.placed.min_actors, max_size=pool.placed.max_actors
                    ),
                    # one that is started again stays on GPUs of this kind
                    accelerator_type=own_kind if pool.placed.gpus else None,
                )
        return rows

    @property
    def in_flight(self) -> int:
        """Units handed out whose files are not in the pool yet."""
        return len(self._plan.in_flight)

    def waiting_for(self) -> str:
        """Why nothing finishes, as far as one can tell."""
        return self._watch.told_loss() or "models are loading, or a unit takes long"

    def want(self, horizons: list[int]) -> None:
        """Make the units of each label up to these numbers, and no more for now."""
        self._plan.want(horizons)

    def __enter__(self) -> "UnitStream":
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the stream. Units at work are finished, unless the process is told to stop."""
        if not ray.is_initialized():
            return
        if kind is not None and issubclass(kind, NodesLostError):
            self._force_end(_LONGEST_END_S)
            return
        ends_well = kind is None or issubclass(
            kind, SentisynthError | NodesGainedError | UnbalancedError
        )
        deadline = time.monotonic() + (_LONGEST_END_S if ends_well else 0)
        self._mailbox.close.remote()
        while self._reader.is_alive() and time.monotonic() < deadline:
            self._reader.join(_TICK_S)
            self._mailbox.close.remote()  # again: a mailbox that was restarted is open
        self._stopped.set()
        if (
            self._reader.is_alive()
        ):  # Ray Data's thread would outlive the session, and begin another
            self._force_end(_LONGEST_END_S if ends_well else _LONGEST_STOP_S)
        if kind is None and self._reader.is_alive():
            raise PlacementError(
                f"units at work did not finish within {_LONGEST_END_S:.0f} s after the last that "
                f"was wanted; what was made is kept: run the same command again"
            )

    def _force_end(self, longest_s: float) -> None:
        """End a stream whose tasks wait for processes that are gone, or are not waited for."""
        self._stopped.set()
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its tasks end in errors now
        self._mailbox.close.remote()
        executor: Any = getattr(self._rows, "_current_executor", None)  # what its end calls, too
        loading = []
        if executor is not None:
            executor.shutdown(force=True)
        else:  # it waits for all actors to start, some of which never will
            loading = ray.get(self._reports.loading.remote())
        for actor in (self._mailbox, self._reports, *loading):
            ray.kill(actor)
        self._reader.join(longest_s)

    def __iter__(self) -> Iterator[Finished | None]:
        """Units in the order in which they finish; None when a second brought none.

        Raises ClusterChangedError where the stream should be opened anew.
        """
        looked = time.monotonic()
        while True:
            self._hand_out()
            try:
                row = self._found.get(timeout=_TICK_S)
            except queue.Empty:
                self._look_after()
                yield None
                continue
            if isinstance(row, Exception):
                self._look_after()
                if isinstance(row, ray.exceptions.GetTimeoutError):
                    raise PlacementError(
                        f"the stream's actors did not all start within {_LONGEST_LOADING_S:.0f} s: "
                        f"others have the GPUs, or the shares of a GPU in synthesis.generate_pool "
                        f"and synthesis.verify_pool leave no room for all; what was made is kept"
                    ) from None
                raise self._failed or row
            if row is None:
                return
            self._restarts_in_vain = 0
            if not self._is_running:
                self._is_running = True
                self._reports.forget.remote()
            self._row = finished_units(row)  # `rest` has it if the stream is opened anew here
            if time.monotonic() - looked > _TICK_S:
                looked = time.monotonic()
                self._look_after()
            for receipt, seconds in self._row:
                self._plan.finished(receipt.unit, sum(seconds.values()))
                self._watch.finished(sum(seconds.values()))
                yield Finished(receipt=receipt, seconds=seconds)

    def rest(self) -> Iterator[Finished]:
        """Units that finished after the last that was looked at, once the stream has ended."""
        rows = [self._row]
        with suppress(queue.Empty):
            while True:
                row = self._found.get_nowait()
                if isinstance(row, pa.Table):
                    rows.append(finished_units(row))
        for receipt, seconds in itertools.chain.from_iterable(rows):
            yield Finished(receipt=receipt, seconds=seconds)

    def _read(self) -> None:
        """Runs the stream in a thread of its own, so that the driver can do other things."""
        batches = self._rows.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        )
        try:
            with closing(iter(batches)) as rows:
                for row in rows:
                    if self._stopped.is_set():
                        return
                    self._found.put(row)
            self._found.put(None)
        except Exception as error:  # noqa: BLE001  raised again where the stream is iterated
            self._found.put(error)

    def _hand_out(self) -> None:
        bundles = [
            [(unit.label, unit.number, unit.size) for unit in units]
            for units in self._plan.hand_out()
        ]
        if bundles:
            self._mailbox.put.remote(len(self._sent), bundles)
            self._sent += bundles

    def _look_after(self) -> None:
        """Fill a mailbox that was restarted, and hear of what happened to actors and nodes."""
        self._watch.look(self.in_flight)
        if ray.get(self._mailbox.put.remote(len(self._sent), [])) < len(self._sent):
            self._mailbox.put.remote(0, self._sent)
        for kind, what in ray.get(self._reports.take.remote()):
            if kind == FAILED:
                self._failed = what
            else:
                self.restarts.update(what)
                self.n_restarts += 1
                self._restarts_in_vain += 1
        if self._failed is not None:
            raise self._failed
        if self._restarts_in_vain > self._most_restarts:
            raise PlacementError(
                f"actors ended and were started again {self._restarts_in_vain} times and finished "
                f"no unit meanwhile ({', '.join(self.restarts)}); a likely cause is memory: lower "
                f"synthesis.unit_size, or max_actors of both synthesis.generate_pool and "
                f"synthesis.verify_pool"
            )


class _Source(Datasource):
    """One endless read: the bundles in the mailbox, a row each."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def estimate_inmemory_data_size(self) -> None:
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        mailbox = self._mailbox

        def read() -> Iterator[pa.Table]:
            position = 0
            while (bundle := ray.get(mailbox.take.remote(position))) is not None:
                yield source_row(bundle)
                position += 1

        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(read, unknown)]
