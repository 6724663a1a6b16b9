"""A pool at work: what is counted, what is kept, what ends it."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data import pool as pool_module
from sentisynth.data.manifest import check_pool, read_manifest, read_receipts
from sentisynth.data.pool import PoolReader
from sentisynth.data.receipts import Receipt
from sentisynth.data.units import Unit, write_unit
from sentisynth.errors import ModelError, RunDirectoryError
from tests.data.pools import (
    FIRST,
    SIZE,
    STRANGE,
    configured,
    fill,
    flip,
    flip_unnoticed,
    n_units,
    published,
    recovered,
    rows,
)


@pytest.mark.parametrize("order", list(permutations(range(4)))[::5])
def test_units_count_in_index_order_whatever_order_they_finish_in(
    tmp_path: Path, config: RunConfig, order: tuple[int, ...]
) -> None:
    receipts = fill(tmp_path, 0, range(4))
    reader = PoolReader(tmp_path, config, "plan")
    done: set[int] = set()
    for number in order:
        reader.offer(receipts[number])
        done.add(number)
        prefix = next(i for i in range(5) if i not in done)
        assert reader.tallies[0].next_number == min(prefix, 2)  # the quota of 30 is there
    assert reader.tallies[0].ledger.accepted == 40
    assert reader.is_full(0) and not reader.all_full


def test_the_order_of_finishing_leaves_no_trace_in_the_manifest(
    tmp_path: Path, config: RunConfig
) -> None:
    written = []
    for seed in range(3):
        pool = tmp_path / str(seed)
        receipts = [receipt for label in (0, 1) for receipt in fill(pool, label, range(3))]
        reader = PoolReader(pool, config, "plan")
        for i in np.random.default_rng(seed).permutation(len(receipts)):
            reader.offer(receipts[i])
        reader.publish()
        written.append((pool / "manifest.json").read_bytes())
    assert written[0] == written[1] == written[2]


def test_receipts_that_wait_too_long_are_read_again_from_their_files(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_RECEIPTS_HELD", 1)
    receipts = fill(tmp_path, 0, range(4))
    reader = PoolReader(tmp_path, configured("synthesis.n_per_class=80"), "plan")
    for receipt in reversed(receipts):
        reader.offer(receipt)
    assert reader.is_full(0) and set(reader.digests.values()) == {r.sha256 for r in receipts}
    reader = PoolReader(tmp_path, config, "plan")
    Unit(0, 1, SIZE).path(tmp_path).unlink()
    reader.offer(receipts[2])
    reader.offer(receipts[1])
    with pytest.raises(RunDirectoryError, match="changed while the run went on"):
        reader.offer(receipts[0])


def test_what_lies_beyond_the_quota_does_not_stay(tmp_path: Path, config: RunConfig) -> None:
    for label, n in ((0, 4), (1, 2)):
        fill(tmp_path, label, range(n))
    published(tmp_path, config)
    assert len(list(tmp_path.glob("label=0/*"))) == 2
    manifest = read_manifest(tmp_path)
    assert manifest is not None and manifest["rows"] == 80
    assert check_pool(tmp_path) == []


def test_what_lies_beyond_the_quota_stays_where_more_was_once_asked_for(
    tmp_path: Path, config: RunConfig
) -> None:
    for label in (0, 1):
        fill(tmp_path, label, range(4))
    assert not recovered(tmp_path, configured("synthesis.n_per_class=100")).all_full
    published(tmp_path, config)
    assert n_units(tmp_path) == 8 and check_pool(tmp_path) == []
    manifest = read_manifest(tmp_path)
    assert manifest is not None and len(manifest["files"]) == 4
    flip(Unit(0, 3, SIZE).path(tmp_path), 60)
    (problem,) = check_pool(tmp_path)
    assert "label=0/unit-000003.parquet, which the manifest does not need, is dam" in problem


def test_what_lies_beyond_the_quota_stays_where_a_higher_tau_was_asked_for(
    tmp_path: Path, config: RunConfig
) -> None:
    for label in (0, 1):
        fill(tmp_path, label, range(3))
    assert not recovered(tmp_path, configured("synthesis.tau=1")).all_full
    published(tmp_path, config)
    assert n_units(tmp_path) == 6 and check_pool(tmp_path) == []


def test_what_was_asked_is_kept_while_the_pool_is_at_work_and_then_in_the_manifest(
    tmp_path: Path, config: RunConfig
) -> None:
    fill(tmp_path, 0, range(1))
    asked = tmp_path / "asked.json"
    recovered(tmp_path, config)
    assert json.loads(asked.read_text()) == {"n_per_class": 30, "tau": 0.5}
    asked.write_text("torn")
    fill(tmp_path, 0, range(2))
    fill(tmp_path, 1, range(2))
    reader = recovered(tmp_path, config)
    assert reader.publish()["asked"] == {"n_per_class": 30, "tau": 0.5}
    assert not asked.exists()


def test_what_was_asked_stays_known_when_a_manifest_is_taken_back(tmp_path: Path) -> None:
    for label in (0, 1):
        fill(tmp_path, label, range(4))
    published(tmp_path, configured("synthesis.n_per_class=70"))
    FIRST.path(tmp_path).unlink()
    reader = recovered(tmp_path, configured())
    reader.withdraw()  # and then the command is killed
    assert not (tmp_path / "manifest.json").exists()
    fill(tmp_path, 0, range(1))
    published(tmp_path, configured())
    assert n_units(tmp_path) == 8


@pytest.mark.parametrize(
    "note",
    [
        "",
        "torn",
        "[]",
        '{"n_per_class": 30}',
        '{"n_per_class": 30, "tau": 1, "more": 0}',
        '{\n  "n_per_class": null,\n  "tau": 1\n}\n',
        '{"n_per_class": "many", "tau": 1}',
    ],
)
def test_a_note_of_what_was_asked_that_cannot_be_read_is_ignored(
    finished: Path, config: RunConfig, note: str
) -> None:
    wanted = (finished / "manifest.json").read_bytes()
    (finished / "asked.json").write_text(note)
    assert check_pool(finished) == []
    assert recovered(finished, config).is_published
    assert published(finished, config) == wanted
    assert not (finished / "asked.json").exists()


@pytest.mark.parametrize(
    "note", ['{"n_per_class": null, "tau": 1}', '{"n_per_class": "many", "tau": 1}']
)
def test_a_note_with_other_types_is_written_anew_while_the_pool_is_at_work(
    tmp_path: Path, config: RunConfig, note: str
) -> None:
    fill(tmp_path, 0, range(1))
    (tmp_path / "asked.json").write_text(note)
    recovered(tmp_path, config)
    assert json.loads((tmp_path / "asked.json").read_text()) == {"n_per_class": 30, "tau": 0.5}


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"[]\n", None, b'{\n  "plan": "plan"\n}\n'], ids=repr
)
def test_a_damaged_manifest_is_written_anew_as_it_was(
    finished: Path, config: RunConfig, damage: bytes | None
) -> None:
    path = finished / "manifest.json"
    wanted = path.read_bytes()
    path.write_bytes(wanted.replace(b'"rows": 80', b'"rows": 81') if damage is None else damage)
    assert not recovered(finished, config).is_published
    assert published(finished, config) == wanted
    assert recovered(finished, config).is_published and check_pool(finished) == []


def test_a_larger_quota_extends_the_pool(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.glob("label=*/*")}
    more = configured("synthesis.n_per_class=70")
    reader = recovered(finished, more)
    assert not reader.is_published and not reader.all_full and reader.exhausted() is None
    assert reader.horizons() == [4, 4]  # 30 are missing, nearly all are accepted
    for label in (0, 1):
        for receipt in fill(finished, label, range(2, 4)):
            reader.offer(receipt)
    assert reader.all_full and not reader.is_published
    assert reader.publish()["rows"] == 160
    assert {path: path.read_bytes() for path in before} == before
    assert check_pool(finished) == [] and recovered(finished, more).is_published


def test_a_smaller_quota_keeps_what_the_manifest_holds(finished: Path, config: RunConfig) -> None:
    wanted = (finished / "manifest.json").read_bytes()
    for fewer in (configured("synthesis.n_per_class=5"), configured("synthesis.tau=0.1"), config):
        reader = recovered(finished, fewer)
        assert reader.is_published and reader.all_full and reader.horizons() == [2, 2]
        assert n_units(finished) == 4 and check_pool(finished) == []
        assert (finished / "manifest.json").read_bytes() == wanted


def test_a_pool_that_is_as_its_manifest_says_is_not_counted(
    finished: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are compared; of ten million candidates, texts would take minutes more."""
    counted: list[object] = []
    of = Receipt.of
    monkeypatch.setattr(Receipt, "of", lambda *args: counted.append(args) or of(*args))
    assert recovered(finished, config).is_published and not counted
    assert recovered(finished, configured("synthesis.tau=0.1")).is_published and len(counted) == 4
    flip(Unit(0, 1, SIZE).path(finished), 60)
    reader = recovered(finished, config)
    assert reader.n_damaged == 1 and not reader.is_published and not reader.all_full


