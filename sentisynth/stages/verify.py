"""The teacher scores what passed the screens. Arrow in, Arrow out; no Ray."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.models.classifier import load_verifier, score, tokenize
from sentisynth.models.devices import (
    best_device,
    device_facts,
    inference_dtype,
    memory_guarded,
)
from sentisynth.models.inference import lay_out

TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 65536}
_REMEDY = (
    "give actors more (synthesis.verify_pool.gpus; on CPUs a smaller max_actors of both pools)"
)
_LOG = logging.getLogger(__name__)


class Verify:
    """Fills `teacher_logits` (K, fp32) of rows without a reject reason.

    A row that the teacher cannot score is rejected as `untokenizable` or `non_finite`: a fact for
    the ledger, no crash.
    """

    def __init__(self, model: Path, config: RunConfig) -> None:
        self._threads = config.synthesis.verify_pool.threads
        torch.set_num_threads(self._threads)
        device = best_device()
        loaded, self._tokenizer = load_verifier(model, len(config.data.labels))
        precision = device_facts(device).verification(config.synthesis.precision)
        dtype = inference_dtype(precision, device)
        with memory_guarded("loading the teacher", _REMEDY):
            self._model = lay_out(loaded.to(device), dtype)
        self._max_length = config.teacher.max_length
        self._tokens_per_batch = TOKENS_PER_BATCH[device.type]

    def __call__(self, table: pa.Table) -> pa.Table:
        reasons = table[schema.REJECT_REASON].to_pylist()
        texts = table[schema.TEXT].to_pylist()
        logits: list[np.ndarray | None] = [None] * table.num_rows
        passed = [i for i, reason in enumerate(reasons) if reason is None]
        readable, ids = [], []
        for i, row in zip(passed, self._tokenize([texts[i] for i in passed]), strict=True):
            if row is None:
                reasons[i] = schema.UNTOKENIZABLE
            else:
                readable.append(i)
                ids.append(row)
        pad_id = self._tokenizer.pad_token_id
        torch.set_num_threads(self._threads)  # the generator may have others in the same process
        with memory_guarded(f"verification of {len(ids)} rows", _REMEDY):
            scored = score(self._model, ids, pad_id=pad_id, tokens_per_batch=self._tokens_per_batch)
        for i, row in zip(readable, scored, strict=True):
            if np.isfinite(row).all():
                logits[i] = row
            else:
                reasons[i] = schema.NON_FINITE
        columns = {name: table[name] for name in schema.POOL.names}
        columns[schema.REJECT_REASON] = pa.array(reasons, pa.string())
        columns[schema.TEACHER_LOGITS] = pa.array(logits, pa.list_(pa.float32()))
        return pa.table(columns, schema=schema.POOL)

    def _tokenize(self, texts: list[str]) -> list[list[int] | None]:
        """Token ids of each text; None where the tokenizer refuses it."""
        if not texts:
            return []
        try:
            return [*tokenize(self._tokenizer, texts, self._max_length)]
        except Exception as error:  # noqa: BLE001  tokenizers raise bare Exceptions
            if len(texts) > 1:
                return [ids for text in texts for ids in self._tokenize([text])]
            _LOG.warning("the teacher's tokenizer refuses %.80r: %s", texts[0], error)
            return [None]
