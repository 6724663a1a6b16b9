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
from sentisynth.runtime.placement import Placement, place_stream
from sentisynth.runtime.ray_cluster import cluster_resources

_TICK_S = 2.0
_ANSWER_S = 60.0  # that a node may take to start a process and look


def gather(config: ClusterConfig, tell: Callable[[str], None]) -> None:
    """Wait until the cluster has the nodes and GPUs that are asked for.

    A cluster that scales itself is asked for the GPUs. Raises PlacementError after `wait_s`.
    """
    if config.nodes > 1 or config.gpus:
        with gpu_requests(config.gpus) as request:
            _wait(config, tell, request)


@contextmanager
def gpu_requests(gpus: int) -> Iterator[Callable[[], None]]:
    """Asks a cluster that scales itself for GPUs, at each call: Ray Data and Ray Train replace what
    was asked for every 20 s. What runs on the nodes then holds them; the request is taken back.
    """
    from ray.autoscaler.sdk import request_resources

    is_asked = False

    def request() -> None:
        nonlocal is_asked
        if gpus:
            is_asked = True
            request_resources(bundles=[{"GPU": 1}] * gpus)

    try:
        yield request
    finally:
        if is_asked:  # it would outlive the run
            request_resources(bundles=[])


def _wait(config: ClusterConfig, tell: Callable[[str], None], request: Callable[[], None]) -> None:
    until, told = time.monotonic() + config.wait_s, ""
    while True:
        found = cluster_resources()
        nodes, gpus = len(found.node_cpus), int(found.gpus)
        if nodes >= config.nodes and gpus >= config.gpus:
            return
        request()
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


def wait_for_room(config: RunConfig, before: Placement, tell: Callable[[str], None]) -> Placement:
    """Wait until the cluster can hold the stream's stages on the kind of device that they had:
    nodes that were lost may come back. Raises PlacementError after `cluster.wait_s`.
    """
    on_gpus = before.generate.gpus > 0 or before.verify.gpus > 0
    until, told = time.monotonic() + config.cluster.wait_s, ""
    with gpu_requests(max(config.cluster.gpus, 1) if on_gpus else 0) as request:
        while True:
            resources = cluster_resources()
            why = "the GPUs that the stream ran on are gone"
            if resources.gpus or not on_gpus:
                try:
                    return place_stream(
                        config.synthesis, resources if on_gpus else resources.without_gpus
                    )
                except PlacementError as error:
                    why = str(error)
            request()
            if time.monotonic() > until:
                raise PlacementError(f"{why}; nothing came back within {config.cluster.wait_s:g} s")
            if why != told:
                tell(f"   waiting for nodes: {why}")
            told = why
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
        alive = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        for answer, address in asked.items():
            if answer not in ready and address in alive:
                blind[address] = f"no answer within {_ANSWER_S:.0f} s"
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
    except ray.exceptions.RayTaskError as error:  # as where a node has not this package
        return str(error).strip().rpartition("\n")[2]
    except ray.exceptions.RayError:  # the node is gone: no reason against the storage
        return ""