def test_units_of_another_plan_are_refused_and_kept(finished: Path, config: RunConfig) -> None:
    reader = PoolReader(finished, config, "another")
    with pytest.raises(RunDirectoryError, match="made under other settings"):
        reader.recover()
    assert n_units(finished) == 4 and not reader.is_published


def test_a_quota_out_of_reach_is_told_once_all_candidates_are_counted(tmp_path: Path) -> None:
    few = ["synthesis.n_per_class=30", "synthesis.max_candidates_per_class=41"]
    reader = PoolReader(tmp_path, configured("synthesis.tau=1", *few), "plan")
    assert reader.horizons() == [3, 3] and reader.exhausted() is None
    for receipt in fill(tmp_path, 1, range(3)):
        assert reader.exhausted() is None
        reader.offer(receipt)
    assert reader.exhausted() == 1 and reader.horizons() == [3, 3]


def test_a_smaller_maximum_than_was_made_is_no_quota_out_of_reach(tmp_path: Path) -> None:
    for label in (0, 1):
        fill(tmp_path, label, range(10))
    published(tmp_path, configured("synthesis.n_per_class=200"))
    for number in (5, 8):
        Unit(0, number, SIZE).path(tmp_path).unlink()
    reader = recovered(tmp_path, configured("synthesis.max_candidates_per_class=60"))
    assert reader.tallies[0].ledger.accepted == 100
    assert reader.horizons() == [10, 10] and reader.exhausted() is None


