"""What `check` says of a pool: of files that were altered, and of a manifest that is not true."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sentisynth.config.types import RunConfig
from sentisynth.data.files import json_text
from sentisynth.data.manifest import (
    MANIFEST,
    check_counts,
    check_pool,
    read_manifest,
)
from sentisynth.data.units import Unit
from sentisynth.errors import RunDirectoryError
from sentisynth.flows.check import check_run
from sentisynth.seeding import fingerprint
from tests.data.pools import (
    FIRST,
    SIZE,
    STRANGE,
    fill,
    flip,
    recovered,
)


@pytest.mark.parametrize("seed", range(20))
def test_check_finds_any_flipped_bit(finished: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    files = [*sorted(finished.glob("label=*/*.parquet")), finished / "manifest.json"]
    path = files[seed % len(files)]
    flip(path, random.integers(path.stat().st_size), random.integers(8))
    (problem,) = check_pool(finished)
    told = "is damaged" if path.suffix == ".json" else "was altered: its sha256 is not the man"
    assert problem.startswith(f"{path} {told}")


def swapped(pool: Path) -> set[str]:
    one, two = FIRST.path(pool), Unit(0, 1, SIZE).path(pool)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    return {f"{one} was altered", f"{two} was altered"}


def deleted(pool: Path) -> set[str]:
    FIRST.path(pool).unlink()
    return {f"{FIRST.path(pool)} is missing"}


def cut_short(pool: Path) -> set[str]:
    path = Unit(1, 1, SIZE).path(pool)
    path.write_bytes(path.read_bytes()[:-1])
    return {f"{path} was altered"}


def a_file_too_many(pool: Path) -> set[str]:
    fill(pool, 1, range(2, 3))
    return {f"{Unit(1, 2, SIZE).path(pool)} is not in the manifest"}


def a_label_too_many(pool: Path) -> set[str]:
    fill(pool, 2, range(1))
    return {f"{Unit(2, 0, SIZE).path(pool)} is not in the manifest"}


def a_file_elsewhere(pool: Path) -> set[str]:
    path = pool / FIRST.path(pool).name
    path.write_bytes(FIRST.path(pool).read_bytes())
    return {f"{path} does not belong"}


DAMAGES = [swapped, deleted, cut_short, a_file_too_many, a_label_too_many, a_file_elsewhere]


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_finds_files_that_are_not_the_manifests(
    finished: Path, damage: Callable[[Path], set[str]]
) -> None:
    told = damage(finished)
    problems = check_pool(finished)
    assert len(problems) == len(told)
    assert all(any(problem.startswith(start) for problem in problems) for start in told)


def test_check_finds_missing_and_strange_files_at_once(finished: Path) -> None:
    (missing,), (strange,) = deleted(finished), a_file_too_many(finished)
    assert check_pool(finished) == [missing, strange]


@pytest.mark.parametrize("name", STRANGE)
def test_check_finds_a_name_that_no_unit_has(finished: Path, name: str) -> None:
    """Be it another way to write the number of a unit that is there."""
    path = finished / "label=0" / name
    path.write_bytes(b"too many")
    assert check_pool(finished) == [f"{path} is not the name of a unit"]
    FIRST.path(finished).unlink()
    assert len(check_pool(finished)) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"accepted": 40', '"accepted": 41'),
        ('"tau": 0.5', '"tau": 0.4'),
        ('"n_per_class": 30', '"n_per_class": 31'),
        ('"plan": "plan"', '"plan": "plam"'),
        ("\n  ", "\n   "),
        ("}\n", "}\n\n"),
        ("}\n", "}"),
        ('"rows": 80,', '"rows":  80,'),
        ('"rows": 80,', '"rows": 80.0,'),
        ('"rows": 80,', '"rows": 80,\n  "more": 0,'),
        ('  "rows": 80,\n', ""),
        ("label=0/unit-000000", "label=0/unit-000009"),
    ],
)
def test_check_finds_a_changed_manifest(finished: Path, old: str, new: str) -> None:
    path = finished / "manifest.json"
    text = path.read_text()
    assert old in text
    before, after = text.rsplit(old, 1)
    path.write_text(before + new + after)
    assert check_pool(finished) == [
        f"{path} is damaged; run the same command again to write it anew"
    ]
    path.unlink()
    assert "not finished" in check_pool(finished)[0]


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"rows": 81}, "the ledger counts 80 candidates, the files 81"), ({}, "does not add up")],
)
def test_check_finds_a_ledger_that_does_not_add_up(
    finished: Path, changed: dict[str, int], told: str
) -> None:
    """Whoever wrote the manifest, and with whatever checksum."""
    path = finished / "manifest.json"
    manifest = json.loads(path.read_text()) | changed
    if not changed:
        manifest["ledger"]["negative"]["accepted"] += 1
    manifest["sha256"] = fingerprint({k: v for k, v in manifest.items() if k != "sha256"})
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    (problem,) = check_pool(finished)
    assert told in problem


def rewritten(pool: Path, **changes: Any) -> None:
    """A manifest with other values, and the sha256 that goes with them."""
    manifest = {**json.loads((pool / MANIFEST).read_text()), **changes}
    manifest["sha256"] = fingerprint({k: v for k, v in manifest.items() if k != "sha256"})
    (pool / MANIFEST).write_text(json_text(manifest))
    assert read_manifest(pool) == manifest and check_pool(pool) == []


def counts(pool: Path, config: RunConfig) -> list[str]:
    return check_counts(pool, config.data.labels, config.synthesis.screens.near_duplicates)


def test_what_a_killed_driver_left_goes_with_the_next_command(
    finished: Path, config: RunConfig
) -> None:
    names = {path.name for path in finished.iterdir()}
    for left in (".manifest.json.0a1b2c3d.tmp", ".seen-0a1b2c3d"):
        (finished / left).write_text("half")
    manifest = read_manifest(finished)
    assert manifest is not None
    (finished / "asked.json").write_text(json_text(manifest["asked"]))
    assert len(check_pool(finished)) == 2
    reader = recovered(finished, config)
    assert reader.is_published
    reader.tidy()
    assert check_pool(finished) == [] and {path.name for path in finished.iterdir()} == names


def test_the_ledger_of_a_pool_is_that_of_its_units(finished: Path, config: RunConfig) -> None:
    assert counts(finished, config) == []
    ledger = json.loads((finished / MANIFEST).read_text())["ledger"]
    entry = ledger["negative"]
    moved = {**entry, "accepted": 0, "below_tau": entry["below_tau"] + entry["accepted"]}
    rewritten(finished, ledger={**ledger, "negative": moved})
    (told,) = counts(finished, config)
    assert "the ledger of class negative says" in told


def test_units_of_another_plan_than_the_manifests_are_told(
    finished: Path, config: RunConfig
) -> None:
    rewritten(finished, plan="0" * 64)
    assert "unit-000000.parquet is missing or damaged" in counts(finished, config)[0]


def test_a_hole_is_told(finished: Path, config: RunConfig) -> None:
    files = json.loads((finished / MANIFEST).read_text())["files"]
    (receipt,) = fill(finished, 0, range(2, 3))
    gone = Unit(0, 1, receipt.unit.size)
    gone.path(finished).unlink()
    del files[gone.name]
    rewritten(finished, files={**files, receipt.unit.name: receipt.sha256})
    assert "leaves out label=0/unit-000001.parquet" in counts(finished, config)[0]


def test_a_quota_that_was_not_kept_is_told(finished: Path, config: RunConfig) -> None:
    rewritten(finished, n_per_class=1000)
    assert [told.split(" has ")[0] for told in counts(finished, config)] == [
        "class negative",
        "class positive",
    ]


def test_a_unit_that_comes_after_the_manifest_goes_with_the_next_command(
    finished: Path, config: RunConfig
) -> None:
    fill(finished, 0, range(2, 3))
    assert "is not in the manifest" in check_pool(finished)[0]
    reader = recovered(finished, config)
    assert not reader.is_published
    reader.publish()
    assert not Unit(0, 2, reader._config.synthesis.unit_size).path(finished).exists()
    assert check_pool(finished) == [] and recovered(finished, config).is_published


def test_a_store_that_does_not_answer_is_a_sentence() -> None:
    class Store:
        def __str__(self) -> str:
            return "s3://bucket/run"

        def is_dir(self) -> bool:
            raise EOFError("unable to locate credentials")

    store: Any = Store()
    with pytest.raises(RunDirectoryError, match="s3://bucket/run cannot be used: unable to locate"):
        check_run(store)
