"""Units in, candidates out. Arrow in, Arrow out; no Ray."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.text import clean
from sentisynth.data.units import Unit, nth_unit
from sentisynth.generation.engine import UnitGenerator


class Generate:
    """A table of one row, the plan's position `id` of a unit, to that unit's candidates.

    `wanted` is asked first; a unit that nobody wants any more becomes a table of no rows.
    """

    def __init__(self, model: Path, config: RunConfig, wanted: Callable[[Unit], bool]) -> None:
        torch.set_num_threads(config.synthesis.generate_pool.threads)
        self._generate = UnitGenerator(model, config)
        self._config = config
        self._wanted = wanted

    def __call__(self, plan: pa.Table) -> pa.Table:
        (position,) = plan["id"].to_pylist()
        size, n_labels = self._config.synthesis.unit_size, len(self._config.data.labels)
        unit = nth_unit(position, n_labels, size)
        if not self._wanted(unit):
            return schema.POOL.empty_table()
        return self.unit(unit)

    def unit(self, unit: Unit) -> pa.Table:
        """The candidates of a unit as a `schema.POOL` table, not screened, not scored."""
        made = self._generate(unit)
        lowercase = self._config.data.lowercase
        return pa.table(
            {
                schema.CANDIDATE_ID: unit.candidate_ids(),
                schema.LABEL: [unit.label] * unit.size,
                schema.TEXT: [clean(text, lowercase) for text in made.texts],
                schema.PROMPT: [made.prompt] * unit.size,
                schema.N_TOKENS: made.n_tokens,
                schema.REJECT_REASON: pa.nulls(unit.size, pa.string()),
                schema.TEACHER_LOGITS: pa.nulls(unit.size, pa.list_(pa.float32())),
            },
            schema=schema.POOL,
        )
