"""The middle of a stream: units counted once all actors are at work."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentisynth.config.types import RunConfig
from sentisynth.data.pool import PoolReader
from sentisynth.runtime.placement import place_stream
from sentisynth.runtime.pools import StreamPool, stream_pools
from sentisynth.runtime.ray_cluster import cluster_resources
from sentisynth.runtime.stream import Finished, UnitStream

Texts = tuple[list[str], list[str]]
"""Evaluation texts, and seed texts."""


def pools_of(run: Path, config: RunConfig, texts: Texts, pool: Path) -> list[StreamPool]:
    """The stages of a finished run's models, as they would stand on this cluster."""
    evaluation_texts, seed_texts = texts
    return stream_pools(
        config,
        place_stream(config.synthesis, cluster_resources()),
        generator=run / "generator",
        teacher=run / "teacher",
        pool=pool,
        plan="plan",
        evaluation_texts=evaluation_texts,
        seed_texts=seed_texts,
    )


def units_done(
    stream: UnitStream, reader: PoolReader, n_labels: int, n: int
) -> Iterator[tuple[int, Finished]]:
    """The first n units of a stream that goes on after them, counted from 1, each noted as the
    driver of a run notes it.
    """
    stream.want([n] * n_labels)
    count = 0
    with stream:
        for finished in stream:
            if finished is None:
                continue
            count += 1
            reader.journal.add(finished.receipt)
            reader.offer(finished.receipt)
            yield count, finished
            if count == n:
                return
    raise AssertionError("the stream ended early")


def seconds_of(finished: list[Finished]) -> dict[str, Any]:
    """Seconds of each stage over units."""
    worked: Counter[str] = Counter()
    for unit in finished:
        worked.update(unit.seconds)
    return dict(worked)
