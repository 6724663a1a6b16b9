"""Small actors and stages that need no torch: their processes start fast and stay small."""

from typing import Any

import pyarrow as pa
import ray

from sentisynth import schema
from sentisynth.config.types import ScreensConfig
from sentisynth.data.units import Unit, write_unit
from sentisynth.stages.screen import Screen

_RECEIPT = pa.schema([pa.field("label", pa.int32()), pa.field("number", pa.int64())])


class Demand:
    """An actor that knows which labels still want units; generators ask it before each unit."""

    def __init__(self, full: set[int]) -> None:
        self._full = full

    def wants(self, label: int) -> bool:
        """Whether the label is short of its quota."""
        return label not in self._full

    def close(self, label: int) -> None:
        """The label has its quota."""
        self._full.add(label)


class AskDemand:
    """Asks a `Demand` actor whether a unit is wanted."""

    def __init__(self, demand: Any) -> None:
        self._demand = demand

    def __call__(self, unit: Unit) -> bool:
        return bool(ray.get(self._demand.wants.remote(unit.label)))


class Reports:
    """An actor that keeps what the first training worker reports until the driver fetches it."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []

    def add(self, entry: dict[str, Any]) -> None:
        """Keep an entry."""
        self._entries.append(entry)

    def take(self) -> list[dict[str, Any]]:
        """All entries since the last call, oldest first."""
        entries, self._entries = self._entries, []
        return entries


class ScreenFromStore:
    """The screen stage, with the real texts fetched from the object store."""

    def __init__(self, config: ScreensConfig, texts: list[Any]) -> None:
        evaluation_texts, seed_texts = ray.get(texts[0])
        self._screen = Screen(config, evaluation_texts, seed_texts)

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._screen(table)


class WriteUnit:
    """Writes a unit's file and turns its rows into a receipt: one row, label and number."""

    def __init__(self, pool: Any, plan: str, size: int) -> None:
        self._pool, self._plan, self._size = pool, plan, size

    def __call__(self, table: pa.Table) -> pa.Table:
        if table.num_rows == 0:  # a unit that nobody wanted any more
            return _RECEIPT.empty_table()
        label, index = map(int, table[schema.CANDIDATE_ID][0].as_py().split("-"))
        unit = Unit(label, index // self._size, self._size)
        write_unit(table, unit, self._pool, self._plan)
        return pa.table({"label": [unit.label], "number": [unit.number]}, schema=_RECEIPT)
