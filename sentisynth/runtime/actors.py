"""Small actors and the stages' shell in the stream. No torch: these processes start fast."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from sentisynth.config.types import RunConfig, ScreensConfig
from sentisynth.data.receipts import Receipt
from sentisynth.data.units import Unit, write_unit
from sentisynth.errors import SentisynthError
from sentisynth.stages.screen import Screen

Stage = Callable[[Unit, pa.Table | None], pa.Table]
STAGES = ("generate", "screen", "verify", "write")
RESTARTED, FAILED = "restarted", "failed"
_ROWS = "rows"


class Reports:
    """An actor that keeps what workers report until the driver fetches it."""

    def __init__(self) -> None:
        self._entries: list[Any] = []

    def add(self, entry: Any) -> None:
        """Keep an entry."""
        self._entries.append(entry)

    def take(self) -> list[Any]:
        """All entries since the last call, oldest first."""
        entries, self._entries = self._entries, []
        return entries


class Mailbox:
    """An actor between the driver, who puts the units to make, and the stream's source.

    Units are known by their position, so that a source that was restarted reads the same again,
    and a mailbox that was restarted is filled anew.
    """

    def __init__(self) -> None:
        self._units: list[tuple[int, int]] = []
        self._closed = False
        self._changed = asyncio.Condition()

    async def put(self, position: int, units: list[tuple[int, int]]) -> int:
        """Add (label, number) from this position on; returns how many are known now."""
        async with self._changed:
            if position <= len(self._units):
                self._units[position:] = units
            self._changed.notify_all()
            return len(self._units)

    async def close(self) -> None:
        """Nothing more will be put."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def take(self, position: int) -> tuple[int, int] | None:
        """The unit at this position, once it is there; None after the last."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or position < len(self._units))
            return self._units[position] if position < len(self._units) else None


class UnitStage:
    """A stage on rows of the stream, of which each is a unit.

    `build()` makes the stage: a function of the unit and the table of its rows (None before they
    are generated). How long it took, in seconds, is added to the row; the driver is told of
    restarts, and of errors that are sentences for the user.
    """

    def __init__(self, name: str, build: Callable[[], Stage], reports: Any) -> None:
        self._name, self._reports = name, reports
        if ray.get_runtime_context().was_current_actor_reconstructed:
            reports.add.remote((RESTARTED, name))
        with self._errors_told():
            self._stage = build()

    def __call__(self, row: pa.Table) -> pa.Table:
        unit = Unit(*(row[name][0].as_py() for name in ("label", "number", "size")))
        table = None
        if _ROWS in row.column_names:
            table = pa.ipc.open_stream(row[_ROWS][0].as_buffer()).read_all()
            row = row.drop_columns(_ROWS)
        started = time.perf_counter()
        with self._errors_told():
            made = self._stage(unit, table)
        seconds = pa.array([time.perf_counter() - started], pa.float64())
        row = row.append_column(f"{self._name}_s", seconds)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, made.schema) as writer:
            writer.write_table(made)
        packed = pa.array([sink.getvalue().to_pybytes()], pa.large_binary())
        return row.append_column(_ROWS, packed)

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except SentisynthError as error:  # its type would be lost on the way through Ray Data
            ray.get(self._reports.add.remote((FAILED, error)))
            raise


def unpack(row: pa.Table) -> tuple[Receipt, dict[str, float]]:
    """What comes out of the last stage: a unit's receipt, and the seconds of each stage."""
    table = pa.ipc.open_stream(row[_ROWS][0].as_buffer()).read_all()
    return Receipt.from_arrow(table), {name: row[f"{name}_s"][0].as_py() for name in STAGES}


def source_row(label: int, number: int, size: int) -> pa.Table:
    """What goes into the first stage."""
    return pa.table({"label": [label], "number": [number], "size": [size]})


def build_generate(model: Path, config: RunConfig) -> Stage:
    """The first stage: a unit to its candidates."""
    from sentisynth.stages.generate import Generate

    generate = Generate(model, config)
    return lambda unit, _: generate(unit)


def build_screen(config: ScreensConfig, texts: list[Any]) -> Stage:
    """The screens, with the real texts (held out, seed) fetched from the object store."""
    screen = Screen(config, *ray.get(texts[0]))
    return lambda _, table: screen(table)


def build_verify(model: Path, config: RunConfig) -> Stage:
    """The teacher."""
    from sentisynth.stages.verify import Verify

    verify = Verify(model, config)
    return lambda _, table: verify(table)


def build_write(pool: Path, plan: str, near_duplicates: float) -> Stage:
    """The last stage: writes a unit's file; its receipt goes on in place of the rows."""

    def write(unit: Unit, table: pa.Table) -> pa.Table:
        sha256 = write_unit(table, unit, pool, plan)
        return Receipt.of(table, unit, sha256, near_duplicates).to_arrow()

    return write
