"""Small actors and the stages' shell in the stream. No torch: these processes start fast."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from sentisynth.config.synthesis import ScreensConfig
from sentisynth.config.types import RunConfig
from sentisynth.data.receipts import Receipt
from sentisynth.data.storage import here
from sentisynth.data.units import Unit, write_unit
from sentisynth.errors import PlacementError, SentisynthError
from sentisynth.runtime.leaving import leave_in_time
from sentisynth.runtime.ray_cluster import hide_gpus
from sentisynth.stages.screen import Screen

Bundle = list[tuple[int, int, int]]  # label, number and size of each unit
Stage = Callable[[Unit, pa.Table | None], pa.Table]
Arithmetic = tuple[str, str]  # the name of the device that a plan counts on, and the precision
STAGES = ("generate", "screen", "verify", "write")
RESTARTED, FAILED = "restarted", "failed"
_UNITS, _TABLES = "units", "tables"


class Reports:
    """An actor that keeps what workers report until the driver fetches it, and their handles until
    a first unit is finished: Ray Data gives its own handles to nobody while models load.
    """

    def __init__(self) -> None:
        self._entries: list[Any] = []
        self._loading: list[Any] | None = []

    def enter(self, worker: Any) -> None:
        """The handle of a worker that loads its models."""
        if self._loading is not None:
            self._loading.append(worker)

    def forget(self) -> None:
        """The stream runs: a handle here would keep a worker that Ray Data has no more use for."""
        self._loading = None

    def loading(self) -> list[Any]:
        """Those that have entered, as long as nothing is finished."""
        return self._loading or []

    def add(self, entry: Any) -> None:
        """Keep an entry."""
        self._entries.append(entry)

    def take(self) -> list[Any]:
        """All entries since the last call, oldest first."""
        entries, self._entries = self._entries, []
        return entries


class Mailbox:
    """An actor between the driver, who puts what is to be done, and those who take it: bundles of
    units, which the stream's source takes, or jobs.

    They are known by their position, so that a source that was restarted reads the same again,
    and a mailbox that was restarted is filled anew.
    """

    def __init__(self) -> None:
        self._put: list[Any] = []
        self._closed = False
        self._changed = asyncio.Condition()

    async def put(self, position: int, those: list[Any]) -> int:
        """Add these from this position on; returns how many are known now."""
        async with self._changed:
            if position <= len(self._put):
                self._put[position:] = those
            self._changed.notify_all()
            return len(self._put)

    async def close(self) -> None:
        """Nothing more will be put."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def is_closed(self) -> bool:
        """Whether no more is wanted."""
        return self._closed

    async def take(self, position: int) -> Any:
        """What is at this position, once it is there; None after the last."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or position < len(self._put))
            return self._put[position] if position < len(self._put) else None


class Desk(Mailbox):
    """An actor between the driver, who puts jobs, and the workers of a training, who take them in
    turn, report, and say when they have finished one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._workers: list[Any] = []
        self._entries: list[Any] = []
        self._begun, self._finished = 0, 0

    async def enter(self, worker: Any) -> None:
        """The handle of a worker."""
        self._workers.append(worker)

    async def add(self, entry: Any) -> None:
        """Keep an entry until the driver fetches it."""
        self._entries.append(entry)

    async def take(self, position: int) -> Any:
        """The job at this position, once it is there; None when no more is wanted."""
        return None if self._closed else await super().take(position)

    async def begin(self, position: int) -> None:
        """A worker has the job at this position; one that asked may be gone before it is there."""
        self._begun = max(self._begun, position + 1)

    async def finish(self) -> None:
        """One worker has finished one job."""
        self._finished += 1

    async def collect(self) -> tuple[list[Any], int, int]:
        """All entries since the last call, oldest first, how many jobs were begun, and how often
        one was finished.
        """
        entries, self._entries = self._entries, []
        return entries, self._begun, self._finished

    async def workers(self) -> list[Any]:
        """Those that have entered."""
        return self._workers


