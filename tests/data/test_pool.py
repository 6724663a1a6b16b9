"""Units and pool: a file under a unit's name is whole, and damage is found."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sentisynth.config.load import load_config
from sentisynth.config.types import RunConfig
from sentisynth.data.pool import PoolReader, check_pool, prepare_pool, publish, read_manifest
from sentisynth.data.units import Unit, nth_unit, read_unit, write_unit
from tests.data.test_select import unit as scored

SIZE = 20


@pytest.fixture
def config() -> RunConfig:
    overrides = [f"synthesis.unit_size={SIZE}", "synthesis.n_per_class=30", "synthesis.tau=0.5"]
    return load_config("quickstart", [*overrides, "synthesis.screens.near_duplicates=1"])


def fill(pool: Path, label: int, numbers: range) -> None:
    for number in numbers:
        logits = np.zeros((SIZE, 2))
        logits[:, label] = 4.0
        write_unit(scored(label, number, logits), Unit(label, number, SIZE), pool, "plan")


@pytest.fixture
def finished(tmp_path: Path, config: RunConfig) -> Path:
    """A pool of two units a class under a manifest."""
    for label in (0, 1):
        fill(tmp_path, label, range(2))
    reader = PoolReader(tmp_path, config, "plan")
    for unit in prepare_pool(tmp_path, config, "plan"):
        reader.offer(unit)
    publish(tmp_path, reader, config, "plan")
    return tmp_path


def test_labels_take_turns_in_the_plan() -> None:
    units = [nth_unit(n, 3, SIZE) for n in range(7)]
    assert [(u.label, u.number) for u in units] == [
        *((0, 0), (1, 0), (2, 0)),
        *((0, 1), (1, 1), (2, 1)),
        (0, 2),
    ]
    assert units[3].candidate_ids()[0] == f"0-{SIZE}"


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    fill(tmp_path / "a", 0, range(1))
    fill(tmp_path / "b", 0, range(1))
    name = Unit(0, 0, SIZE).path(Path()).as_posix()
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_unit_of_another_plan_or_name_is_not_taken(tmp_path: Path) -> None:
    fill(tmp_path, 0, range(1))
    unit = Unit(0, 0, SIZE)
    assert read_unit(unit, tmp_path, "plan") is not None
    assert read_unit(unit, tmp_path, "another") is None
    unit.path(tmp_path).rename(Unit(0, 1, SIZE).path(tmp_path))
    assert read_unit(Unit(0, 1, SIZE), tmp_path, "plan") is None


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_torn_unit_is_removed_and_only_that_one(
    tmp_path: Path, config: RunConfig, keep: float
) -> None:
    fill(tmp_path, 0, range(3))
    torn = Unit(0, 1, SIZE).path(tmp_path)
    torn.write_bytes(torn.read_bytes()[: int(keep * torn.stat().st_size)])
    leftover = torn.with_name(".unit-000009.parquet.1.tmp")
    leftover.write_bytes(b"half")
    assert prepare_pool(tmp_path, config, "plan") == {Unit(0, 0, SIZE), Unit(0, 2, SIZE)}
    assert not torn.exists() and not leftover.exists()


def test_a_flipped_bit_in_the_data_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path, 0, range(1))
    path = Unit(0, 0, SIZE).path(tmp_path)
    data = bytearray(path.read_bytes())
    data[60] ^= 1  # inside the first column's page
    path.write_bytes(data)
    assert read_unit(Unit(0, 0, SIZE), tmp_path, "plan") is None


def test_units_count_in_index_order_whatever_order_they_finish_in(
    tmp_path: Path, config: RunConfig
) -> None:
    fill(tmp_path, 0, range(4))
    reader = PoolReader(tmp_path, config, "plan")
    reader.offer(Unit(0, 1, SIZE))
    reader.offer(Unit(0, 3, SIZE))
    assert reader.tallies[0].ledger.accepted == 0
    reader.offer(Unit(0, 0, SIZE))
    assert reader.tallies[0].ledger.accepted == 40  # 0 and 1; the quota of 30 is there
    assert reader.is_full(0) and not reader.all_full
    assert reader.tallies[0].next_number == 2


def test_what_lies_beyond_the_quota_does_not_stay(tmp_path: Path, config: RunConfig) -> None:
    for label, n in ((0, 4), (1, 2)):
        fill(tmp_path, label, range(n))
    reader = PoolReader(tmp_path, config, "plan")
    for unit in prepare_pool(tmp_path, config, "plan"):
        reader.offer(unit)
    publish(tmp_path, reader, config, "plan")
    assert len(list(tmp_path.glob("label=0/*"))) == 2
    manifest = read_manifest(tmp_path)
    assert manifest is not None and manifest["rows"] == 80
    assert check_pool(tmp_path) == []


@pytest.mark.parametrize("seed", range(20))
def test_check_finds_any_flipped_bit(finished: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    files = sorted(finished.glob("label=*/*.parquet"))
    path = files[random.integers(len(files))]
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << random.integers(8)
    path.write_bytes(data)
    assert any(path.name in problem for problem in check_pool(finished))


def test_check_finds_missing_and_strange_files(finished: Path) -> None:
    Unit(0, 1, SIZE).path(finished).unlink()
    fill(finished, 1, range(2, 3))
    problems = check_pool(finished)
    assert any("unit-000001.parquet is missing" in p for p in problems)
    assert any("unit-000002.parquet is not in the manifest" in p for p in problems)


def test_check_finds_a_changed_manifest(finished: Path) -> None:
    path = finished / "manifest.json"
    path.write_text(path.read_text().replace('"accepted": 40', '"accepted": 41', 1))
    assert any("does not add up" in p for p in check_pool(finished))
    path.unlink()
    assert "not finished" in check_pool(finished)[0]


def test_a_units_file_is_plain_parquet(finished: Path) -> None:
    table = pq.read_table(Unit(0, 0, SIZE).path(finished), partitioning=None)
    assert table["label"].to_pylist() == [0] * SIZE
