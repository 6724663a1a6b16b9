"""What a command finds that an earlier one left: verified, counted, or made anew."""

import time
from pathlib import Path

import pyarrow as pa
import pytest

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data import pool as pool_module
from sentisynth.data.journal import DIRECTORY
from sentisynth.data.pool import PoolReader
from sentisynth.data.receipts import Receipt
from sentisynth.data.units import Unit, write_unit
from sentisynth.errors import RunDirectoryError
from tests.data.pools import (
    FIRST,
    SIZE,
    configured,
    fill,
    flip,
    flip_unnoticed,
    n_units,
    published,
    recovered,
    rows,
)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_torn_unit_is_removed_and_only_that_one(
    tmp_path: Path, config: RunConfig, keep: float
) -> None:
    fill(tmp_path, 0, range(3))
    torn = Unit(0, 1, SIZE).path(tmp_path)
    torn.write_bytes(torn.read_bytes()[: int(keep * torn.stat().st_size)])
    leftover = torn.with_name(".unit-000009.parquet.1.tmp")
    leftover.write_bytes(b"half")
    reader = PoolReader(tmp_path, config, "plan")
    assert reader.recover() == {FIRST, Unit(0, 2, SIZE)}
    assert not torn.exists() and not leftover.exists() and n_units(tmp_path) == 2
    assert reader.tallies[0].next_number == 1 and not reader.is_published


def test_what_an_earlier_command_left_is_counted_once(tmp_path: Path, config: RunConfig) -> None:
    fill(tmp_path, 0, range(1))
    for _ in range(3):  # the second and the third time from the journal
        reader = PoolReader(tmp_path, config, "plan")
        assert reader.recover() == {FIRST}
        assert reader.tallies[0].ledger.accepted == SIZE
    assert len(list((tmp_path / DIRECTORY).iterdir())) == 1


def test_any_flipped_bit_of_a_unit_in_the_journal_is_noticed(
    tmp_path: Path, config: RunConfig
) -> None:
    fill(tmp_path, 0, range(3))
    recovered(tmp_path, config)
    flip_unnoticed(FIRST, tmp_path)
    flip(Unit(0, 1, SIZE).path(tmp_path), 60)
    assert PoolReader(tmp_path, config, "plan").recover() == {Unit(0, 2, SIZE)}
    assert n_units(tmp_path) == 1


def test_any_flipped_bit_of_a_unit_in_the_manifest_is_noticed(
    finished: Path, config: RunConfig
) -> None:
    wanted = (finished / "manifest.json").read_bytes()
    assert not (finished / DIRECTORY).exists()
    flip_unnoticed(Unit(0, 1, SIZE), finished)
    reader = PoolReader(finished, config, "plan")
    assert Unit(0, 1, SIZE) not in reader.recover() and n_units(finished) == 3
    assert not reader.all_full and reader.horizons() == [2, 2] and reader.exhausted() is None
    reader.offer(fill(finished, 0, range(1, 2))[0])
    assert reader.is_published
    reader.publish()
    assert (finished / "manifest.json").read_bytes() == wanted


def test_a_unit_in_the_journal_that_cannot_be_read_is_told_in_a_sentence(
    tmp_path: Path, config: RunConfig
) -> None:
    fill(tmp_path, 0, range(1))
    recovered(tmp_path, config)
    FIRST.path(tmp_path).unlink()
    FIRST.path(tmp_path).mkdir()
    with pytest.raises(RunDirectoryError, match=r"unit-000000.parquet cannot be read"):
        recovered(tmp_path, config)