class UnitStages:
    """Stages, one after the other, on rows of the stream: a bundle of units, nearly always one.

    `builds` has how each stage is made: a function of the unit and the table of its rows (None
    before they are generated). How long each took, in seconds, is added to the row; the driver is
    told of restarts, and of errors that are sentences for the user. Units that are not begun when
    the mailbox is closed are left out.
    """

    def __init__(self, builds: dict[str, Callable[[], Stage]], mailbox: Any, reports: Any) -> None:
        self._mailbox, self._reports = mailbox, reports
        leave_in_time()
        hide_gpus()
        context = ray.get_runtime_context()
        ray.get(reports.enter.remote(context.current_actor))  # fails where the stream has ended
        if context.was_current_actor_reconstructed:
            reports.add.remote((RESTARTED, [*builds]))
        with self._errors_told():
            self._stages = {name: build() for name, build in builds.items()}

    def __call__(self, row: pa.Table) -> pa.Table:
        units = [Unit(**unit) for unit in row[_UNITS][0].as_py()]
        tables: list[Any] = [None] * len(units)
        if _TABLES in row.column_names:
            tables = [_unpack(packed) for packed in row[_TABLES][0].values]
            row = row.drop_columns(_TABLES)
        elif ray.get(self._mailbox.is_closed.remote()):
            units, tables, row = [], [], source_row([])
        made: list[bytes] = []
        seconds: dict[str, list[float]] = {name: [] for name in self._stages}
        for unit, table in zip(units, tables, strict=True):
            for name, stage in self._stages.items():
                started = time.perf_counter()
                with self._errors_told():
                    table = stage(unit, table)
                seconds[name].append(time.perf_counter() - started)
            made.append(_pack(table))
        for name, taken in seconds.items():
            row = row.append_column(name, pa.array([taken], pa.list_(pa.float64())))
        return row.append_column(_TABLES, pa.array([made], pa.list_(pa.large_binary())))

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except SentisynthError as error:  # its type would be lost on the way through Ray Data
            ray.get(self._reports.add.remote((FAILED, error)))
            raise


def source_row(bundle: Bundle) -> pa.Table:
    """What goes into the first stage."""
    names = ("label", "number", "size")
    kind = pa.list_(pa.struct([(name, pa.int64()) for name in names]))
    units = [dict(zip(names, unit, strict=True)) for unit in bundle]
    return pa.table({_UNITS: pa.array([units], kind)})


def finished_units(row: pa.Table) -> Iterator[tuple[Receipt, dict[str, float]]]:
    """What comes out of the last stage: receipts, and the seconds that each stage took."""
    seconds = [
        dict(zip(STAGES, s, strict=True))
        for s in zip(*(row[n][0].as_py() for n in STAGES), strict=True)
    ]
    for packed, taken in zip(row[_TABLES][0].values, seconds, strict=True):
        yield Receipt.from_arrow(_unpack(packed)), taken


def _pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _unpack(packed: pa.LargeBinaryScalar) -> pa.Table:
    return pa.ipc.open_stream(packed.as_buffer()).read_all()


def build_generate(model: Path, config: RunConfig, planned: Arithmetic | None = None) -> Stage:
    """The first stage: a unit to its candidates."""
    from sentisynth.stages.generate import Generate

    _check_own_gpu()
    generate = Generate(here(model), _as_planned(config, planned))
    return lambda unit, _: generate(unit)


def _check_own_gpu() -> None:
    """Raises PlacementError where this is an actor that does not see the GPU it was given."""
    if ray.is_initialized() and ray.get_runtime_context().get_accelerator_ids()["GPU"]:
        from sentisynth.models.devices import check_gpu

        check_gpu()


def _as_planned(config: RunConfig, planned: Arithmetic | None) -> RunConfig:
    """The configuration in the plan's precision: each node would choose its own. Raises
    PlacementError on a device that is not the plan's.
    """
    if planned is None:
        return config
    from sentisynth.models.devices import device_facts

    device, precision = planned
    found = device_facts().named(precision)
    if found != device:
        raise PlacementError(
            f"an actor was placed on {found}, and this pool is made on {device}: another device "
            f"gives other bytes; keep nodes of one kind in the cluster"
        )
    synthesis = config.synthesis.model_copy(update={"precision": precision})
    return config.model_copy(update={"synthesis": synthesis})


def build_screen(config: ScreensConfig, texts: list[Any]) -> Stage:
    """The screens, with the real texts (held out, seed) fetched from the object store."""
    screen = Screen(config, *ray.get(texts[0]))
    return lambda _, table: screen(table)


def build_verify(model: Path, config: RunConfig, planned: Arithmetic | None = None) -> Stage:
    """The teacher."""
    from sentisynth.stages.verify import Verify

    _check_own_gpu()
    verify = Verify(here(model), _as_planned(config, planned))
    return lambda _, table: verify(table)


def build_write(pool: Path, plan: str, near_duplicates: float) -> Stage:
    """The last stage: writes a unit's file; its receipt goes on in place of the rows."""

    def write(unit: Unit, table: pa.Table) -> pa.Table:
        sha256 = write_unit(table, unit, pool, plan)
        return Receipt.of(table, unit, sha256, near_duplicates).to_arrow()

    return write
