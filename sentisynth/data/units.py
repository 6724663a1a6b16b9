"""Units: a fixed block of consecutive candidates of one label; one batch, one file, one retry."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sentisynth import schema
from sentisynth.data.files import write_bytes
from sentisynth.data.storage import children
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

    @property
    def name(self) -> str:
        """The unit's file, relative to the pool."""
        return f"label={self.label}/unit-{self.number:06d}.parquet"

    def path(self, pool: Path) -> Path:
        """Where the unit's file is once it is done."""
        return pool / self.name


def write_unit(table: pa.Table, unit: Unit, pool: Path, plan: str) -> str:
    """Write a unit whole or not at all; returns the sha256 of its file.

    The plan's fingerprint goes into the file, and each page has a checksum. No time, host or
    process goes in, so the same rows are the same bytes.
    """
    table = table.cast(schema.POOL).replace_schema_metadata({_PLAN: plan.encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data = sink.getvalue()
    write_bytes(unit.path(pool), data)
    return hashlib.sha256(data).hexdigest()


def read_unit(
    unit: Unit, pool: Path, plan: str, sha256: str | None = None
) -> tuple[pa.Table, str] | None:
    """The unit's rows and the sha256 of its file.

    None if the file is missing, torn, altered or of another plan. Where its `sha256` is known,
    any altered bit is noticed; else what the checksums of the pages cover, the schema and the
    names of the candidates. Raises RunDirectoryError where the file cannot be read at all.
    """
    data = _read(unit.path(pool))
    if data is None:
        return None
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        return None
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError):
        return None
    if not table.schema.equals(schema.POOL) or table.num_rows != unit.size:
        return None
    if (table.schema.metadata or {}).get(_PLAN) != plan.encode():
        return None
    if table[schema.CANDIDATE_ID].to_pylist() != unit.candidate_ids():
        return None
    return table, found


def has_sha256(unit: Unit, pool: Path, sha256: str) -> bool:
    """Whether a unit's file is there with these bytes. Raises RunDirectoryError as `read_unit`."""
    data = _read(unit.path(pool))
    return data is not None and hashlib.sha256(data).hexdigest() == sha256


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:  # the file may be whole: not for us to do again
        raise RunDirectoryError(f"{path} cannot be read: {error}") from None


def plan_of(path: Path) -> str | None:
    """The plan that a unit's file names; None if it cannot be read."""
    try:
        metadata = pq.read_schema(pa.BufferReader(path.read_bytes())).metadata or {}
    except (pa.ArrowException, OSError):
        return None
    return metadata[_PLAN].decode(errors="replace") if _PLAN in metadata else None


def units_on_disk(pool: Path, size: int) -> Iterator[Unit]:
    """Units that have a file, by label and number. Raises RunDirectoryError for a strange name."""
    for path in _unit_files(pool):
        unit = _named(path, size)
        if unit is None:
            raise RunDirectoryError(f"{path} is not the name of a unit; remove it from the pool")
        yield unit


def strange_names(pool: Path) -> list[Path]:
    """Files that look like units and are not."""
    return [path for path in _unit_files(pool) if _named(path, 1) is None]


def like_a_unit(path: Path) -> bool:
    """Whether a file is looked at as a unit, or as a strange name of one."""
    is_named = path.name.startswith("unit-") and path.suffix == ".parquet"
    return is_named and path.parent.name.startswith("label=")


def _unit_files(pool: Path) -> Iterator[Path]:
    for folder in children(pool):
        if folder.name.startswith("label="):
            yield from (path for path in children(folder) if like_a_unit(path))


def _named(path: Path, size: int) -> Unit | None:
    label, number = path.parent.name.removeprefix("label="), path.stem.removeprefix("unit-")
    if not (f"{label}{number}".isascii() and label.isdecimal() and number.isdecimal()):
        return None
    unit = Unit(int(label), int(number), size)
    return unit if unit.path(path.parent.parent) == path else None
