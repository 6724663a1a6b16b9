"""Pools of units that are made in a moment, for the tests of this folder."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from sentisynth.config.load import load_config
from sentisynth.config.types import RunConfig
from sentisynth.data.pool import PoolReader
from sentisynth.data.receipts import Receipt
from sentisynth.data.units import Unit, read_unit, write_unit
from tests.data.test_select import unit as scored

SIZE = 20
FIRST = Unit(0, 0, SIZE)
STRANGE = ["unit-abc.parquet", "unit-²00000.parquet", "unit-1.parquet", "unit-0000001.parquet"]


def configured(*overrides: str) -> RunConfig:
    sizes = [f"synthesis.unit_size={SIZE}", "synthesis.n_per_class=30", "synthesis.tau=0.5"]
    near = "synthesis.screens.near_duplicates=1"
    return load_config("quickstart", [*sizes, near, *overrides])


def rows(unit: Unit) -> pa.Table:
    """A unit whose candidates are all accepted."""
    logits = np.zeros((unit.size, max(2, unit.label + 1)))
    logits[:, unit.label] = 4.0
    return scored(unit.label, unit.number, logits)


def fill(pool: Path, label: int, numbers: range) -> list[Receipt]:
    units = [Unit(label, number, SIZE) for number in numbers]
    return [
        Receipt.of(rows(unit), unit, write_unit(rows(unit), unit, pool, "plan"), 1.0)
        for unit in units
    ]


def recovered(pool: Path, config: RunConfig) -> PoolReader:
    reader = PoolReader(pool, config, "plan")
    reader.recover()
    return reader


def published(pool: Path, config: RunConfig) -> bytes:
    """The manifest that a command writes who finds every unit made."""
    reader = recovered(pool, config)
    assert reader.all_full
    reader.publish()
    return (pool / "manifest.json").read_bytes()


def n_units(pool: Path) -> int:
    return len(list(pool.glob("label=*/*.parquet")))


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def flip_unnoticed(unit: Unit, pool: Path) -> None:
    """Flip a bit that the Parquet reader does not look at: the name of the writer."""
    path = unit.path(pool)
    flip(path, path.read_bytes().rindex(b"parquet-cpp-arrow"))
    assert read_unit(unit, pool, "plan") is not None
