"""What the stream itself costs.

    python benchmarks/stream.py overhead [--candidates N] [--unit-size N] [--json FILE]
    python benchmarks/stream.py efficiency --run DIR [--units N] [--json FILE]

`overhead`: stages that cost next to nothing (distinct texts of 16 random words, random logits) in
place of the models; everything else is the real thing: plan, Ray Data, Parquet files, receipts,
duplicates, ledger. Prints candidates a second, and the driver's memory as the plan goes on.

`efficiency`: the models of a finished run. Times generation alone and verification alone (plain
processes without Ray; on CPUs one a core, on GPUs as many as the stream has actors), the stream,
and a free-running Ray Data pipeline of the same stages without units, receipts, ledger or order,
that hands on whatever comes.
"""

import argparse
import json
import multiprocessing as mp
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from environment import environment

from sentisynth import schema
from sentisynth.config.load import load_config, read_run_config
from sentisynth.config.types import RunConfig
from sentisynth.data.pool import PoolReader
from sentisynth.data.units import Unit
from sentisynth.runtime.actors import build_generate, build_verify, build_write
from sentisynth.runtime.ray_cluster import PoolPlacement, connected
from sentisynth.runtime.stream import StreamPool, UnitStream, stream_pools
from sentisynth.training.jobs import read_splits

WORDS = np.array([f"w{i}" for i in range(20_000)])


def free_generate() -> Any:
    """Distinct texts of 16 random words: a function of the unit."""

    def generate(unit: Unit, _: Any) -> pa.Table:
        random = np.random.default_rng((unit.label, unit.number))
        words = WORDS[random.integers(0, len(WORDS), (unit.size, 16))]
        return pa.table(
            {
                schema.CANDIDATE_ID: unit.candidate_ids(),
                schema.LABEL: np.full(unit.size, unit.label, dtype=np.int32),
                schema.TEXT: [" ".join(row) for row in words.tolist()],
                schema.PROMPT: [""] * unit.size,
                schema.N_TOKENS: np.full(unit.size, 16, dtype=np.int32),
                schema.REJECT_REASON: pa.nulls(unit.size, pa.string()),
                schema.TEACHER_LOGITS: pa.nulls(unit.size, pa.list_(pa.float32())),
            },
            schema=schema.POOL,
        )

    return generate


def free_screen() -> Any:
    return lambda _, table: table


def free_verify() -> Any:
    def verify(_: Unit, table: pa.Table) -> pa.Table:
        logits = np.random.default_rng(0).normal(0, 2, (table.num_rows, 2)).astype(np.float32)
        column = table.schema.get_field_index(schema.TEACHER_LOGITS)
        return table.set_column(column, schema.POOL.field(column), pa.array(list(logits)))

    return verify


