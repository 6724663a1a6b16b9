"""The manifest of a finished pool, and what it is checked against."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sentisynth.config.types import RunConfig
from sentisynth.data import journal
from sentisynth.data.files import json_text, sha256_file, write_json
from sentisynth.data.ledger import SCORED, Ledger, Tally, adds_up
from sentisynth.data.receipts import Receipt
from sentisynth.data.storage import STAMP, is_file
from sentisynth.data.units import Unit, like_a_unit, read_unit, strange_names, units_on_disk
from sentisynth.errors import RunDirectoryError
from sentisynth.seeding import fingerprint

MANIFEST = "manifest.json"
_ASKED = "asked.json"
_UNIT = re.compile(r"label=\d+/unit-\d{6,}\.parquet")
_KEYS = {"plan", "unit_size", "rows", "tau", "n_per_class", "asked", "ledger", "files", "sha256"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The most that a pool was asked for: what lies beyond a smaller quota is then no leftover."""

    n_per_class: int
    tau: float

    def exceeds(self, n_per_class: int, tau: float) -> bool:
        """Whether more was asked for than this."""
        return self.n_per_class > n_per_class or self.tau > tau


def publish(
    pool: Path,
    config: RunConfig,
    plan: str,
    *,
    digests: dict[Unit, str],
    ledgers: Sequence[Ledger],
    asked: Asked,
) -> dict[str, Any]:
    """Write the manifest last, after removing what lies beyond the prefix that holds the quota.

    `digests` are the sha256 of the units of the prefix, `ledgers` the counts of each label. What
    lies beyond stays if the pool was once asked for more.
    """
    synthesis = config.synthesis
    if not asked.exceeds(synthesis.n_per_class, synthesis.tau):
        for unit in list(units_on_disk(pool, synthesis.unit_size)):
            if unit not in digests:
                unit.path(pool).unlink()
    remove_leftovers(pool)
    manifest = {
        "plan": plan,
        "unit_size": synthesis.unit_size,
        "rows": synthesis.unit_size * len(digests),
        "tau": synthesis.tau,
        "n_per_class": synthesis.n_per_class,
        "asked": asdict(asked),
        "ledger": {
            name: ledger.as_dict() for name, ledger in zip(config.data.labels, ledgers, strict=True)
        },
        "files": {unit.name: digests[unit] for unit in sorted(digests)},
    }
    manifest["sha256"] = fingerprint(manifest)
    write_json(pool / MANIFEST, manifest)
    forget_asked(pool)
    return manifest


def remove_leftovers(pool: Path) -> None:
    """Remove what writers that were killed before the rename have left, and drivers that were
    asking the nodes what they see (`nodes.check_storage`).
    """
    for pattern in ("label=*/.unit-*.tmp", ".*.tmp", ".seen-*"):
        for leftover in pool.glob(pattern):
            leftover.unlink(missing_ok=True)


def forget_asked(pool: Path) -> None:
    """Remove the note of what was asked for: the manifest tells it."""
    (pool / _ASKED).unlink(missing_ok=True)


def recorded(pool: Path, asked: Asked) -> Asked:
    """The most of what is asked now and what was asked before; it is kept for the next time."""
    manifest = readable_manifest(pool)
    told = [] if manifest is None else [Asked(**manifest["asked"])]
    try:
        note = Asked(**json.loads((pool / _ASKED).read_text(encoding="utf-8")))
        told.append(Asked(n_per_class=int(note.n_per_class), tau=float(note.tau)))
        known = max(one.n_per_class for one in told), max(one.tau for one in told)
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        # it guards surplus units, no more
        known = (told[0].n_per_class, told[0].tau) if told else (0, 0.0)
    most = Asked(n_per_class=max(asked.n_per_class, known[0]), tau=max(asked.tau, known[1]))
    if (most.n_per_class, most.tau) != known:
        note_asked(pool, most)
    return most


def note_asked(pool: Path, asked: Asked) -> None:
    """Keep what is asked for where no manifest tells it."""
    write_json(pool / _ASKED, asdict(asked))


