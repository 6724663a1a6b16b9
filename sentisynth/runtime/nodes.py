"""The nodes of a cluster: waiting for those that are asked for, and whether all see the run."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sentisynth.config.outside import ClusterConfig
from sentisynth.config.types import RunConfig
from sentisynth.data.storage import answering, is_remote
from sentisynth.errors import PlacementError, RunDirectoryError
from sentisynth.runtime.ray_cluster import cluster_resources, place_stream

_TICK_S = 2.0
_ANSWER_S = 60.0  # that a node may take to start a process and look


@contextmanager
def gathered(config: ClusterConfig, tell: Callable[[str], None]) -> Iterator[None]:
    """Wait until the cluster has the nodes and GPUs that are asked for, and hold them meanwhile.

    A cluster that scales itself is asked for the GPUs. Raises PlacementError after `wait_s`.
    """
    if config.nodes <= 1 and not config.gpus:
        yield
        return
    from ray.autoscaler.sdk import request_resources

    if config.gpus:
        request_resources(bundles=[{"GPU": 1}] * config.gpus)
    try:
        _wait(config, tell)
        yield
    finally:
        if config.gpus and ray.is_initialized():
            with suppress(ConnectionError):
                request_resources(bundles=[])


def _wait(config: ClusterConfig, tell: Callable[[str], None]) -> None:
    until, told = time.monotonic() + config.wait_s, ""
    while True:
        found = cluster_resources()
        nodes, gpus = len(found.node_cpus), int(found.gpus)
        if nodes >= config.nodes and gpus >= config.gpus:
            return
        has = f"{nodes} of {config.nodes} nodes and {gpus} of {config.gpus} GPUs are there"
        if time.monotonic() > until:
            raise PlacementError(
                f"after {config.wait_s:g} s {has}; start more nodes, raise cluster.wait_s, or "
                f"lower cluster.nodes and cluster.gpus"
            )
        if has != told:
            tell(f"   waiting: {has}")
        told = has
        time.sleep(_TICK_S)


def wait_for_room(config: RunConfig, tell: Callable[[str], None]) -> None:
    """Wait until the cluster can hold the stream's stages; nodes that were lost may come back.

    Raises PlacementError after `cluster.wait_s`.
    """
    until, told = time.monotonic() + config.cluster.wait_s, ""
    while True:
        try:
            place_stream(config.synthesis, cluster_resources())
        except PlacementError as error:
            if time.monotonic() > until:
                raise
            if str(error) != told:
                tell(f"   waiting for nodes: {error}")
            told = str(error)
        else:
            return
        time.sleep(_TICK_S)


def check_storage(directory: Path) -> None:
    """See that every node reads what this process writes in a run directory.

    Raises RunDirectoryError that names the nodes that do not. A machine alone is not asked.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    word = secrets.token_hex(8)
    path = directory / f".seen-{word}"
    with answering(directory):
        path.write_text(word, encoding="utf-8")
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_sees)
        asked = {}
        for node, address in nodes.items():
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            asked[look.options(scheduling_strategy=there).remote(path, word)] = address
        ready, _ = ray.wait([*asked], num_returns=len(asked), timeout=_ANSWER_S)
        blind = {asked[answer]: _why_not(answer) for answer in ready}
    finally:
        with suppress(OSError):
            path.unlink()
    missing = [f"{address} ({why})" for address, why in blind.items() if why]
    if missing:
        remedy = "its fsspec package and credentials" if is_remote(directory) else "that mount"
        raise RunDirectoryError(
            f"{directory} is not what these nodes see: {', '.join(missing)}; give all nodes "
            f"{remedy}, or take other storage with --out"
        )


def _sees(path: Any, word: str) -> str:
    """Runs on another node: an empty text, or why the file is not the one that was written."""
    try:
        return "" if path.read_text(encoding="utf-8") == word else "it holds something else"
    except Exception as error:  # noqa: BLE001  every kind of store has its own; it is told
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _why_not(answer: Any) -> str:
    try:
        return str(ray.get(answer))
    except ray.exceptions.RayError:  # the node is gone: no reason against the storage
        return ""