def overhead(arguments: argparse.Namespace) -> dict[str, Any]:
    """A plan of `candidates` that is run to its end; no label ever has its quota."""
    size, per_class = arguments.unit_size, arguments.candidates // 2
    config = load_config(
        "quickstart",
        [
            f"synthesis.unit_size={size}",
            f"synthesis.n_per_class={per_class}",
            f"synthesis.max_candidates_per_class={per_class}",
        ],
    )
    marks: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="stream-") as directory, connected():
        pool = Path(directory)
        placed = PoolPlacement(min_actors=1, max_actors=1, cpus=0.2, gpus=0)
        builds = {
            "generate": free_generate,
            "screen": free_screen,
            "verify": free_verify,
            "write": partial(build_write, pool, "plan", config.synthesis.screens.near_duplicates),
        }
        pools = [StreamPool(name=n, build=b, placed=placed) for n, b in builds.items()]
        reader = PoolReader(pool, config, "plan")
        reader.recover()
        stream = UnitStream(pools, n_labels=2, size=size, done=set())
        stream.want(reader.horizons())
        started, rows, ledger_s, before = 0.0, 0, 0.0, memory_mb()
        with stream:
            for finished in stream:
                if finished is None:
                    continue
                if not started:  # the actors are there
                    started = time.monotonic()
                    rows = -size
                begun = time.perf_counter()
                reader.journal.add(finished.receipt)
                reader.offer(finished.receipt)
                stream.want(reader.horizons())
                ledger_s += time.perf_counter() - begun
                rows += size
                if rows >= (len(marks) + 1) * arguments.candidates / 10:
                    seconds = time.monotonic() - started
                    indexes = sum(tally.nbytes for tally in reader.tallies) / 2**20
                    mark = {
                        "candidates": rows,
                        "candidates_per_s": round(rows / seconds),
                        "driver_mb": round(memory_mb() - before),
                        "duplicate_index_mb": round(indexes),
                    }
                    marks.append(mark)
                    print(mark, file=sys.stderr, flush=True)
                if reader.exhausted() is not None and not stream.in_flight:
                    break
        seconds = time.monotonic() - started
        seen = sum(tally.ledger.generated for tally in reader.tallies)
        grown = memory_mb() - before
        reader.journal.flush()
        del reader
        resumed = {"with": resume_s(pool, config)}
        shutil.rmtree(pool / ".receipts")
        resumed["without"] = resume_s(pool, config)
    return {
        "candidates": seen,
        "unit_size": size,
        "candidates per second": round(rows / seconds),
        "driver's share of it in ledger and journal, microseconds a candidate": round(
            1e6 * ledger_s / seen, 1
        ),
        "seconds to resume, with the journal": resumed["with"],
        "seconds to resume, without it": resumed["without"],
        "driver's memory before, MB": round(before),
        "driver's memory grew by, MB": round(grown),
        "of it the duplicate index, MB": marks[-1]["duplicate_index_mb"] if marks else None,
        "marks": marks,
    }


def resume_s(pool: Path, config: RunConfig) -> float:
    """What a restart does before it hands out units: verify every file, count every candidate."""
    started = time.monotonic()
    PoolReader(pool, config, "plan").recover()
    return round(time.monotonic() - started, 1)


