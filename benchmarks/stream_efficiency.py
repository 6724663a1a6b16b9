"""`stream.py efficiency`: the models of a finished run, alone, in the stream, and free-running.

Times generation alone and verification alone (plain processes without Ray; on CPUs one a core, on
GPUs as many as the stream has actors), the stream, and a free-running Ray Data pipeline of the same
actors without units, receipts, files, ledger or order, that hands on whatever comes. With `--apart`
the last two are timed with a pool of actors for each stage as well.
"""

import argparse
import multiprocessing as mp
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from middle import Texts, pools_of, seconds_of, units_done

from sentisynth import schema
from sentisynth.config.load import read_run_config
from sentisynth.config.synthesis import PoolConfig
from sentisynth.config.types import RunConfig
from sentisynth.data.pool import PoolReader
from sentisynth.data.units import Unit
from sentisynth.runtime.actors import Stage, build_generate, build_verify
from sentisynth.runtime.ray_cluster import connected
from sentisynth.runtime.stream import UnitStream
from sentisynth.training.jobs import read_splits

_STAGE: Stage  # of a process of the pool


def efficiency(arguments: argparse.Namespace) -> dict[str, Any]:
    """Generation alone, verification alone, stream, and free-running, `repeats` times in turn."""
    run: Path = arguments.run.resolve()
    config = read_run_config(run)
    splits = read_splits(run / "corpus")
    held_out = [t for n in ("validation", "test") for t in splits[n][schema.TEXT].to_pylist()]
    texts = (held_out, splits["seed"][schema.TEXT].to_pylist())
    placed = actors(run, config)
    ways = {"": config}
    if arguments.apart:
        ways[", a pool a stage"] = apart(config)
    found: dict[str, list[float]] = {}
    for _ in range(arguments.repeats):
        for name, seconds in once(run, ways, texts, arguments.units, placed).items():
            found.setdefault(name, []).append(seconds)
        print({name: round(v[-1], 1) for name, v in found.items()}, file=sys.stderr, flush=True)
    alone_s = np.add(found["generation alone"], found["verification alone"])
    return {
        "candidates": arguments.units * config.synthesis.unit_size,
        "actors": placed,
        **{f"{name}, seconds": spread(values) for name, values in found.items()},
        **{
            f"efficiency{way}: (generation + verification) / stream": spread(
                alone_s / found[f"stream{way}"]
            )
            for way in ways
        },
        **{
            f"price{way}: stream / free-running - 1": spread(
                np.divide(found[f"stream{way}"], found[f"free-running{way}"]) - 1
            )
            for way in ways
        },
    }


