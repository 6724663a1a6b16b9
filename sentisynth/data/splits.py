"""The real rows of a run: a stratified seed, validation and test, disjoint and without repeats."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sentisynth import schema
from sentisynth.config.types import DataConfig
from sentisynth.data.sources import read_rows
from sentisynth.data.text import normal_form
from sentisynth.errors import DataError
from sentisynth.seeding import derive_seed

_WORDS = {
    "seed": "rows to learn from",
    "validation": "to validate",
    "test": "to test",
    "in_test": "since data.test has them",
    "in_validation": "since data.validation has them",
    "validation_in_test": "of data.validation since data.test has them",
    "repeated": "since they repeat a text",
    "contradictory": "since their text has several classes",
}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Real rows as `schema.CORPUS` tables; no text of one is in another (normal form)."""

    seed: pa.Table
    validation: pa.Table
    test: pa.Table
    dropped: dict[str, int]
    """Source rows left out, by reason: `in_test`, `in_validation`, `repeated`, `contradictory`;
    and `validation_in_test`."""
    unused: int
    """Source rows beyond `data.n_seed` and those held out."""

    def splits(self) -> dict[str, pa.Table]:
        """The three tables by name."""
        return {"seed": self.seed, "validation": self.validation, "test": self.test}

    @property
    def told(self) -> str:
        """What became of the rows, in words."""
        tables = self.splits()
        told = [f"{table.num_rows:,} {_WORDS[name]}" for name, table in tables.items()]
        told += [f"{n:,} left out {_WORDS[reason]}" for reason, n in self.dropped.items() if n]
        told += [f"{self.unused:,} not used (data.n_seed)"] if self.unused else []
        return "; ".join(told)


def load_corpus(config: DataConfig, seed: int) -> Corpus:
    """Read the references of a data section and draw the seed. Raises DataError."""
    source = read_rows(config.source, config)
    _require_all_classes(source, config, config.source)
    dropped: dict[str, int] = {}
    held_out: dict[str, pa.Table] = {}
    for split in ("test", "validation"):
        wanted = getattr(config, split)
        if isinstance(wanted, int):
            source = _without_repeats(source, dropped)
            _require_rows(source, wanted, f"data.{split}", config, dropped)
            chosen = stratified_sample(source, wanted, derive_seed(seed, "hold out", split))
            held_out[split] = source.take(chosen)
            source = source.take(np.setdiff1d(np.arange(source.num_rows), chosen))
        else:
            held_out[split] = read_rows(wanted, config)
            source = _without(source, held_out[split], f"in_{split}", dropped)
    held_out["validation"] = _without(
        held_out["validation"], held_out["test"], "validation_in_test", dropped
    )
    source = _without_repeats(source, dropped)
    _require_rows(source, config.n_seed, "data.n_seed", config, dropped)
    rows = source.take(stratified_sample(source, config.n_seed, derive_seed(seed, "seed rows")))
    _require_all_classes(rows, config, "the seed", _overlap(dropped, "in_test", "in_validation"))
    _require_all_classes(held_out["test"], config, "data.test")
    overlap = _overlap(dropped, "validation_in_test")
    _require_all_classes(held_out["validation"], config, "data.validation", overlap)
    unused = source.num_rows - rows.num_rows
    return Corpus(seed=rows, dropped=dropped, unused=unused, **held_out)


def stratified_sample(table: pa.Table, n: int, seed: int) -> np.ndarray:
    """Row numbers (n,), ascending: classes in the table's ratio, largest remainders first."""
    labels = table[schema.LABELS].to_numpy()
    classes, counts = np.unique(labels, return_counts=True)
    shares = n * counts / counts.sum()
    take = np.floor(shares).astype(int)
    if n >= len(classes):
        take = np.maximum(take, 1)  # of a rare class one row rather than none
    while take.sum() > n:
        take[take.argmax()] -= 1
    order = np.argsort(-(shares - take), kind="stable")
    take[order[: n - take.sum()]] += 1
    random = np.random.default_rng(seed)
    chosen = [
        random.choice(np.flatnonzero(labels == c), size=k, replace=False)
        for c, k in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _keys(table: pa.Table) -> list[str]:
    return [normal_form(text) for text in table[schema.TEXT].to_pylist()]


def _filter(table: pa.Table, keep: list[bool], reason: str, dropped: dict[str, int]) -> pa.Table:
    lost = len(keep) - sum(keep)
    if lost:
        dropped[reason] = dropped.get(reason, 0) + lost
    return table.filter(pa.array(keep, pa.bool_()))


def _without(table: pa.Table, other: pa.Table, reason: str, dropped: dict[str, int]) -> pa.Table:
    taken = set(_keys(other))
    return _filter(table, [key not in taken for key in _keys(table)], reason, dropped)


def _without_repeats(table: pa.Table, dropped: dict[str, int]) -> pa.Table:
    """The first row of each text; texts with two labels go altogether."""
    keys, labels = _keys(table), table[schema.LABELS].to_pylist()
    classes: dict[str, set[int]] = {}
    for key, label in zip(keys, labels, strict=True):
        classes.setdefault(key, set()).add(label)
    clear = [len(classes[key]) == 1 for key in keys]
    table = _filter(table, clear, "contradictory", dropped)
    seen: set[str] = set()
    first = []
    for key in _keys(table):
        first.append(key not in seen)
        seen.add(key)
    return _filter(table, first, "repeated", dropped)


def _overlap(dropped: dict[str, int], *reasons: str) -> str:
    """What to say of the rows that are missing because another split has them; maybe nothing."""
    of = {reason: dropped[reason] for reason in reasons if reason in dropped}
    if not of:
        return ""
    where = " or ".join(f"data.{reason.rpartition('in_')[2]}" for reason in of)
    return f" (left out, since {where} has the same texts: {sum(of.values()):,})"


def _require_rows(
    table: pa.Table, n: int, key: str, config: DataConfig, dropped: dict[str, int]
) -> None:
    if table.num_rows < n:
        overlap = _overlap(dropped, "in_test", "in_validation")
        lost = ", ".join(
            f"{dropped[reason]:,} left out {_WORDS[reason]}"
            for reason in ("repeated", "contradictory")
            if dropped.get(reason)
        )
        raise DataError(
            f"{config.source} has {table.num_rows} distinct rows left for {key}={n}{overlap}"
            f"{lost and f' ({lost})'}; lower {key} or give {'other' if overlap else 'more'} rows"
        )


def _require_all_classes(
    table: pa.Table, config: DataConfig, where: str, overlap: str = ""
) -> None:
    present = set(table[schema.LABELS].to_pylist())
    missing = [name for i, name in enumerate(config.labels) if i not in present]
    if missing:
        raise DataError(
            f"{where} has no row of class {', '.join(missing)}{overlap}; a classifier needs rows "
            f"of all of {', '.join(config.labels)}"
        )
