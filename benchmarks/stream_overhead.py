"""`stream.py overhead`: stages that cost next to nothing in place of the models.

Distinct texts of 16 random words and random logits; everything else is the real thing: plan, Ray
Data, Parquet files, receipts, duplicates, ledger. Candidates a second, and the driver's memory as
the plan goes on.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sentisynth import schema
from sentisynth.config.load import load_config
from sentisynth.config.types import RunConfig
from sentisynth.data.pool import PoolReader
from sentisynth.data.units import Unit
from sentisynth.runtime.actors import build_write
from sentisynth.runtime.placement import place_stream
from sentisynth.runtime.pools import StreamPool, placed_pools
from sentisynth.runtime.ray_cluster import cluster_resources, connected
from sentisynth.runtime.stream import UnitStream

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
    per_class = arguments.candidates // 2
    config = load_config(
        "quickstart",
        [
            f"synthesis.unit_size={arguments.unit_size}",
            f"synthesis.n_per_class={per_class}",
            f"synthesis.max_candidates_per_class={per_class}",
        ],
    )
    with tempfile.TemporaryDirectory(prefix="stream-") as directory, connected():
        pool = Path(directory)
        figures = run_plan(pool, config, arguments.candidates)
        quick, then = resume_s(pool, config)
        shutil.rmtree(pool / ".receipts")
        slow = sum(resume_s(pool, config))
    return {
        **figures,
        "seconds to resume, with the journal": quick,
        "seconds of counting after that, here with nothing else to do": then,
        "seconds to resume and to count all, without the journal": slow,
    }


def run_plan(pool: Path, config: RunConfig, candidates: int) -> dict[str, Any]:
    """The stream until its plan is exhausted; figures count from when the actors are there."""
    size = config.synthesis.unit_size
    reader = PoolReader(pool, config, "plan")
    reader.recover()
    stream = UnitStream(free_pools(pool, config), n_labels=2, size=size, done=set())
    stream.want(reader.horizons())
    started, rows, ledger_s, before = 0.0, 0, 0.0, memory_mb()
    marks: list[dict[str, float]] = []
    with stream:
        for finished in stream:
            if finished is None:
                reader.count(1.0)
                if reader.exhausted() is not None and not stream.in_flight:
                    break
                continue
            if not started:
                started = time.monotonic()
                rows = -size
            begun = time.perf_counter()
            reader.journal.add(finished.receipt)
            reader.offer(finished.receipt)
            stream.want(reader.horizons())
            ledger_s += time.perf_counter() - begun
            rows += size
            if rows >= (len(marks) + 1) * candidates / 10:
                seconds = time.monotonic() - started
                indexes = sum(tally.nbytes for tally in reader.tallies) / 2**20
                mark: dict[str, float] = {
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
    reader.journal.flush()
    return {
        "candidates": seen,
        "unit_size": size,
        "candidates per second": round(rows / seconds),
        "driver's share of it in ledger and journal, microseconds a candidate": round(
            1e6 * ledger_s / seen, 1
        ),
        "driver's memory before, MB": round(before),
        "driver's memory grew by, MB": round(memory_mb() - before),
        "of it the duplicate index, MB": marks[-1]["duplicate_index_mb"] if marks else None,
        "marks": marks,
    }


def free_pools(pool: Path, config: RunConfig) -> list[StreamPool]:
    """The four stages, placed as ever, of which only the last does its real work."""
    builds = {
        "generate": free_generate,
        "screen": free_screen,
        "verify": free_verify,
        "write": partial(build_write, pool, "plan", config.synthesis.screens.near_duplicates),
    }
    return placed_pools(builds, place_stream(config.synthesis, cluster_resources()))


def resume_s(pool: Path, config: RunConfig) -> tuple[float, float]:
    """What the restart of a run of twice the size does before it hands out units: verify every
    file, count for seconds; and how long the rest of the counting takes, which it does meanwhile.
    """
    synthesis = config.synthesis
    twice = {k: 2 * getattr(synthesis, k) for k in ("n_per_class", "max_candidates_per_class")}
    config = config.model_copy(update={"synthesis": synthesis.model_copy(update=twice)})
    started = time.monotonic()
    reader = PoolReader(pool, config, "plan")
    reader.recover()
    resumed = time.monotonic()
    while reader.is_behind:
        reader.count(1.0)
    return round(resumed - started, 1), round(time.monotonic() - resumed, 1)


def memory_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