def apart(config: RunConfig) -> RunConfig:
    """The same run with a pool for each stage: a generator a core, a teacher for two."""
    cores = len(os.sched_getaffinity(0))
    pools = {"generate_pool": cores, "verify_pool": max(1, cores // 2)}
    update = {name: PoolConfig(min_actors=n, max_actors=n) for name, n in pools.items()}
    return config.model_copy(update={"synthesis": config.synthesis.model_copy(update=update)})


def actors(run: Path, config: RunConfig) -> dict[str, int]:
    """How many of each stage the stream would have here."""
    with connected():
        pools = pools_of(run, config, ([], []), run)
        return {name: pool.placed.max_actors for pool in pools for name in pool.builds}


def once(
    run: Path, ways: dict[str, RunConfig], texts: Texts, n_units: int, placed: dict[str, int]
) -> dict[str, float]:
    """Seconds of generation and verification alone, and of stream and free-running each way."""
    config = ways[""]
    n_labels, size = len(config.data.labels), config.synthesis.unit_size
    units = [Unit(n % n_labels, n // n_labels, size) for n in range(n_units)]
    cores = len(os.sched_getaffinity(0))
    processes = placed if torch.cuda.is_available() else dict.fromkeys(placed, cores)
    seconds = {}
    generate = partial(build_generate, run / "generator", config)
    seconds["generation alone"], made = alone(generate, units, None, processes["generate"])
    tables = dict(zip(units, screened(config, texts, made), strict=True))
    verify = partial(build_verify, run / "teacher", config)
    seconds["verification alone"], _ = alone(verify, units, tables, processes["verify"])
    for way, placed_so in ways.items():
        with connected():
            seconds[f"stream{way}"] = streamed(run, placed_so, texts, n_units).seconds
        with connected():
            seconds[f"free-running{way}"] = free_running(run, placed_so, texts, n_units)
    return seconds


def alone(build: Any, units: list[Unit], tables: Any, n_processes: int) -> tuple[float, list]:
    """Seconds for the units in plain processes, models loaded before; and what they made."""
    context = mp.get_context("spawn")
    with context.Pool(n_processes, _load, (build,)) as pool:
        pool.map(
            _warm, [(units[i], tables and tables[units[i]]) for i in range(n_processes)] * 2, 1
        )
        started = time.monotonic()
        made = pool.map(_one, [(unit, tables and tables[unit]) for unit in units], 1)
        return time.monotonic() - started, made


def _load(build: Any) -> None:
    global _STAGE
    if torch.cuda.is_available():  # as Ray gives each actor one
        number = mp.current_process()._identity[0] - 1
        torch.cuda.set_device(number % torch.cuda.device_count())
    _STAGE = build()


def _one(work: tuple[Unit, Any]) -> pa.Table:
    return _STAGE(*work)


def _warm(work: tuple[Unit, Any]) -> None:
    _STAGE(*work)


def screened(config: RunConfig, texts: Texts, made: list) -> list:
    from sentisynth.stages.screen import Screen

    screen = Screen(config.synthesis.screens, *texts)
    return [screen(table) for table in made]


@dataclass(frozen=True, kw_only=True)
class Middle:
    """What units in the middle of a stream took and gave."""

    seconds: float
    accepted: int
    stage_seconds: dict[str, float]


def streamed(run: Path, config: RunConfig, texts: Texts, n_units: int) -> Middle:
    """Units in the middle of a stream that has begun before and goes on after."""
    n_labels, size = len(config.data.labels), config.synthesis.unit_size
    with tempfile.TemporaryDirectory(prefix="stream-") as directory:
        pool = Path(directory)
        pools = pools_of(run, config, texts, pool)
        reader = PoolReader(pool, config, "plan")
        warm = 4 * pools[0].placed.max_actors
        stream = UnitStream(pools, n_labels=n_labels, size=size, done=set())
        started, begun, counted = 0.0, 0, []
        for n, finished in units_done(stream, reader, n_labels, warm + n_units):
            if n > warm:
                counted.append(finished)
            if n == warm:
                started, begun = time.monotonic(), accepted(reader)
            if n == warm + n_units:
                seconds, found = time.monotonic() - started, accepted(reader) - begun
    return Middle(seconds=seconds, accepted=found, stage_seconds=seconds_of(counted))


def accepted(reader: PoolReader) -> int:
    return sum(tally.ledger.counts[schema.ACCEPTED] for tally in reader.tallies)


class Free:
    """Stages of the free-running pipeline: no names, no receipts, no files."""

    def __init__(self, builds: dict[str, Any]) -> None:
        self._stages = [build() for name, build in builds.items() if name != "write"]

    def __call__(self, table: pa.Table) -> pa.Table:
        unit = None
        if "n" in table.column_names:
            n = table["n"][0].as_py()
            unit = Unit(n % 2, n // 2, table["size"][0].as_py())
        for stage in self._stages:
            table = stage(unit, table)
        return table


def free_running(run: Path, config: RunConfig, texts: Texts, n_units: int) -> float:
    """The same stages in a plain Ray Data pipeline; seconds for blocks in its middle."""
    import ray

    pools = [pool for pool in pools_of(run, config, texts, run) if [*pool.builds] != ["write"]]
    warm = 4 * pools[0].placed.max_actors
    blocks = [
        pa.table({"n": [n], "size": [config.synthesis.unit_size]})
        for n in range(2 * warm + n_units)
    ]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = ray.data.from_arrow(blocks)
    for pool in pools:
        rows = rows.map_batches(
            Free,
            fn_constructor_args=(pool.builds,),
            batch_size=1 if pool is pools[0] else config.synthesis.unit_size,
            batch_format="pyarrow",
            num_cpus=pool.placed.cpus,
            num_gpus=pool.placed.gpus or None,
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.placed.min_actors, max_size=pool.placed.max_actors
            ),
        )
    started = 0.0
    batches = rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for n, _ in enumerate(batches, start=1):
        if n == warm:
            started = time.monotonic()
        if n == warm + n_units:
            return time.monotonic() - started
    raise AssertionError("the pipeline ended early")


def spread(values: Any) -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {deviation:.3f}"
