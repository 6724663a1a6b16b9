"""The pool: verified units, and the manifest that is written when the quota is there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from sentisynth.config.types import RunConfig
from sentisynth.data.files import sha256_file, write_json
from sentisynth.data.ledger import Tally, adds_up
from sentisynth.data.units import Unit, read_unit, units_on_disk
from sentisynth.errors import RunDirectoryError
from sentisynth.seeding import fingerprint

MANIFEST = "manifest.json"
_KEYS = {"plan", "unit_size", "rows", "tau", "n_per_class", "ledger", "files", "sha256"}


class PoolReader:
    """Feeds finished units, in index order and label by label, to the tallies.

    A unit may be offered at any time; it is counted once all before it are. The pool of a run is
    the shortest prefix of each label that holds the quota, whatever else was finished.
    """

    def __init__(self, pool: Path, config: RunConfig, plan: str) -> None:
        self._pool, self._config, self._plan = pool, config, plan
        synthesis = config.synthesis
        labels = range(len(config.data.labels))
        self.tallies = [Tally(synthesis.tau, synthesis.screens.near_duplicates) for _ in labels]
        self._waiting: set[Unit] = set()

    def offer(self, unit: Unit) -> None:
        """Count a finished unit now, or as soon as those before it are there."""
        self._waiting.add(unit)
        tally = self.tallies[unit.label]
        while not self.is_full(unit.label):
            following = Unit(unit.label, tally.next_number, unit.size)
            if following not in self._waiting:
                return
            table = read_unit(following, self._pool, self._plan)
            if table is None:
                raise RunDirectoryError(
                    f"{following.path(self._pool)} changed while the run went on; "
                    f"run the same command again to make it anew"
                )
            self._waiting.discard(following)
            tally.add(table)

    def is_full(self, label: int) -> bool:
        """Whether the counted prefix of a label holds the quota."""
        return self.tallies[label].ledger.accepted >= self._config.synthesis.n_per_class

    @property
    def all_full(self) -> bool:
        """Whether every label has its quota."""
        return all(self.is_full(label) for label in range(len(self.tallies)))


def prepare_pool(pool: Path, config: RunConfig, plan: str) -> set[Unit]:
    """Units of this plan that are whole; files that are not are removed, to be made anew."""
    kept = set()
    for unit in list(units_on_disk(pool, config.synthesis.unit_size)):
        if read_unit(unit, pool, plan) is None:
            unit.path(pool).unlink()
        else:
            kept.add(unit)
    for leftover in pool.glob("label=*/.unit-*.tmp"):
        leftover.unlink()
    return kept


def publish(pool: Path, reader: PoolReader, config: RunConfig, plan: str) -> dict[str, Any]:
    """Remove what lies beyond the prefix that holds the quota, and write the manifest last."""
    size = config.synthesis.unit_size
    for unit in list(units_on_disk(pool, size)):
        if unit.number >= reader.tallies[unit.label].next_number:
            unit.path(pool).unlink()
    files = {
        unit.path(pool).relative_to(pool).as_posix(): sha256_file(unit.path(pool))
        for label, tally in enumerate(reader.tallies)
        for unit in (Unit(label, n, size) for n in range(tally.next_number))
    }
    manifest = {
        "plan": plan,
        "unit_size": size,
        "rows": size * len(files),
        "tau": config.synthesis.tau,
        "n_per_class": config.synthesis.n_per_class,
        "ledger": {
            name: reader.tallies[label].ledger.as_dict()
            for label, name in enumerate(config.data.labels)
        },
        "files": files,
    }
    manifest["sha256"] = fingerprint(manifest)
    write_json(pool / MANIFEST, manifest)
    return manifest


def read_manifest(pool: Path) -> dict[str, Any] | None:
    """manifest.json, or None where the pool is not finished. Raises RunDirectoryError."""
    path = pool / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        whole = set(manifest) == _KEYS
    except (ValueError, TypeError):
        whole = False
    if not whole:
        raise RunDirectoryError(f"{path} is damaged; remove it and run the command again")
    return manifest


def read_units(pool: Path, manifest: dict[str, Any], label: int) -> Iterator[pa.Table]:
    """The units of one label in index order. Raises RunDirectoryError at a damaged one."""
    size = manifest["unit_size"]
    numbers = [f for f in manifest["files"] if f.startswith(f"label={label}/")]
    for number in range(len(numbers)):
        unit = Unit(label, number, size)
        table = read_unit(unit, pool, manifest["plan"])
        if table is None:
            raise RunDirectoryError(
                f"{unit.path(pool)} is missing or damaged; run `sentisynth synthesize` again"
            )
        yield table


def check_pool(pool: Path) -> list[str]:
    """What is wrong with a finished pool, one sentence each; empty if nothing is."""
    manifest = read_manifest(pool)
    if manifest is None:
        return [f"{pool} has no {MANIFEST}: the pool is not finished"]
    problems = []
    files: dict[str, str] = manifest["files"]
    for name, digest in files.items():
        path = pool / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif sha256_file(path) != digest:
            problems.append(f"{path} was altered: its sha256 is not the manifest's")
    on_disk = {u.path(pool).relative_to(pool).as_posix() for u in units_on_disk(pool, 1)}
    problems += [f"{pool / name} is not in the manifest" for name in sorted(on_disk - set(files))]
    if fingerprint({k: v for k, v in manifest.items() if k != "sha256"}) != manifest["sha256"]:
        problems.append(f"{pool / MANIFEST} was altered: its own sha256 does not match")
    for name, entry in manifest["ledger"].items():
        if not adds_up(entry):
            problems.append(f"the ledger of class {name} does not add up: {entry}")
    generated = sum(entry["generated"] for entry in manifest["ledger"].values())
    if generated != manifest["rows"]:
        problems.append(f"the ledger counts {generated} candidates, the files {manifest['rows']}")
    return problems