def memory_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def efficiency(arguments: argparse.Namespace) -> dict[str, Any]:
    """Generation alone, verification alone, stream, and free-running, `repeats` times in turn."""
    run: Path = arguments.run.resolve()
    config = read_run_config(run)
    splits = read_splits(run / "corpus")
    held_out = [t for n in ("validation", "test") for t in splits[n][schema.TEXT].to_pylist()]
    texts = (held_out, splits["seed"][schema.TEXT].to_pylist())
    n_labels, size = len(config.data.labels), config.synthesis.unit_size
    units = [Unit(n % n_labels, n // n_labels, size) for n in range(arguments.units)]
    found: dict[str, list[float]] = {
        "generation alone": [],
        "verification alone": [],
        "stream": [],
        "free-running": [],
    }
    with connected():
        placed = {
            pool.name: pool.placed.max_actors
            for pool in stream_pools(
                config,
                generator=run / "generator",
                teacher=run / "teacher",
                pool=run,
                plan="",
                evaluation_texts=[],
                seed_texts=[],
            )
        }
    cores = len(os.sched_getaffinity(0))
    processes = placed if torch.cuda.is_available() else dict.fromkeys(placed, cores)
    tables = None
    for _ in range(arguments.repeats):
        seconds, made = alone(
            partial(build_generate, run / "generator", config), units, None, processes["generate"]
        )
        tables = tables or dict(zip(units, screened(config, texts, made), strict=True))
        found["generation alone"].append(seconds)
        seconds, _ = alone(
            partial(build_verify, run / "teacher", config), units, tables, processes["verify"]
        )
        found["verification alone"].append(seconds)
        with connected():
            found["stream"].append(streamed(run, config, texts, arguments.units).seconds)
        with connected():
            found["free-running"].append(free_running(run, config, texts, arguments.units, placed))
        print({name: round(v[-1], 1) for name, v in found.items()}, file=sys.stderr, flush=True)
    alone_s = [
        a + b for a, b in zip(found["generation alone"], found["verification alone"], strict=True)
    ]
    shares = [a / s for a, s in zip(alone_s, found["stream"], strict=True)]
    prices = [s / f - 1 for s, f in zip(found["stream"], found["free-running"], strict=True)]
    return {
        "candidates": arguments.units * size,
        "actors": placed,
        **{f"{name}, seconds": spread(values) for name, values in found.items()},
        "efficiency, (generation + verification) / stream": spread(shares),
        "price against free-running": spread(prices),
    }


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
    global _STAGE  # a process of the pool has one stage
    _STAGE = build()


def _one(work: tuple[Unit, Any]) -> pa.Table:
    return _STAGE(*work)


def _warm(work: tuple[Unit, Any]) -> None:
    _STAGE(*work)


def screened(config: RunConfig, texts: tuple[list[str], list[str]], made: list) -> list:
    from sentisynth.stages.screen import Screen

    screen = Screen(config.synthesis.screens, *texts)
    return [screen(table) for table in made]


@dataclass(frozen=True, kw_only=True)
class Middle:
    """What units in the middle of a stream took and gave."""

    seconds: float
    accepted: int
    stage_seconds: dict[str, float]


def streamed(run: Path, config: RunConfig, texts: Any, n_units: int) -> Middle:
    """Units in the middle of a stream that has begun before and goes on after."""
    n_labels, size = len(config.data.labels), config.synthesis.unit_size
    with tempfile.TemporaryDirectory(prefix="stream-") as directory:
        pool = Path(directory)
        pools = stream_pools(
            config,
            generator=run / "generator",
            teacher=run / "teacher",
            pool=pool,
            plan="plan",
            evaluation_texts=texts[0],
            seed_texts=texts[1],
        )
        reader = PoolReader(pool, config, "plan")
        warm = 4 * pools[0].placed.max_actors
        stream = UnitStream(pools, n_labels=n_labels, size=size, done=set())
        stream.want([warm + n_units] * n_labels)
        n, started, begun = 0, 0.0, 0
        worked: Counter[str] = Counter()
        with stream:
            for finished in stream:
                if finished is None:
                    continue
                n += 1
                reader.journal.add(finished.receipt)
                reader.offer(finished.receipt)
                worked.update(finished.seconds if n > warm else {})
                accepted = sum(tally.ledger.counts[schema.ACCEPTED] for tally in reader.tallies)
                if n == warm:
                    started, begun = time.monotonic(), accepted
                if n == warm + n_units:
                    return Middle(
                        seconds=time.monotonic() - started,
                        accepted=accepted - begun,
                        stage_seconds=dict(worked),
                    )
    raise AssertionError("the stream ended early")


class Free:
    """A stage of the free-running pipeline: no names, no receipts."""

    def __init__(self, build: Any) -> None:
        self._stage = build()

    def __call__(self, table: pa.Table) -> pa.Table:
        if "n" in table.column_names:
            n = table["n"][0].as_py()
            return self._stage(Unit(n % 2, n // 2, table["size"][0].as_py()), None)
        return self._stage(None, table)


def free_running(
    run: Path, config: RunConfig, texts: Any, n_units: int, placed: dict[str, int]
) -> float:
    """The same stages in a plain Ray Data pipeline; seconds for blocks in its middle."""
    import ray

    pools = stream_pools(
        config,
        generator=run / "generator",
        teacher=run / "teacher",
        pool=run,
        plan="",
        evaluation_texts=texts[0],
        seed_texts=texts[1],
    )[:3]
    warm = 4 * placed["generate"]
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
            fn_constructor_args=(pool.build,),
            batch_size=None,
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


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("overhead")
    one.add_argument("--candidates", type=int, default=500_000)
    one.add_argument("--unit-size", type=int, default=2048)
    one.set_defaults(measure=overhead)
    two = commands.add_parser("efficiency")
    two.add_argument("--run", type=Path, required=True)
    two.add_argument("--units", type=int, default=48)
    two.add_argument("--repeats", type=int, default=3)
    two.set_defaults(measure=efficiency)
    for command in (one, two):
        command.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = arguments.measure(arguments)
    for name, value in figures.items():
        if name != "marks":
            print(f"{name:72} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**environment(), **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
