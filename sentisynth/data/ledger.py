"""Every candidate is accounted for: verdicts, and their counts, in index order.

generated = screened out (by reason) + scored;  scored = accepted + wrong label + below τ.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from sentisynth import schema
from sentisynth.data.duplicates import DuplicateIndex, sketch

SCORED = (schema.ACCEPTED, schema.WRONG_LABEL, schema.BELOW_TAU)


def softmax(logits_NK: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of logits / T over the last axis, in float64."""
    scaled = np.asarray(logits_NK, dtype=np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return scaled / scaled.sum(axis=-1, keepdims=True)


def logits_of(table: pa.Table, column: str = schema.TEACHER_LOGITS) -> np.ndarray:
    """The list column as an array (N, K). No row may be null."""
    values = table[column].combine_chunks()
    if len(values) == 0:
        return np.empty((0, 0), dtype=np.float32)
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)


def judge(table: pa.Table, tau: float) -> list[str]:
    """A verdict per row of a pool table: the screen's reason, or the teacher's word at τ.

    The teacher's part: the arg max of the logits is the intended label, and its softmax at T = 1
    is at least τ. Duplicates across tables are not seen here; see `Tally`.
    """
    verdicts = table[schema.REJECT_REASON].to_pylist()
    scored = np.flatnonzero(np.array([v is None for v in verdicts], dtype=bool))
    if len(scored):
        rows = table.take(scored)
        probs_NK = softmax(logits_of(rows))
        right = probs_NK.argmax(axis=1) == rows[schema.LABEL].to_numpy()
        sure = probs_NK.max(axis=1) >= tau
        for i, is_right, is_sure in zip(scored, right, sure, strict=True):
            teacher_says = schema.ACCEPTED if is_sure else schema.BELOW_TAU
            verdicts[i] = teacher_says if is_right else schema.WRONG_LABEL
    return verdicts


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
    """Judges one label's units in index order; of equal or near texts the lowest index stays."""

    def __init__(self, tau: float, near_duplicates: float) -> None:
        self._tau = tau
        self._seen = DuplicateIndex(near_duplicates)
        self.ledger = Ledger()
        self.next_number = 0

    def verdicts(self, table: pa.Table) -> list[str]:
        """A verdict per row of the next unit: `judge`, and duplicates of earlier rows."""
        verdicts = judge(table, self._tau)
        for i, text in enumerate(table[schema.TEXT].to_pylist()):
            if verdicts[i] in SCORED:
                item = sketch(text)
                if item in self._seen:
                    verdicts[i] = schema.DUPLICATE
                else:
                    self._seen.add(item)
        return verdicts

    def add(self, table: pa.Table) -> list[int]:
        """Count the next unit's rows and return the row numbers of the accepted ones."""
        verdicts = self.verdicts(table)
        self.ledger.counts.update(verdicts)
        self.ledger.n_tokens += sum(table[schema.N_TOKENS].to_pylist())
        self.next_number += 1
        return [i for i, verdict in enumerate(verdicts) if verdict == schema.ACCEPTED]
