"""Stage C as one Ray Data stream: plan, generate, screen, verify, write."""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from sentisynth.config.types import RunConfig
from sentisynth.data.units import Unit, nth_unit
from sentisynth.runtime.actors import AskDemand, Demand, ScreenFromStore, WriteUnit
from sentisynth.runtime.ray_cluster import (
    SCREEN_CPUS,
    WRITE_CPUS,
    PoolPlacement,
    cluster_resources,
    place_stream,
)
from sentisynth.stages.generate import Generate
from sentisynth.stages.verify import Verify


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
        synthesis = config.synthesis
        n_labels, size = len(config.data.labels), synthesis.unit_size
        n_units = n_labels * -(-synthesis.max_candidates_per_class // size)
        plan_blocks = [
            pa.table({"id": [n]}) for n in range(n_units) if nth_unit(n, n_labels, size) not in done
        ]
        placement = place_stream(synthesis, cluster_resources())

        _quieten()
        texts = ray.put((evaluation_texts, seed_texts))
        self._units = (
            ray.data.from_arrow(plan_blocks)
            .map_batches(
                Generate,
                fn_constructor_args=(generator, config, AskDemand(self._demand)),
                **_pool(placement.generate),
            )
            .map_batches(
                ScreenFromStore,
                fn_constructor_args=(synthesis.screens, [texts]),
                **_pool(PoolPlacement(min_actors=1, max_actors=1, cpus=SCREEN_CPUS, gpus=0)),
            )
            .map_batches(Verify, fn_constructor_args=(teacher, config), **_pool(placement.verify))
            .map_batches(
                WriteUnit,
                fn_constructor_args=(pool, plan, size),
                **_pool(PoolPlacement(min_actors=1, max_actors=1, cpus=WRITE_CPUS, gpus=0)),
            )
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
