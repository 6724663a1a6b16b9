"""The teacher scores what passed the screens. Arrow in, Arrow out; no Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.models.classifier import load_verifier, predict_logits
from sentisynth.models.loading import autocast_dtype, best_device


class Verify:
    """Fills `teacher_logits` (K, fp32) of rows without a reject reason.

    Rows whose logits are not finite are rejected as `non_finite`: facts for the ledger, no crash.
    """

    def __init__(self, model: Path, config: RunConfig) -> None:
        torch.set_num_threads(config.synthesis.verify_pool.threads)
        device = best_device()
        loaded, self._tokenizer = load_verifier(model, len(config.data.labels))
        self._model = loaded.to(device)
        self._autocast = autocast_dtype(config.synthesis.precision, device)
        self._max_length = config.teacher.max_length

    def __call__(self, table: pa.Table) -> pa.Table:
        reasons = table[schema.REJECT_REASON].to_pylist()
        passed = [i for i, reason in enumerate(reasons) if reason is None]
        logits: list[np.ndarray | None] = [None] * table.num_rows
        if passed:
            texts = table[schema.TEXT].take(passed).to_pylist()
            scored = predict_logits(
                self._model,
                self._tokenizer,
                texts,
                max_length=self._max_length,
                autocast=self._autocast,
            )
            for i, row in zip(passed, scored, strict=True):
                if np.isfinite(row).all():
                    logits[i] = row
                else:
                    reasons[i] = schema.NON_FINITE
        columns = {name: table[name] for name in schema.POOL.names}
        columns[schema.REJECT_REASON] = pa.array(reasons, pa.string())
        columns[schema.TEACHER_LOGITS] = pa.array(logits, pa.list_(pa.float32()))
        return pa.table(columns, schema=schema.POOL)
