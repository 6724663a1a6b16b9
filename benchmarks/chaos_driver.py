"""The driver of `chaos.py`: `sentisynth synthesize`, with each finished unit of each stage noted.

Each driver counts what earlier ones left before it begins, or a part of it, or all while new units
are made, as happens in a pool of millions: which, it draws.

python benchmarks/chaos_driver.py TRACE_DIR RECIPE [key=value ...] --out DIR
"""

import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sentisynth.data import pool
from sentisynth.data.units import Unit
from sentisynth.flows import synthesize
from sentisynth.runtime.pools import StreamPool, stream_pools


def traced(name: str, build: Callable[[], Any], trace: Path) -> Callable[..., Any]:
    """A stage that adds the name of each unit it finished to a file of its process."""
    stage = build()
    path = trace / f"{name}-{os.getpid()}-{os.urandom(4).hex()}.trace"

    def call(unit: Unit, table: Any) -> Any:
        made = stage(unit, table)
        with path.open("a") as file:
            file.write(f"{unit.label}/{unit.number}\n")
        return made

    path.touch()
    return call


def pools(trace: Path, *args: Any, **kwargs: Any) -> list[StreamPool]:
    return [
        replace(
            some, builds={n: partial(traced, n, build, trace) for n, build in some.builds.items()}
        )
        for some in stream_pools(*args, **kwargs)
    ]


if __name__ == "__main__":
    from sentisynth.cli import main

    with (
        patch.object(synthesize, "stream_pools", partial(pools, Path(sys.argv[1]))),
        patch.object(pool, "_COUNTING_S", random.choice((2.0, 0.01, 0.0))),
        patch.object(pool, "_NEARLY", -1.0),
    ):
        sys.exit(main(["synthesize", *sys.argv[2:], "--progress", "json"]))
