"""Screens: cheap reasons to reject a candidate before the teacher sees it. No torch, no Ray."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from sentisynth import schema
from sentisynth.config.synthesis import ScreensConfig
from sentisynth.data.duplicates import DuplicateIndex, Sketches, sketch
from sentisynth.data.text import is_printable, words


class Screen:
    """Fills `reject_reason`, where it is null, with the first screen that a candidate fails.

    A leak is a text equal or near to one of validation or test, a seed copy the same for the seed.
    Of equal texts in the table the first passes. Near ones are the ledger's to find, in index order
    over all units: a text that goes for an earlier unit's takes none of its own unit with it.
    """

    def __init__(
        self, config: ScreensConfig, evaluation_texts: Sequence[str], seed_texts: Sequence[str]
    ) -> None:
        self._config = config
        self._evaluation = DuplicateIndex(config.near_duplicates, evaluation_texts)
        self._seed = DuplicateIndex(config.near_duplicates, seed_texts)

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = table[schema.TEXT].to_pylist()
        facts = (table[name].to_pylist() for name in (schema.N_TOKENS, schema.REJECT_REASON))
        reasons = [
            given or self._of_itself(text, n_tokens)
            for text, n_tokens, given in zip(texts, *facts, strict=True)
        ]
        left = [i for i, reason in enumerate(reasons) if reason is None]
        sketches = self._sketch(texts, left)
        leaks, copies = self._evaluation.matches(sketches), self._seed.matches(sketches)
        for i, leak, copy in zip(left, leaks, copies, strict=True):
            if leak or copy:
                reasons[i] = schema.LEAK if leak else schema.SEED_COPY
        if leaks.any() or copies.any():
            left = [i for i in left if reasons[i] is None]
            sketches = self._sketch(texts, left)
        firsts = np.unique(sketches.keys, return_index=True)[1].tolist()
        for place in {*range(len(left))} - {*firsts}:
            reasons[left[place]] = schema.DUPLICATE
        column = table.schema.get_field_index(schema.REJECT_REASON)
        field = schema.POOL.field(schema.REJECT_REASON)
        return table.set_column(column, field, pa.array(reasons, pa.string()))

    def _sketch(self, texts: list[str], rows: list[int]) -> Sketches:
        return sketch([texts[i] for i in rows], self._config.near_duplicates)

    def _of_itself(self, text: str, n_tokens: int) -> str | None:
        if not text:
            return schema.EMPTY
        if n_tokens < self._config.min_tokens:
            return schema.TOO_SHORT
        if not is_printable(text, self._config.charset):
            return schema.CHARSET
        if repetition(text) > self._config.max_repetition:
            return schema.REPETITION
        return None


def with_beginnings(texts: Sequence[str], tokenizer: Any, n_tokens: int) -> list[str]:
    """Texts, and the first `n_tokens` tokens of those that have more: that is all a generator gives
    back of a text that it knows by heart, and of the whole one it would be no near copy.
    """
    found = tokenizer([*texts], add_special_tokens=False)["input_ids"] if texts else []
    return [*texts, *tokenizer.batch_decode([i[:n_tokens] for i in found if len(i) > n_tokens])]


def repetition(text: str) -> float:
    """Share in [0, 1] of word pairs that repeat an earlier pair; of words, where there are two."""
    found = words(text)
    items: list[object] = list(pairwise(found)) if len(found) > 2 else [*found]
    return 1 - len(set(items)) / len(items) if items else 0.0
