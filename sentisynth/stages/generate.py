"""Units in, candidates out. No Ray."""

from pathlib import Path

import pyarrow as pa
import torch

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.text import clean
from sentisynth.data.units import Unit
from sentisynth.generation.engine import UnitGenerator
from sentisynth.models.devices import memory_guarded

_REMEDY = (
    "lower synthesis.unit_size, or give actors more (generate_pool.gpus; on CPUs a smaller "
    "max_actors of both pools)"
)


class Generate:
    """A unit to the table of its candidates."""

    def __init__(self, model: Path, config: RunConfig) -> None:
        self._threads = config.synthesis.generate_pool.threads
        torch.set_num_threads(self._threads)
        with memory_guarded("loading the generator", _REMEDY):
            self._generate = UnitGenerator(model, config)
        self._lowercase = config.data.lowercase

    def __call__(self, unit: Unit) -> pa.Table:
        """The candidates of a unit as a `schema.POOL` table, not screened, not scored."""
        torch.set_num_threads(self._threads)  # the teacher may have others in the same process
        with memory_guarded(f"generation of {unit.size} rows", _REMEDY):
            made = self._generate(unit)
        reasons = [schema.NON_FINITE if text is None else None for text in made.texts]
        return pa.table(
            {
                schema.CANDIDATE_ID: unit.candidate_ids(),
                schema.LABEL: [unit.label] * unit.size,
                schema.TEXT: [clean(text or "", self._lowercase) for text in made.texts],
                schema.PROMPT: [made.prompt] * unit.size,
                schema.N_TOKENS: made.n_tokens,
                schema.REJECT_REASON: pa.array(reasons, pa.string()),
                schema.TEACHER_LOGITS: pa.nulls(unit.size, pa.list_(pa.float32())),
            },
            schema=schema.POOL,
        )
