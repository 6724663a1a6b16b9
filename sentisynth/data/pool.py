"""A pool at work: what is there, what counts, and what is still wanted."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.journal import Journal
from sentisynth.data.ledger import Ledger, Tally
from sentisynth.data.manifest import (
    MANIFEST,
    Asked,
    forget_asked,
    note_asked,
    publish,
    readable_manifest,
    recorded,
    remove_leftovers,
)
from sentisynth.data.receipts import Receipt
from sentisynth.data.units import Unit, has_sha256, plan_of, read_unit, units_on_disk
from sentisynth.errors import ModelError, RunDirectoryError

_RECEIPTS_HELD = 1024  # of units that wait for one in front of them
_COUNTING_S = 2.0  # at a resume, before the first new unit is begun
_SLICE_S, _LONG_SLICE_S = 0.1, 3.0  # of counting at a time
_NEARLY = 0.05  # units that are missing, as a share of those that are there
_READERS, _READ_AHEAD = 8, 256  # threads; units
_FEW = 1000  # candidates; the bound on quarantined rows holds from there on


class PoolReader:
    """Feeds receipts, in index order and label by label, to the tallies.

    A unit may be offered at any time; it is counted once all before it are. The pool of a run is
    the shortest prefix of each label that holds the quota, whatever else was finished, and at
    least what an earlier manifest held.

    Counting takes some 10 µs a candidate. What earlier runs left of a large pool is counted for
    seconds; the rest, in half of the driver's time, while new units are made.
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
        self._n_held = 0
        self.is_behind = False
        """Whether units are there that could be counted and have not been."""
        self.n_found_counted = 0
        """Units that were there before and are counted."""
        self._counted_at = -math.inf
        self.n_damaged = 0
        self._kept: set[Unit] = set()
        self.asked = Asked(n_per_class=synthesis.n_per_class, tau=synthesis.tau)
        """The most that this pool was ever asked for; known after `recover`."""
        manifest = readable_manifest(pool)
        self._published = manifest if manifest is not None and manifest["plan"] == plan else None
        files = self._published["files"] if self._published else {}
        self._least = [sum(f.startswith(f"label={label}/") for f in files) for label in labels]
        most = -(-synthesis.max_candidates_per_class // synthesis.unit_size)
        self._most = [max(most, least) for least in self._least]

    def recover(self) -> set[Unit]:
        """Find what earlier runs finished and return it; damaged files are removed.

        A unit whose sha256 stands in the journal or the manifest is believed if it still has it;
        another one is read and checked. Of a large pool that has no manifest yet and lacks many
        units, only the first are counted: see `offer` and `count`; of one that is just what its
        manifest says, and holds what is asked, none. Raises RunDirectoryError at a unit of another
        plan.
        """
        self.asked = recorded(self._pool, self.asked)
        self._kept, self.n_damaged = set(), 0
        if self._is_as_published():
            remove_leftovers(self._pool)
            return set(self.digests)
        left, n_files = math.inf if self._published else _COUNTING_S, self.journal.n_files
        for unit, is_whole, receipt in self._looked_at():
            if not is_whole:
                self._refuse_another_plan(unit)
                unit.path(self._pool).unlink()
                self.n_damaged += 1
                continue
            self._kept.add(unit)
            if receipt is not None:
                self.journal.drop(unit)
                if self._published is None:  # else the manifest knows it, and all stays as it is
                    self.journal.add(receipt)
            self._hold(unit, receipt)
            begun = time.monotonic()
            self._count_until(begun + left)
            left -= time.monotonic() - begun
        remove_leftovers(self._pool)
        self.journal.flush()
        while self.is_behind and not self._lacks_many():
            self.count(_LONG_SLICE_S)
        if self.is_behind:
            self.journal.read(n_files)  # what was read from units' files, and may not be held
        return set(self._kept)

    def offer(self, receipt: Receipt) -> None:
        """Count a finished unit now, or as soon as those before it are there and counted: what is
        left to count gets half of the time.

        Raises ModelError if too many of the label's rows could not be scored.
        """
        self._hold(receipt.unit, receipt)
        rested = time.monotonic() - self._counted_at
        if not self.is_behind:
            self.count(_LONG_SLICE_S)
        elif rested > _SLICE_S:
            self.count(min(rested, _LONG_SLICE_S))

    def count(self, seconds: float) -> None:
        """Count what can be counted, for about so long. Raises as `offer`."""
        self._count_until(time.monotonic() + seconds)
        self._counted_at = time.monotonic()

    def _is_as_published(self) -> bool:
        """Whether the manifest's own counts hold the quota at this τ, and its files, and no others,
        are there as it says: then the counts are taken from it.
        """
        manifest, synthesis = self._published, self._config.synthesis
        if manifest is None or manifest["tau"] != synthesis.tau:
            return False
        ledgers = [manifest["ledger"].get(name) for name in self._config.data.labels]
        told = [0 if ledger is None else ledger["accepted"] for ledger in ledgers]
        if min(*told, manifest["n_per_class"]) < synthesis.n_per_class:
            return False
        files: dict[str, str] = manifest["files"]
        units = list(units_on_disk(self._pool, synthesis.unit_size))
        if {unit.name for unit in units} != files.keys():
            return False
        with ThreadPoolExecutor(_READERS) as readers:
            if not all(readers.map(lambda u: has_sha256(u, self._pool, files[u.name]), units)):
                return False
        self.digests = {unit: files[unit.name] for unit in units}
        for tally, ledger, n_units in zip(self.tallies, ledgers, self._least, strict=True):
            tally.ledger, tally.next_number = Ledger.from_dict(ledger), n_units
        return True

    def _lacks_many(self) -> bool:
        """Whether far more is wanted than is there, as far as one can tell: a pool that is nearly
        full, or has come to nothing, is known for sure before anything starts.
        """
        there = Counter(unit.label for unit in self._kept)
        missing = (max(h - there[label], 0) for label, h in enumerate(self.horizons()))
        return sum(missing) > _NEARLY * len(self._kept)

    def _hold(self, unit: Unit, receipt: Receipt | None) -> None:
        is_held = receipt is not None and self._n_held < _RECEIPTS_HELD
        self._waiting[unit] = receipt if is_held else None
        self._n_held += is_held

    def _count_until(self, deadline: float) -> None:
        """The labels take turns, so that the horizon of each rests on what was seen of it."""
        while following := self._next_to_count():
            if time.monotonic() >= deadline:
                self.is_behind = True
                return
            self._count(following)
        self.is_behind = False

    def _next_to_count(self) -> Unit | None:
        units = (self._following(n) for n in range(len(self.tallies)) if not self.is_full(n))
        return min((u for u in units if u in self._waiting), key=lambda u: u.number, default=None)

    def _following(self, label: int) -> Unit:
        size = self._config.synthesis.unit_size
        return Unit(label, self.tallies[label].next_number, size)

    def _count(self, unit: Unit) -> None:
        held = self._waiting.pop(unit)
        self._n_held -= held is not None
        found = held or self.journal.get(unit) or self._read(unit)
        if found is None:
            raise RunDirectoryError(
                f"{unit.path(self._pool)} changed while the run went on; "
                f"run the same command again to make it anew"
            )
        self.journal.drop(unit)
        self.tallies[unit.label].add(found)
        self.digests[unit] = found.sha256
        self.n_found_counted += unit in self._kept
        self._check_quarantine(unit.label)

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
            is_last = tally.next_number >= self._most[label]
            if is_last and not self.is_full(label) and self._following(label) not in self._waiting:
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
        return max(min(tally.next_number + n_units, self._most[label]), self._least[label])

    @property
    def is_published(self) -> bool:
        """Whether the manifest that is there says just what was counted."""
        manifest = self._published
        if manifest is None or not self.all_full:
            return False
        names = {unit.name: digest for unit, digest in self.digests.items()}
        ledger = {
            name: self.tallies[label].ledger.as_dict()
            for label, name in enumerate(self._config.data.labels)
        }
        synthesis = self._config.synthesis
        return (
            manifest["files"] == names
            and (
                self._kept <= self.digests.keys()  # none was written after it
                or self.asked.exceeds(manifest["n_per_class"], manifest["tau"])
            )
            and manifest["n_per_class"] >= synthesis.n_per_class
            and (manifest["tau"] != synthesis.tau or manifest["ledger"] == ledger)
        )

    def tidy(self) -> None:
        """Remove what a command that was killed just after its manifest has left."""
        if self._published is not None and self._published["asked"] == asdict(self.asked):
            forget_asked(self._pool)
            self.journal.clear()

    def withdraw(self) -> None:
        """Take the manifest back, as units are to be made; what it was asked for stays known."""
        note_asked(self._pool, self.asked)
        (self._pool / MANIFEST).unlink(missing_ok=True)

    def publish(self) -> dict[str, Any]:
        """Write the manifest of what was counted; the journal has then done its duty."""
        manifest = publish(
            self._pool,
            self._config,
            self._plan,
            digests=self.digests,
            ledgers=[tally.ledger for tally in self.tallies],
            asked=self.asked,
        )
        self.journal.clear()
        return manifest

    def _looked_at(self) -> Iterator[tuple[Unit, bool, Receipt | None]]:
        """Every unit that has a file, those of low numbers first; whether it is whole; and its
        receipt, where the journal has it not.
        """

        def look(unit: Unit) -> tuple[bool, Receipt | None]:
            expected = self._published["files"].get(unit.name) if self._published else None
            known = self.journal.sha256(unit)
            if known is not None and expected in (known, None):
                return has_sha256(unit, self._pool, known), None
            receipt = self._read(unit, expected)
            return receipt is not None, receipt

        size = self._config.synthesis.unit_size
        units = sorted(units_on_disk(self._pool, size), key=lambda unit: (unit.number, unit.label))
        with ThreadPoolExecutor(_READERS) as readers:  # a store answers each after a while
            for start in range(0, len(units), _READ_AHEAD):
                some = units[start : start + _READ_AHEAD]
                for unit, looked in zip(some, readers.map(look, some), strict=True):
                    yield unit, *looked

    def _read(self, unit: Unit, sha256: str | None = None) -> Receipt | None:
        found = read_unit(unit, self._pool, self._plan, sha256)
        return Receipt.of(found[0], unit, found[1], self._near_duplicates) if found else None

    def _refuse_another_plan(self, unit: Unit) -> None:
        """A damaged file is made again; one that was made otherwise is not ours to remove."""
        if plan_of(unit.path(self._pool)) not in (None, self._plan):
            raise RunDirectoryError(
                f"{unit.path(self._pool)} was made under other settings than this run's; choose "
                f"another directory with --out, or remove {self._pool}"
            )

    def _check_quarantine(self, label: int) -> None:
        counts, synthesis = self.tallies[label].ledger.counts, self._config.synthesis
        n, share = sum(counts[r] for r in schema.QUARANTINED), synthesis.max_quarantined
        if n > share * max(_FEW, counts.total()):
            told = ", ".join(f"{r} {counts[r]}" for r in schema.QUARANTINED if counts[r])
            raise ModelError(
                f"teacher or generator could not score {n} of {counts.total()} candidates of class "
                f"{self._config.data.labels[label]} ({told}), more than "
                f"synthesis.max_quarantined={share:g} allows; look at the texts with that "
                f"reject_reason in {self._pool}, and at the two models; what was made is kept"
            )