def test_horizons_follow_what_is_missing_and_what_is_accepted(tmp_path: Path) -> None:
    reader = PoolReader(tmp_path, configured("synthesis.n_per_class=1000"), "plan")
    first = reader.horizons()[0]
    assert first * SIZE >= 2000  # half of them, as long as nothing is known
    receipts = fill(tmp_path, 0, range(50))
    for receipt in receipts[:49]:
        reader.offer(receipt)
    assert reader.horizons() == [51, first]
    reader.offer(receipts[49])
    assert reader.horizons()[0] == 50 and reader.is_full(0)


def test_receipts_are_read_in_index_order_up_to_the_first_damage(finished: Path) -> None:
    manifest = read_manifest(finished)
    assert manifest is not None
    found = [receipt.unit.number for _, receipt in read_receipts(finished, manifest, 1, 1.0)]
    assert found == [0, 1]
    flip_unnoticed(Unit(1, 1, SIZE), finished)
    units = read_receipts(finished, manifest, 1, 1.0)
    assert next(units)[1].unit == Unit(1, 0, SIZE)
    with pytest.raises(RunDirectoryError, match=r"unit-000001.parquet is missing or damaged"):
        next(units)


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_that_no_unit_has_is_told_and_the_file_kept(
    tmp_path: Path, config: RunConfig, name: str
) -> None:
    fill(tmp_path, 0, range(1))
    path = tmp_path / "label=0" / name
    FIRST.path(tmp_path).rename(path)
    with pytest.raises(RunDirectoryError, match=f"{name} is not the name of a unit; remove it"):
        recovered(tmp_path, config)
    assert path.is_file()


