"""Units: a fixed block of consecutive candidates of one label; one batch, one file, one retry."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sentisynth import schema
from sentisynth.data.files import aside
from sentisynth.errors import RunDirectoryError

_PLAN = b"sentisynth.plan"


@dataclass(frozen=True, order=True)
class Unit:
    """Candidates number × size … (number + 1) × size − 1 of one label."""

    label: int
    number: int
    size: int

    @property
    def first_index(self) -> int:
        """Index of the unit's first candidate."""
        return self.number * self.size

    def candidate_ids(self) -> list[str]:
        """Names of the unit's candidates, in index order."""
        indices = range(self.first_index, self.first_index + self.size)
        return [schema.candidate_id(self.label, i) for i in indices]

    def path(self, pool: Path) -> Path:
        """Where the unit's file is once it is done."""
        return pool / f"label={self.label}" / f"unit-{self.number:06d}.parquet"


def nth_unit(n: int, n_labels: int, size: int) -> Unit:
    """The n-th unit of the plan, from 0: labels take turns."""
    return Unit(n % n_labels, n // n_labels, size)


def write_unit(table: pa.Table, unit: Unit, pool: Path, plan: str) -> None:
    """Write a unit aside, then rename it: a file under a unit's name is whole, or damaged later.

    The plan's fingerprint goes into the file, and each page has a checksum. No time, host or
    process goes in, so the same rows are the same bytes.
    """
    table = table.cast(schema.POOL).replace_schema_metadata({_PLAN: plan.encode()})
    with aside(unit.path(pool)) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_unit(unit: Unit, pool: Path, plan: str) -> pa.Table | None:
    """The unit's rows, or None if the file is missing, torn, altered or of another plan."""
    path = unit.path(pool)
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except pa.ArrowException:
        return None
    except OSError as error:
        if error.errno not in (None, errno.ENOENT):  # the file may be whole: not for us to redo
            raise RunDirectoryError(f"{path} cannot be read: {error}") from None
        return None
    if not table.schema.equals(schema.POOL) or table.num_rows != unit.size:
        return None
    if (table.schema.metadata or {}).get(_PLAN) != plan.encode():
        return None
    if table[schema.CANDIDATE_ID].to_pylist() != unit.candidate_ids():
        return None
    return table


def units_on_disk(pool: Path, size: int) -> Iterator[Unit]:
    """Units that have a file, by label and number. Raises RunDirectoryError for a strange name."""
    for path in sorted(pool.glob("label=*/unit-*.parquet")):
        label, number = path.parent.name.removeprefix("label="), path.stem.removeprefix("unit-")
        if not (label.isdigit() and number.isdigit()):
            raise RunDirectoryError(f"{path} is not the name of a unit; remove it from the pool")
        yield Unit(int(label), int(number), size)
