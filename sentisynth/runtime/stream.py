"""Stage C as one Ray Data stream: plan, generate, screen, verify, write. The one user of Ray Data."""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.units import Unit, nth_unit, write_unit
from sentisynth.runtime.ray_cluster import SCREEN_CPUS, WRITE_CPUS, PoolPlacement, place_stream
from sentisynth.stages.generate import Generate
from sentisynth.stages.screen import Screen
from sentisynth.stages.verify import Verify


class Demand:
    """An actor that knows which labels still want units; generators ask it before each unit."""

    def __init__(self, full: set[int]) -> None:
        self._full = full

    def wants(self, unit: Unit) -> bool:
        """Whether the unit's label is short of its quota."""
        return unit.label not in self._full

    def close(self, label: int) -> None:
        """The label has its quota."""
        self._full.add(label)


class UnitStream:
    """Runs the plan's units through the stages and yields each once its file is in the pool."""

    def __init__(
        self,
        config: RunConfig,
        *,
        generator: Path,
        teacher: Path,
        pool: Path,
        plan: str,
        evaluation_texts: list[str],
        seed_texts: list[str],
        done: set[Unit],
        full: set[int],
    ) -> None:
        self._config = config
        self._demand: Any = ray.remote(Demand).options(num_cpus=0).remote(full)
        demand = self._demand
        synthesis = config.synthesis
        n_labels, size = len(config.data.labels), synthesis.unit_size
        n_units = n_labels * -(-synthesis.max_candidates_per_class // size)
        plan_blocks = [
            pa.table({"id": [n]}) for n in range(n_units) if nth_unit(n, n_labels, size) not in done
        ]
        placement = place_stream(synthesis, ray.cluster_resources())

        def wanted(unit: Unit) -> bool:
            return bool(ray.get(demand.wants.remote(unit)))

        def write(table: pa.Table) -> pa.Table:
            label, index = map(int, table[schema.CANDIDATE_ID][0].as_py().split("-"))
            unit = Unit(label, index // size, size)
            write_unit(table, unit, pool, plan)
            return pa.table({"label": [unit.label], "number": [unit.number]})

        _quieten()
        texts = ray.put((evaluation_texts, seed_texts))
        self._units = (
            ray.data.from_arrow(plan_blocks)
            .map_batches(
                Generate,
                fn_constructor_args=(generator, config, wanted),
                **_pool(placement.generate),
            )
            .map_batches(
                _ScreenOnRay,
                fn_constructor_args=(config, texts),
                **_pool(PoolPlacement(min_actors=1, max_actors=1, cpus=SCREEN_CPUS, gpus=0)),
            )
            .map_batches(Verify, fn_constructor_args=(teacher, config), **_pool(placement.verify))
            .map_batches(write, batch_size=None, batch_format="pyarrow", num_cpus=WRITE_CPUS)
        )

    def __iter__(self) -> Iterator[Unit]:
        """Units in the order in which they finish; stop iterating to stop the stream."""
        size = self._config.synthesis.unit_size
        batches = self._units.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        )
        with closing(iter(batches)) as receipts:
            for receipt in receipts:
                for row in receipt.to_pylist():
                    yield Unit(row["label"], row["number"], size)

    def close_label(self, label: int) -> None:
        """Generate nothing more of this label."""
        ray.get(self._demand.close.remote(label))


class _ScreenOnRay:
    """The screen with its texts fetched from the object store."""

    def __init__(self, config: RunConfig, texts: Any) -> None:
        evaluation_texts, seed_texts = ray.get(texts)
        self._screen = Screen(config.synthesis.screens, evaluation_texts, seed_texts)

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._screen(table)


def _pool(placed: PoolPlacement) -> dict[str, Any]:
    """A unit a call: blocks are units, and a batch is a whole block."""
    return {
        "batch_size": None,
        "batch_format": "pyarrow",
        "num_cpus": placed.cpus,
        "num_gpus": placed.gpus or None,
        "compute": ray.data.ActorPoolStrategy(
            min_size=placed.min_actors, max_size=placed.max_actors
        ),
    }


def _quieten() -> None:
    """Ray Data's own progress is off: the console shows ours."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