def unscored(number: int, n_non_finite: int, n_untokenizable: int) -> Receipt:
    """Of a unit of class 0 in which the teacher failed on so many rows."""
    table, bad = rows(Unit(0, number, SIZE)).to_pylist(), [schema.NON_FINITE] * n_non_finite
    for row, reason in zip(table, bad + [schema.UNTOKENIZABLE] * n_untokenizable, strict=False):
        row |= {schema.REJECT_REASON: reason, schema.TEACHER_LOGITS: None}
    return Receipt.of(pa.Table.from_pylist(table, schema.POOL), Unit(0, number, SIZE), "", 1.0)


def test_a_few_rows_that_could_not_be_scored_are_counted_one_more_ends_the_run(
    tmp_path: Path,
) -> None:
    reader = PoolReader(tmp_path, configured("synthesis.n_per_class=500"), "plan")
    reader.offer(unscored(0, 6, 0))
    reader.offer(unscored(1, 0, 4))  # 1 % of the first thousand
    assert reader.tallies[0].ledger.as_dict()["screened"] == {"non_finite": 6, "untokenizable": 4}
    told = (
        r"could not score 11 of 60 candidates of class negative \(untokenizable 5, non_finite 6\), "
        r"more than synthesis.max_quarantined=0.01 allows"
    )
    with pytest.raises(ModelError, match=told):
        reader.offer(unscored(2, 0, 1))


def test_of_many_candidates_the_bound_is_a_share(tmp_path: Path) -> None:
    many = configured("synthesis.n_per_class=5000", "synthesis.max_quarantined=0.05")
    reader = PoolReader(tmp_path, many, "plan")
    for number in range(100):
        reader.offer(unscored(number, 1, 0))  # 5 %
    assert reader.tallies[0].ledger.counts[schema.NON_FINITE] == 100
    with pytest.raises(ModelError, match=r"could not score 102 of 2020 .* \(non_finite 102\)"):
        reader.offer(unscored(100, 2, 0))


def test_what_was_quarantined_ends_the_next_command_too_unless_more_is_allowed(
    tmp_path: Path,
) -> None:
    table = pa.Table.from_pylist(
        [
            row | {schema.REJECT_REASON: schema.NON_FINITE, schema.TEACHER_LOGITS: None}
            for row in rows(FIRST).to_pylist()
        ],
        schema.POOL,
    )
    write_unit(table, FIRST, tmp_path, "plan")
    with pytest.raises(ModelError, match=r"could not score 20 of 20"):
        recovered(tmp_path, configured())
    assert n_units(tmp_path) == 1
    reader = recovered(tmp_path, configured("synthesis.max_quarantined=0.02"))
    assert reader.tallies[0].ledger.counts == {schema.NON_FINITE: 20}


def test_what_a_killed_writer_left_is_gone_when_the_pool_is_published(
    tmp_path: Path, config: RunConfig
) -> None:
    for label in (0, 1):
        fill(tmp_path, label, range(2))
    reader = recovered(tmp_path, config)
    leftover = tmp_path / "label=0" / ".unit-000001.parquet.12ab34cd.tmp"
    leftover.write_bytes(b"half")
    reader.publish()
    assert not leftover.exists() and check_pool(tmp_path) == []
