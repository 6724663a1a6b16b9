"""Every candidate is accounted for: verdicts, and their counts, in index order.

generated = screened out (by reason) + scored;  scored = accepted + wrong label + below τ.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from sentisynth import schema
from sentisynth.data.duplicates import DuplicateIndex
from sentisynth.data.logits import opinions
from sentisynth.data.receipts import Receipt

SCORED = (schema.ACCEPTED, schema.WRONG_LABEL, schema.BELOW_TAU)


def decide(right: np.ndarray, confidence: np.ndarray, tau: float) -> np.ndarray:
    """A verdict per scored row: accepted iff the label is right and the confidence at least τ."""
    of_right = np.where(confidence >= tau, schema.ACCEPTED, schema.BELOW_TAU)
    return np.where(right, of_right, schema.WRONG_LABEL)


def judge(table: pa.Table, tau: float) -> list[str]:
    """A verdict per row of a pool table: the screen's reason, or the teacher's word at τ.

    Duplicates of other tables are not seen here; see `Tally`.
    """
    rows, right, confidence = opinions(table)
    return fill(table, rows, decide(right, confidence, tau))


def fill(table: pa.Table, rows: np.ndarray, verdicts: np.ndarray) -> list[str]:
    """The screen's reasons of a pool table, with the verdicts of the scored rows between them."""
    told: list[str] = table[schema.REJECT_REASON].to_pylist()
    for row, verdict in zip(rows.tolist(), verdicts.tolist(), strict=True):
        told[row] = verdict
    return told


@dataclass
class Ledger:
    """Counts of one label by verdict, over all candidates of the pool."""

    counts: Counter[str] = field(default_factory=Counter)
    n_tokens: int = 0

    @property
    def generated(self) -> int:
        """Candidates of the label."""
        return self.counts.total()

    @property
    def scored(self) -> int:
        """Candidates that the teacher's logits decided about."""
        return sum(self.counts[v] for v in SCORED)

    @property
    def accepted(self) -> int:
        """Candidates that may enter the dataset."""
        return self.counts[schema.ACCEPTED]

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> "Ledger":
        """What `as_dict` gave."""
        counts = Counter({**entry["screened"], **{v: entry[v] for v in SCORED}})
        return cls(counts=counts, n_tokens=entry["tokens"])

    def as_dict(self) -> dict[str, object]:
        """For manifest.json and metrics.json."""
        screened = {r: self.counts[r] for r in schema.SCREEN_REASONS if self.counts[r]}
        return {
            "generated": self.generated,
            "screened": screened,
            "scored": self.scored,
            **{v: self.counts[v] for v in SCORED},
            "tokens": self.n_tokens,
        }


def adds_up(entry: dict[str, object]) -> bool:
    """Whether one label's ledger, as a dictionary, accounts for every candidate."""
    screened = entry["screened"]
    assert isinstance(screened, dict)
    return entry["generated"] == sum(screened.values()) + entry["scored"] and entry[  # type: ignore[operator]
        "scored"
    ] == sum(entry[v] for v in SCORED)  # type: ignore[misc]


class Tally:
    """Judges one label's units in index order; of equal or near texts the lowest index stays.

    Its memory is that of the `DuplicateIndex` over the texts that the teacher scored.
    """

    def __init__(self, tau: float, near_duplicates: float) -> None:
        self._tau = tau
        self._seen = DuplicateIndex(near_duplicates)
        self.ledger = Ledger()
        self.next_number = 0

    def add(self, receipt: Receipt) -> np.ndarray:
        """Count the next unit; a verdict per scored row, which may now be `duplicate`."""
        assert receipt.unit.number == self.next_number
        self.next_number += 1
        verdicts = decide(receipt.right, receipt.confidence, self._tau)
        verdicts = np.where(self._seen.add_new(receipt.sketches), schema.DUPLICATE, verdicts)
        self.ledger.counts.update(receipt.screened)
        self.ledger.counts.update(verdicts.tolist())
        self.ledger.n_tokens += receipt.n_tokens
        return verdicts

    @property
    def nbytes(self) -> int:
        """Memory of the texts seen so far."""
        return self._seen.nbytes
