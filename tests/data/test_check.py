"""What `check` says of a pool whose files are whole, and whose manifest is not true."""

import json
from pathlib import Path
from typing import Any

from sentisynth.config.types import RunConfig
from sentisynth.data.files import json_text
from sentisynth.data.manifest import MANIFEST, check_counts, check_pool, read_manifest
from sentisynth.data.units import Unit
from sentisynth.seeding import fingerprint
from tests.data.pools import fill, recovered


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
