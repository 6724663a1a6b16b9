"""The stream on 1 to 64 GPUs, simulated: how much of them it keeps busy.

    python benchmarks/scaling.py [--gpus 1 8 64] [--generate-s S] [--verify-s S] [--own]
        [--json FILE]

A SIMULATION. Nodes of eight GPUs that do not exist, all on this machine (`ray.cluster_utils`). Each
GPU is a lock that its generator and its teacher take in turn, in slices of a tenth of a second, for
as long as a unit would take; what they hand on are distinct texts of 16 random words and random
logits. Everything else is the real thing: plan, Ray Data, screens, Parquet files, receipts,
duplicates, ledger, journal, all on this machine's cores, which a real cluster has more of: how
busy they were meanwhile, and how much of a core the driver took, is told beside. Ideal are GPUs /
(generate + verify) units a second; with `--own`, where generators and teachers have GPUs of their
own, what the slowest of the two stages does alone.
"""

import argparse
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import ray
from environment import environment, let_workers_import
from middle import units_done
from stream_overhead import free_generate, free_verify

from sentisynth.config.load import load_config
from sentisynth.data.pool import PoolReader
from sentisynth.data.units import Unit
from sentisynth.runtime.actors import build_screen, build_write
from sentisynth.runtime.placement import place_stream
from sentisynth.runtime.pools import placed_pools
from sentisynth.runtime.ray_cluster import cluster_resources, connected
from sentisynth.runtime.stream import UnitStream

GPUS_A_NODE, SLICE_S = 8, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--generate-s", type=float, default=8.0, help="of a unit, on a GPU")
    parser.add_argument("--verify-s", type=float, default=2.0, help="of a unit, on a GPU")
    parser.add_argument("--own", action="store_true", help="no generator shares with a teacher")
    parser.add_argument("--unit-size", type=int, default=2048)
    parser.add_argument("--units-a-gpu", type=int, default=8, help="measured, after two more")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    let_workers_import()
    rows = []
    print(
        f"{'GPUs':>5} {'units/s':>8} {'ideal':>7} {'efficiency':>10} {'candidates/s':>12} "
        f"{'cores busy':>10} {'driver':>7}"
    )
    for gpus in arguments.gpus:
        row = measured(arguments, gpus)
        rows.append(row)
        print(
            f"{gpus:5} {row['units_per_s']:8.2f} {row['ideal_units_per_s']:7.2f} "
            f"{row['efficiency']:10.3f} {row['candidates_per_s']:12,.0f} "
            f"{row['machine_busy']:10.0%} {row['driver_busy']:7.0%}",
            flush=True,
        )
    if arguments.json:
        settings = {k: v for k, v in vars(arguments).items() if k != "json"}
        result = {**environment(), "settings": settings, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


@contextmanager
def simulated(gpus: int) -> Iterator[None]:
    """A head without GPUs and nodes of up to eight."""
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 150 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **store})
    left = gpus
    while left > 0:
        own = min(left, GPUS_A_NODE)
        cluster.add_node(num_cpus=own, num_gpus=own, **store)
        left -= own
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        with connected():
            yield
    finally:
        del os.environ["RAY_ADDRESS"]
        cluster.shutdown()


def measured(arguments: argparse.Namespace, gpus: int) -> dict[str, Any]:
    """Units in the middle of a stream, once every GPU has had one."""
    own = [f"synthesis.{pool}_pool.gpus=1" for pool in ("generate", "verify") if arguments.own]
    config = load_config("quickstart", [f"synthesis.unit_size={arguments.unit_size}", *own])
    warm, wanted = 2 * gpus, arguments.units_a_gpu * gpus
    with tempfile.TemporaryDirectory(prefix="scaling-") as directory, simulated(gpus):
        pool, locks = Path(directory) / "pool", Path(directory)
        placement = place_stream(config.synthesis, cluster_resources())
        texts = [ray.put(([], []))]
        near = config.synthesis.screens.near_duplicates
        builds = {
            "generate": partial(on_gpu, free_generate, arguments.generate_s, locks),
            "screen": partial(build_screen, config.synthesis.screens, texts),
            "verify": partial(on_gpu, free_verify, arguments.verify_s, locks),
            "write": partial(build_write, pool, "plan", near),
        }
        pools = placed_pools(builds, placement)
        reader = PoolReader(pool, config, "plan")
        stream = UnitStream(pools, n_labels=2, size=arguments.unit_size, done=set())
        for n, _ in units_done(stream, reader, 2, warm + wanted):
            if n == warm:
                started, begun = time.monotonic(), time.process_time()
                psutil.cpu_percent()
            if n == warm + wanted:
                seconds, cpu = time.monotonic() - started, time.process_time() - begun
                busy = psutil.cpu_percent() / 100
    rate, ideal = wanted / seconds, gpus / (arguments.generate_s + arguments.verify_s)
    if arguments.own:
        generation = placement.generate.max_actors / arguments.generate_s
        ideal = min(generation, placement.verify.max_actors / arguments.verify_s)
    row = {
        "gpus": gpus,
        "generators, teachers": [placement.generate.max_actors, placement.verify.max_actors],
        "units": wanted,
        "units_per_s": rate,
        "ideal_units_per_s": ideal,
        "efficiency": rate / ideal,
        "candidates_per_s": rate * arguments.unit_size,
        "driver_cpu_ms_a_unit": 1000 * cpu / wanted,
        "driver_busy": cpu / seconds,
        "machine_busy": busy,
        "restarts": dict(stream.restarts),
    }
    print(row, file=sys.stderr, flush=True)
    return row


def on_gpu(build: Any, seconds: float, locks: Path) -> Any:
    """A stage that holds its GPU for `seconds` a unit."""
    stage = build()
    node = ray.get_runtime_context().get_node_id()
    (gpu,) = ray.get_gpu_ids()

    def held(unit: Unit, table: pa.Table | None) -> pa.Table:
        made: pa.Table = stage(unit, table)
        left = seconds
        with (locks / f"gpu-{node}-{gpu}").open("w") as lock:
            while left > 0:  # a GPU that two processes use goes from one to the other
                fcntl.flock(lock, fcntl.LOCK_EX)
                started = time.monotonic()
                time.sleep(min(left, SLICE_S))
                left -= time.monotonic() - started
                fcntl.flock(lock, fcntl.LOCK_UN)
                time.sleep(SLICE_S / 100)
        return made

    return held


if __name__ == "__main__":
    main()
