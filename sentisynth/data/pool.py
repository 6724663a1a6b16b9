"""The pool: verified units, and the manifest that is written when the quota is there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.files import json_text, sha256_file, write_json
from sentisynth.data.journal import Journal
from sentisynth.data.ledger import Tally, adds_up
from sentisynth.data.receipts import Receipt
from sentisynth.data.units import Unit, read_unit, units_on_disk
from sentisynth.errors import ModelError, RunDirectoryError
from sentisynth.seeding import fingerprint

MANIFEST = "manifest.json"
_ASKED = "asked.json"
_KEYS = {"plan", "unit_size", "rows", "tau", "n_per_class", "ledger", "files", "sha256"}
_RECEIPTS_HELD = 1024  # of units that finished before one in front of them
_FEW = 1000  # candidates; the bound on quarantined rows holds from there on


class PoolReader:
    """Feeds receipts, in index order and label by label, to the tallies.

    A unit may be offered at any time; it is counted once all before it are. The pool of a run is
    the shortest prefix of each label that holds the quota, whatever else was finished, and at
    least what an earlier manifest held.
    """

    def __init__(self, pool: Path, config: RunConfig, plan: str) -> None:
        self._pool, self._config, self._plan = pool, config, plan
        synthesis = config.synthesis
        self._near_duplicates = synthesis.screens.near_duplicates
        labels = range(len(config.data.labels))
        self.tallies = [Tally(synthesis.tau, self._near_duplicates) for _ in labels]
        self.digests: dict[Unit, str] = {}
        self.journal = Journal(pool, plan)
        self._waiting: dict[Unit, Receipt | None] = {}
        self.n_damaged = 0
        self._most = -(-synthesis.max_candidates_per_class // synthesis.unit_size)
        manifest = _manifest_or_none(pool)
        self._published = manifest if manifest is not None and manifest["plan"] == plan else None
        files = self._published["files"] if self._published else {}
        self._least = [sum(f.startswith(f"label={label}/") for f in files) for label in labels]

    def recover(self) -> set[Unit]:
        """Count what earlier runs finished and return it; damaged files are removed.

        A unit whose sha256 stands in the journal or the manifest is believed if it still has it;
        another one is read and checked.
        """
        _record_asked(self._pool, self._config)
        kept, self.n_damaged = set(), 0
        for unit in sorted(
            units_on_disk(self._pool, self._config.synthesis.unit_size),
            key=lambda unit: (unit.number, unit.label),
        ):
            receipt = self._trusted(unit)
            if receipt is None:
                unit.path(self._pool).unlink()
                self.n_damaged += 1
            else:
                kept.add(unit)
                self.offer(receipt)
        for leftover in self._pool.glob("label=*/.unit-*.tmp"):
            leftover.unlink()
        self.journal.flush()
        return kept

    def offer(self, receipt: Receipt) -> None:
        """Count a finished unit now, or as soon as those before it are there.

        Raises ModelError if too many of the label's rows could not be scored.
        """
        self._waiting[receipt.unit] = receipt if len(self._waiting) < _RECEIPTS_HELD else None
        label = receipt.unit.label
        tally = self.tallies[label]
        while not self.is_full(label):
            following = Unit(label, tally.next_number, receipt.unit.size)
            if following not in self._waiting:
                return
            found = self._waiting.pop(following) or self._trusted(following)
            if found is None:
                raise RunDirectoryError(
                    f"{following.path(self._pool)} changed while the run went on; "
                    f"run the same command again to make it anew"
                )
            tally.add(found)
            self.digests[following] = found.sha256
            self._check_quarantine(label)

    def is_full(self, label: int) -> bool:
        """Whether the counted prefix of a label holds the quota."""
        tally = self.tallies[label]
        enough = tally.ledger.accepted >= self._config.synthesis.n_per_class
        return enough and tally.next_number >= self._least[label]

    @property
    def all_full(self) -> bool:
        """Whether every label has its quota."""
        return all(self.is_full(label) for label in range(len(self.tallies)))

    def horizons(self) -> list[int]:
        """For each label, the number below which units may be made, given what was counted."""
        return [self._horizon(label) for label in range(len(self.tallies))]

    def exhausted(self) -> int | None:
        """A label that has not its quota after `max_candidates_per_class`, if there is one."""
        for label, tally in enumerate(self.tallies):
            if tally.next_number >= self._most and not self.is_full(label):
                return label
        return None

    def _horizon(self, label: int) -> int:
        """The missing rows by the acceptance rate so far, and one standard deviation of the
        binomial count more, so that one round of units is likely to do.
        """
        tally = self.tallies[label]
        missing = self._config.synthesis.n_per_class - tally.ledger.accepted
        rate = (tally.ledger.accepted + 1) / (tally.ledger.generated + 2)
        n_units = 0
        if missing > 0:
            candidates = (missing + (missing * (1 - rate)) ** 0.5) / rate
            n_units = int(candidates // self._config.synthesis.unit_size) + 1
        return max(min(tally.next_number + n_units, self._most), self._least[label])

    @property
    def is_published(self) -> bool:
        """Whether the manifest that is there says just what was counted."""
        manifest = self._published
        if manifest is None or not self.all_full:
            return False
        names = {_name(unit): digest for unit, digest in self.digests.items()}
        ledger = {
            name: self.tallies[label].ledger.as_dict()
            for label, name in enumerate(self._config.data.labels)
        }
        synthesis = self._config.synthesis
        return (
            manifest["files"] == names
            and manifest["n_per_class"] >= synthesis.n_per_class
            and (manifest["tau"] != synthesis.tau or manifest["ledger"] == ledger)
        )

    def _trusted(self, unit: Unit) -> Receipt | None:
        known = self.journal.get(unit)
        expected = known.sha256 if known else None
        if self._published:
            expected = self._published["files"].get(_name(unit), expected)
        if known is not None and known.sha256 == expected:
            return known if sha256_file(unit.path(self._pool)) == expected else None
        found = read_unit(unit, self._pool, self._plan, expected)
        if found is None:
            return None
        receipt = Receipt.of(found[0], unit, found[1], self._near_duplicates)
        self.journal.add(receipt)
        return receipt

    def _check_quarantine(self, label: int) -> None:
        counts, synthesis = self.tallies[label].ledger.counts, self._config.synthesis
        n, share = sum(counts[r] for r in schema.QUARANTINED), synthesis.max_quarantined
        if n > share * max(_FEW, counts.total()):
            told = ", ".join(f"{r} {counts[r]}" for r in schema.QUARANTINED if counts[r])
            raise ModelError(
                f"the teacher could not score {n} of {counts.total()} candidates of class "
                f"{self._config.data.labels[label]} ({told}), more than "
                f"synthesis.max_quarantined={share:g} allows; look at the texts with that "
                f"reject_reason in {self._pool}, and at the teacher; what was made is kept"
            )


def publish(pool: Path, reader: PoolReader, config: RunConfig, plan: str) -> dict[str, Any]:
    """Write the manifest last, and remove what lies beyond the prefix that holds the quota.

    What lies beyond stays if the pool was once asked for more: then it is not chance leftovers.
    """
    synthesis = config.synthesis
    if not _asked_more(pool, synthesis.n_per_class, synthesis.tau):
        for unit in list(units_on_disk(pool, synthesis.unit_size)):
            if unit.number >= reader.tallies[unit.label].next_number:
                unit.path(pool).unlink()
    files = {_name(unit): reader.digests[unit] for unit in sorted(reader.digests)}
    manifest = {
        "plan": plan,
        "unit_size": synthesis.unit_size,
        "rows": synthesis.unit_size * len(files),
        "tau": synthesis.tau,
        "n_per_class": synthesis.n_per_class,
        "ledger": {
            name: reader.tallies[label].ledger.as_dict()
            for label, name in enumerate(config.data.labels)
        },
        "files": files,
    }
    manifest["sha256"] = fingerprint(manifest)
    write_json(pool / MANIFEST, manifest)
    reader.journal.clear()
    return manifest


def read_manifest(pool: Path) -> dict[str, Any] | None:
    """manifest.json, or None where the pool is not finished. Raises RunDirectoryError."""
    path = pool / MANIFEST
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
        whole = set(manifest) == _KEYS and text == json_text(manifest)
    except (ValueError, TypeError):
        whole = False
    body = {k: v for k, v in manifest.items() if k != "sha256"} if whole else {}
    if not whole or fingerprint(body) != manifest["sha256"]:
        raise RunDirectoryError(f"{path} is damaged; run the same command again to write it anew")
    return manifest


def read_receipts(
    pool: Path, manifest: dict[str, Any], label: int, near_duplicates: float
) -> Iterator[tuple[pa.Table, Receipt]]:
    """The units of one label in index order. Raises RunDirectoryError at a damaged one."""
    size = manifest["unit_size"]
    numbers = [f for f in manifest["files"] if f.startswith(f"label={label}/")]
    for number in range(len(numbers)):
        unit = Unit(label, number, size)
        found = read_unit(unit, pool, manifest["plan"], manifest["files"][_name(unit)])
        if found is None:
            raise RunDirectoryError(
                f"{unit.path(pool)} is missing or damaged; run `sentisynth synthesize` again"
            )
        table, sha256 = found
        yield table, Receipt.of(table, unit, sha256, near_duplicates)


def check_pool(pool: Path) -> list[str]:
    """What is wrong with a finished pool, one sentence each; empty if nothing is."""
    try:
        manifest = read_manifest(pool)
        if manifest is None:
            return [f"{pool} has no {MANIFEST}: the pool is not finished"]
        asked_more = _asked_more(pool, manifest["n_per_class"], manifest["tau"])
    except RunDirectoryError as error:
        return [str(error)]
    problems = []
    files: dict[str, str] = manifest["files"]
    for name, digest in files.items():
        path = pool / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif sha256_file(path) != digest:
            problems.append(f"{path} was altered: its sha256 is not the manifest's")
    for unit in units_on_disk(pool, manifest["unit_size"]):
        path = unit.path(pool)
        if _name(unit) in files:
            continue
        if not asked_more:
            problems.append(f"{path} is not in the manifest")
        elif read_unit(unit, pool, manifest["plan"]) is None:
            problems.append(f"{path}, which the manifest does not need, is damaged")
    problems += _check_ledger(manifest)
    return problems


def _check_ledger(manifest: dict[str, Any]) -> list[str]:
    problems = [
        f"the ledger of class {name} does not add up: {entry}"
        for name, entry in manifest["ledger"].items()
        if not adds_up(entry)
    ]
    generated = sum(entry["generated"] for entry in manifest["ledger"].values())
    if generated != manifest["rows"]:
        problems.append(f"the ledger counts {generated} candidates, the files {manifest['rows']}")
    return problems


def _name(unit: Unit) -> str:
    return unit.path(Path()).as_posix()


def _manifest_or_none(pool: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(pool)
    except RunDirectoryError:  # it is written anew
        return None


def _read_asked(pool: Path) -> dict[str, Any]:
    """The most that the pool was ever asked for."""
    path = pool / _ASKED
    if not path.is_file():
        return {"n_per_class": 0, "tau": 0.0}
    try:
        text = path.read_text(encoding="utf-8")
        asked = json.loads(text)
        if text == json_text(asked) and set(asked) == {"n_per_class", "tau"}:
            return dict(asked)
    except (ValueError, TypeError):
        pass
    raise RunDirectoryError(f"{path} is damaged; run the same command again to write it anew")


def _asked_more(pool: Path, n_per_class: int, tau: float) -> bool:
    asked = _read_asked(pool)
    return bool(asked["n_per_class"] > n_per_class or asked["tau"] > tau)


def _record_asked(pool: Path, config: RunConfig) -> None:
    wanted = {"n_per_class": config.synthesis.n_per_class, "tau": config.synthesis.tau}
    try:
        asked = _read_asked(pool)
    except RunDirectoryError:
        asked = wanted
    most = {key: max(asked[key], value) for key, value in wanted.items()}
    if not (pool / _ASKED).is_file() or asked != most or asked is wanted:
        write_json(pool / _ASKED, most)
