"""Units: what lies under a unit's name is whole, and damage is noticed."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sentisynth.data.units import Unit, read_unit
from sentisynth.errors import RunDirectoryError
from tests.data.pools import (
    FIRST,
    SIZE,
    fill,
    flip,
)


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    (a,), (b,) = fill(tmp_path / "a", 0, range(1)), fill(tmp_path / "b", 0, range(1))
    name = FIRST.path(Path())
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert a.sha256 == b.sha256


def test_a_unit_is_named_by_its_candidates() -> None:
    unit = Unit(1, 3, SIZE)
    assert unit.candidate_ids()[0] == f"1-{3 * SIZE}" and len(unit.candidate_ids()) == SIZE
    assert unit.path(Path()).as_posix() == "label=1/unit-000003.parquet"


def test_a_unit_of_another_plan_or_name_is_not_taken(tmp_path: Path) -> None:
    (receipt,) = fill(tmp_path, 0, range(1))
    found = read_unit(FIRST, tmp_path, "plan")
    assert found is not None and found[1] == receipt.sha256
    assert read_unit(FIRST, tmp_path, "another") is None
    assert read_unit(FIRST, tmp_path, "plan", "0" * 64) is None
    assert read_unit(Unit(0, 0, SIZE + 1), tmp_path, "plan") is None
    FIRST.path(tmp_path).rename(Unit(0, 1, SIZE).path(tmp_path))
    assert read_unit(Unit(0, 1, SIZE), tmp_path, "plan") is None
    assert read_unit(FIRST, tmp_path, "plan") is None


def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(tmp_path: Path) -> None:
    FIRST.path(tmp_path).mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match=r"unit-000000.parquet cannot be read"):
        read_unit(FIRST, tmp_path, "plan")


def test_a_flipped_bit_in_the_data_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path, 0, range(1))
    flip(FIRST.path(tmp_path), 60)  # inside the first column's page
    assert read_unit(FIRST, tmp_path, "plan") is None


def test_a_units_file_is_plain_parquet(finished: Path) -> None:
    table = pq.read_table(FIRST.path(finished), partitioning=None)
    assert table["label"].to_pylist() == [0] * SIZE
