import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from sentisynth import schema
from sentisynth.data.journal import DIRECTORY, Journal
from sentisynth.data.receipts import Receipt
from sentisynth.data.units import Unit
from tests.data.test_ledger import Row, pool_rows
from tests.data.test_receipts import same


def receipt(number: int, label: int = 1) -> Receipt:
    """Of a unit of three rows, of which the teacher scored two."""
    rows: list[Row] = [
        (f"the first text of unit {number} of {label}", None, [0.0, 0.1 * number]),
        ("short", schema.TOO_SHORT, None),
        (f"another text of unit {number} of {label}", None, [3.0, 0.0]),
    ]
    return Receipt.of(pool_rows(rows, label), Unit(label, number, 3), f"{number:064x}", 0.8)


def segments(pool: Path) -> list[Path]:
    return sorted((pool / DIRECTORY).iterdir())


def flushed(pool: Path, *receipts: Receipt, plan: str = "plan") -> None:
    journal = Journal(pool, plan)
    for each in receipts:
        journal.add(each)
    journal.flush()


def known(pool: Path, *receipts: Receipt, plan: str = "plan") -> list[bool]:
    """Which receipts a new journal has; one that it has is the one that was added."""
    found = [Journal(pool, plan).get(each.unit) for each in receipts]
    assert all(f is None or same(f, r) for f, r in zip(found, receipts, strict=True))
    return [f is not None for f in found]


def test_what_was_flushed_is_read_again(tmp_path: Path) -> None:
    flushed(tmp_path, receipt(0), receipt(5), receipt(0, label=0))
    flushed(tmp_path, receipt(7))
    assert len(segments(tmp_path)) == 2
    wanted = [receipt(0), receipt(5), receipt(0, label=0), receipt(7), receipt(1)]
    assert known(tmp_path, *wanted) == [True, True, True, True, False]


def test_a_segment_begins_with_the_sha256_of_the_rest(tmp_path: Path) -> None:
    flushed(tmp_path, receipt(0), receipt(1))
    (segment,) = segments(tmp_path)
    data = segment.read_bytes()
    assert segment.name == "000000.receipts"
    assert data[:32] == hashlib.sha256(data[32:]).digest()


def test_receipts_with_and_without_screened_rows_share_a_segment(tmp_path: Path) -> None:
    rows = pool_rows([("a b", None, [0.0, 1.0])])
    all_scored = Receipt.of(rows, Unit(1, 0, 1), "ab" * 32, 0.8)
    flushed(tmp_path, all_scored, receipt(1))
    assert len(segments(tmp_path)) == 1
    assert known(tmp_path, all_scored, receipt(1)) == [True, True]


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    flushed(tmp_path)
    assert not (tmp_path / DIRECTORY).exists()


def test_many_receipts_are_on_disk_without_a_flush(tmp_path: Path) -> None:
    journal, one = Journal(tmp_path, "plan"), receipt(0)
    receipts = [replace(one, unit=Unit(1, number, 3)) for number in range(300)]
    for each in receipts:
        journal.add(each)
    assert known(tmp_path, *receipts).count(True) >= 256


def test_the_last_receipt_of_a_unit_counts(tmp_path: Path) -> None:
    first, second = receipt(0), receipt(1)
    again = replace(second, unit=first.unit)
    flushed(tmp_path, first)
    flushed(tmp_path, again)
    assert known(tmp_path, again) == [True]


@pytest.mark.parametrize("keep", [0, 1, 8, 32, 0.3, 0.9, -1])
def test_a_torn_segment_is_ignored_and_the_others_are_not(tmp_path: Path, keep: float) -> None:
    flushed(tmp_path, receipt(0))
    flushed(tmp_path, receipt(1))
    torn = segments(tmp_path)[0]
    data = torn.read_bytes()
    torn.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    assert known(tmp_path, receipt(0), receipt(1)) == [False, True]
    flushed(tmp_path, receipt(0))  # beside the torn one
    assert known(tmp_path, receipt(0), receipt(1)) == [True, True]


def test_a_segment_with_any_flipped_bit_is_ignored(tmp_path: Path) -> None:
    """Of the sha256, of the receipts, of the figures that Arrow keeps around them."""
    flushed(tmp_path, receipt(0))
    (segment,) = segments(tmp_path)
    whole, unit = segment.read_bytes(), receipt(0).unit
    assert len(whole) > 1000
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        segment.write_bytes(damaged)
        assert Journal(tmp_path, "plan").get(unit) is None, at
    segment.write_bytes(whole)
    assert known(tmp_path, receipt(0)) == [True]


def test_a_segment_with_more_at_its_end_is_ignored(tmp_path: Path) -> None:
    flushed(tmp_path, receipt(0))
    (segment,) = segments(tmp_path)
    segment.write_bytes(segment.read_bytes() + b"\0")
    assert known(tmp_path, receipt(0)) == [False]


@pytest.mark.parametrize(
    "name", ["notes.receipts", "²00000.receipts", "-1.receipts", "000000.arrow"]
)
def test_a_file_that_is_no_segment_is_ignored(tmp_path: Path, name: str) -> None:
    flushed(tmp_path, receipt(0))
    (tmp_path / DIRECTORY / name).write_bytes(b"x")
    assert known(tmp_path, receipt(0)) == [True]
    flushed(tmp_path, receipt(1))
    assert known(tmp_path, receipt(0), receipt(1)) == [True, True]


def test_the_journal_of_another_plan_is_ignored(tmp_path: Path) -> None:
    flushed(tmp_path, receipt(0), plan="another")
    assert known(tmp_path, receipt(0)) == [False]
    flushed(tmp_path, receipt(0))
    assert known(tmp_path, receipt(0)) == known(tmp_path, receipt(0), plan="another") == [True]


def test_clear_removes_the_directory(tmp_path: Path) -> None:
    flushed(tmp_path, receipt(0))
    flushed(tmp_path, receipt(1), plan="another")
    (tmp_path / DIRECTORY / ".000009.receipts.0a0b0c0d.tmp").write_bytes(b"half")
    Journal(tmp_path, "plan").clear()
    assert not (tmp_path / DIRECTORY).exists()
    Journal(tmp_path, "plan").clear()