def read_manifest(pool: Path) -> dict[str, Any] | None:
    """manifest.json, or None where the pool is not finished. Raises RunDirectoryError."""
    path = pool / MANIFEST
    if not is_file(path):
        return None
    try:
        text = path.read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
        whole = set(manifest) == _KEYS and text == json_text(manifest)
        whole = whole and all(map(_UNIT.fullmatch, manifest["files"]))
        numbers = [manifest[key] for key in ("unit_size", "rows", "tau", "n_per_class")]
        whole = whole and _are_numbers([*numbers, *asdict(Asked(**manifest["asked"])).values()])
        whole = whole and all(map(_is_entry, manifest["ledger"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    body = {k: v for k, v in manifest.items() if k != "sha256"} if whole else {}
    if not whole or fingerprint(body) != manifest["sha256"]:
        raise RunDirectoryError(f"{path} is damaged; run the same command again to write it anew")
    return manifest


def _is_entry(entry: Any) -> bool:
    """Whether something has the shape of one label's ledger."""
    numbers = [entry[key] for key in ("generated", "scored", *SCORED)]
    return _are_numbers([*numbers, *entry["screened"].values()])


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def read_receipts(
    pool: Path, manifest: dict[str, Any], label: int, near_duplicates: float
) -> Iterator[tuple[pa.Table, Receipt]]:
    """The units of one label in index order. Raises RunDirectoryError at a damaged one."""
    size = manifest["unit_size"]
    numbers = [f for f in manifest["files"] if f.startswith(f"label={label}/")]
    for number in range(len(numbers)):
        unit = Unit(label, number, size)
        digest = manifest["files"].get(unit.name)
        if digest is None:
            raise RunDirectoryError(
                f"{pool / MANIFEST} leaves out {unit.name}, and has later units of its label; run "
                f"`sentisynth synthesize …` again"
            )
        found = read_unit(unit, pool, manifest["plan"], digest)
        if found is None:
            raise RunDirectoryError(
                f"{unit.path(pool)} is missing or damaged; run `sentisynth synthesize …` again"
            )
        table, sha256 = found
        yield table, Receipt.of(table, unit, sha256, near_duplicates)


def check_pool(pool: Path) -> list[str]:
    """What is wrong with a finished pool, one sentence each; empty if nothing is."""
    try:
        manifest = read_manifest(pool)
    except RunDirectoryError as error:
        return [str(error)]
    if manifest is None:
        return [f"{pool} has no {MANIFEST}: the pool is not finished"]
    problems = []
    files: dict[str, str] = manifest["files"]
    for name, digest in files.items():
        path = pool / name
        if not is_file(path):
            problems.append(f"{path} is missing")
        elif sha256_file(path) != digest:
            problems.append(f"{path} was altered: its sha256 is not the manifest's")
    strange = strange_names(pool)
    problems += [f"{path} is not the name of a unit" for path in strange]
    if not strange:
        problems += _check_surplus(pool, manifest)
    problems += _check_others(pool, files)
    return problems + _check_ledger(manifest)


def check_counts(pool: Path, labels: Sequence[str], near_duplicates: float) -> list[str]:
    """Whether the ledger of a whole pool is what its units come to, counted anew in index order."""
    manifest, problems = readable_manifest(pool), []
    assert manifest is not None
    quota = manifest["n_per_class"]
    for label, name in enumerate(labels):
        tally = Tally(manifest["tau"], near_duplicates)
        try:
            for _, receipt in read_receipts(pool, manifest, label, near_duplicates):
                tally.add(receipt)
        except RunDirectoryError as error:
            problems.append(str(error))
            continue
        told, counted = manifest["ledger"].get(name), tally.ledger.as_dict()
        if told != counted:
            problems.append(f"the ledger of class {name} says {told}, its units say {counted}")
        elif tally.ledger.accepted < quota:
            problems.append(f"class {name} has {tally.ledger.accepted} rows, not {quota}")
    return problems


def _check_surplus(pool: Path, manifest: dict[str, Any]) -> list[str]:
    problems = []
    wanted = Asked(**manifest["asked"]).exceeds(manifest["n_per_class"], manifest["tau"])
    for unit in units_on_disk(pool, manifest["unit_size"]):
        path = unit.path(pool)
        if unit.name in manifest["files"]:
            continue
        if not wanted:
            problems.append(f"{path} is not in the manifest")
        elif read_unit(unit, pool, manifest["plan"]) is None:
            problems.append(f"{path}, which the manifest does not need, is damaged")
    return problems


def _check_others(pool: Path, files: dict[str, str]) -> list[str]:
    ours = {pool / MANIFEST, pool / STAMP, pool / _ASKED, *(pool / name for name in files)}
    return [
        f"{path} does not belong to a pool"
        for path in sorted(pool.rglob("*"))
        if path.is_file()
        and path not in ours
        and not like_a_unit(path)
        and path.parent.name != journal.DIRECTORY
    ]


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


def readable_manifest(pool: Path) -> dict[str, Any] | None:
    """manifest.json, or None where it is not there or damaged. Raises RunDirectoryError where a
    store does not say.
    """
    if not is_file(pool / MANIFEST):
        return None
    try:
        return read_manifest(pool)
    except RunDirectoryError:  # it is written anew
        return None
