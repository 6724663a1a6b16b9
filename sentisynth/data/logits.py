"""The teacher's logits in pool tables: as an array, as probabilities, as an opinion on each row."""

import numpy as np
import pyarrow as pa

from sentisynth import schema


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


def opinions(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the teacher says of the S scored rows of a pool table.

    Returns their positions (int32), whether the largest logit is the intended label's (bool), and
    the largest softmax(logits) at T = 1 (float64).
    """
    rows = np.flatnonzero(table[schema.REJECT_REASON].is_null().to_numpy())
    if not len(rows):
        return rows.astype(np.int32), np.empty(0, dtype=bool), np.empty(0)
    scored = table.select([schema.LABEL, schema.TEACHER_LOGITS]).take(rows)
    probs_SK = softmax(logits_of(scored))
    right = probs_SK.argmax(axis=1) == scored[schema.LABEL].to_numpy()
    return rows.astype(np.int32), right, probs_SK.max(axis=1)