def test_a_unit_that_was_made_anew_has_another_receipt_than_the_journal(
    tmp_path: Path, config: RunConfig
) -> None:
    """One is believed only where the file still has the sha256 that it names."""
    fill(tmp_path, 0, range(1))
    recovered(tmp_path, config)
    table = rows(FIRST).set_column(2, schema.POOL.field("text"), pa.array(["one text"] * SIZE))
    write_unit(table, FIRST, tmp_path, "plan")
    assert PoolReader(tmp_path, config, "plan").recover() == set()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there takes too long to count, and far more is wanted."""
    monkeypatch.setattr(pool_module, "_COUNTING_S", -1.0)
    monkeypatch.setattr(pool_module, "_NEARLY", -1.0)


@pytest.mark.parametrize("journal", [True, False])
def test_what_takes_long_to_count_is_counted_while_units_are_made(
    tmp_path: Path,
    config: RunConfig,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    journal: bool,
) -> None:
    pool, undisturbed, missing = tmp_path / "pool", tmp_path / "undisturbed", Unit(1, 1, SIZE)
    for label in (0, 1):
        fill(pool, label, range(3))
        fill(undisturbed, label, range(2))
    wanted = published(undisturbed, config)
    if journal:
        recovered(pool, config)
    missing.path(pool).unlink()
    request.getfixturevalue("slow")
    monkeypatch.setattr(pool_module, "_RECEIPTS_HELD", 0)
    reader = PoolReader(pool, config, "plan")
    assert len(reader.recover()) == 5
    assert [tally.next_number for tally in reader.tallies] == [0, 0]
    assert reader.is_behind and not reader.all_full and reader.exhausted() is None
    reader.count(-1)
    assert reader.is_behind
    monkeypatch.setattr(reader, "_read", lambda *_: pytest.fail("the journal has it"))
    reader.count(60)
    assert reader.tallies[1].next_number == 1 and not reader.is_behind
    monkeypatch.setattr(pool_module, "_RECEIPTS_HELD", 1)
    reader.offer(fill(pool, 1, range(1, 2))[0])
    assert reader.all_full and not reader.is_behind
    reader.publish()
    assert (pool / "manifest.json").read_bytes() == wanted


def test_the_seconds_of_a_resume_are_those_of_counting_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in (0, 1):
        fill(tmp_path, label, range(3))
    config = configured("synthesis.n_per_class=1000")
    recovered(tmp_path, config)
    monkeypatch.setattr(pool_module, "_COUNTING_S", 1.0)

    def slow(*_: object) -> bool:
        time.sleep(1.5)
        return True

    monkeypatch.setattr(pool_module, "has_sha256", slow)
    reader = recovered(tmp_path, config)
    assert not reader.is_behind and reader.n_found_counted == 6


def test_a_pool_that_lacks_little_is_counted_whole_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_COUNTING_S", -1.0)
    sizes = ["synthesis.max_candidates_per_class=100", "synthesis.n_per_class=100"]
    for label in (0, 1):
        fill(tmp_path, label, range(5))
    full = recovered(tmp_path, configured(*sizes))
    assert full.all_full and not full.is_behind
    hopeless = recovered(tmp_path, configured(*sizes, "synthesis.tau=1"))
    assert hopeless.exhausted() == 0


@pytest.mark.usefixtures("slow")
def test_a_label_is_not_given_up_before_its_units_are_counted(tmp_path: Path) -> None:
    """There may be more of them than this command may make."""
    for label in (0, 1):
        fill(tmp_path, label, range(6))
    reader = recovered(tmp_path, configured("synthesis.n_per_class=110"))
    reader._most = [2, 2]
    while reader.is_behind:
        assert reader.exhausted() is None
        reader._count(reader._next_to_count())
        reader.count(-1)
    assert reader.all_full


@pytest.mark.usefixtures("slow")
def test_a_unit_that_is_made_anew_while_others_wait_has_its_own_receipt(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_RECEIPTS_HELD", 0)
    for label in (0, 1):
        fill(tmp_path, label, range(2))
    recovered(tmp_path, config)
    FIRST.path(tmp_path).write_bytes(b"torn")
    reader = recovered(tmp_path, config)
    table = rows(FIRST).set_column(2, schema.POOL.field("text"), pa.array(["one text"] * SIZE))
    sha256 = write_unit(table, FIRST, tmp_path, "plan")
    receipt = Receipt.of(table, FIRST, sha256, 1.0)
    reader.journal.add(receipt)
    reader.offer(receipt)
    reader.count(60)
    assert reader.digests[FIRST] == sha256
