"""Receipts: what the ledger has to know of a finished unit, computed from its rows alone.

A receipt is made once, where the unit's file is written, and travels instead of the rows; after a
restart it is made again from the file. N rows in a unit, S of them scored.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sentisynth import schema
from sentisynth.data.duplicates import Sketches, sketch
from sentisynth.data.logits import opinions
from sentisynth.data.units import Unit


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The facts of one unit that decide what enters the dataset, at any τ."""

    unit: Unit
    sha256: str
    """Of the unit's file."""
    n_tokens: int
    """Tokens that the generator made."""
    n_scored_tokens: int
    """Of them, in rows that the teacher scored."""
    screened: dict[str, int]
    """Rows without logits, by reason."""
    rows: np.ndarray
    """int32 (S,): positions of the scored rows in the unit."""
    right: np.ndarray
    """bool (S,): whether the largest logit is the intended label's."""
    confidence: np.ndarray
    """float64 (S,): the largest softmax(logits) at T = 1."""
    sketches: Sketches
    """Of the scored rows' texts."""

    @classmethod
    def of(cls, table: pa.Table, unit: Unit, sha256: str, near_duplicates: float) -> "Receipt":
        """The receipt of a unit's `schema.POOL` table, written under this sha256."""
        rows, right, confidence = opinions(table)
        reasons = table[schema.REJECT_REASON].to_pylist()
        n_tokens = table[schema.N_TOKENS].to_numpy()
        return cls(
            unit=unit,
            sha256=sha256,
            n_tokens=int(n_tokens.sum()),
            n_scored_tokens=int(n_tokens[rows].sum()),
            screened=dict(Counter(reason for reason in reasons if reason is not None)),
            rows=rows,
            right=right,
            confidence=confidence,
            sketches=sketch(table[schema.TEXT].take(rows).to_pylist(), near_duplicates),
        )

    def to_arrow(self) -> pa.Table:
        """One row."""
        sketches = self.sketches
        lists = {
            "rows": self.rows,
            "right": self.right,
            "confidence": self.confidence,
            "keys": sketches.keys,
            "shingles": sketches.shingles,
            "ends": sketches.ends,
        }
        return pa.table(
            {
                "label": [self.unit.label],
                "number": [self.unit.number],
                "size": [self.unit.size],
                "sha256": [self.sha256],
                "n_tokens": [self.n_tokens],
                "n_scored_tokens": [self.n_scored_tokens],
                "reasons": pa.array([list(self.screened)], pa.list_(pa.string())),
                "screened": pa.array([list(self.screened.values())], pa.list_(pa.int64())),
                **{name: _one_list(values) for name, values in lists.items()},
            }
        )

    @classmethod
    def from_arrow(cls, row: pa.Table) -> "Receipt":
        """The inverse of `to_arrow`."""

        def one(name: str) -> Any:
            return row[name][0].as_py()

        def array(name: str) -> np.ndarray:
            return row[name].chunk(0).flatten().to_numpy(zero_copy_only=False)

        return cls(
            unit=Unit(one("label"), one("number"), one("size")),
            sha256=one("sha256"),
            n_tokens=one("n_tokens"),
            n_scored_tokens=one("n_scored_tokens"),
            screened=dict(zip(one("reasons"), one("screened"), strict=True)),
            rows=array("rows"),
            right=array("right"),
            confidence=array("confidence"),
            sketches=Sketches(keys=array("keys"), shingles=array("shingles"), ends=array("ends")),
        )


def _one_list(values: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), pa.array(values))
