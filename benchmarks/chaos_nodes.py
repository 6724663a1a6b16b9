"""What `chaos.py` kills: nodes on this machine, and the driver of a command."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_NOT_WORKERS = ("IDLE", "DashboardAgent", "RuntimeEnvAgent")  # without its agents a raylet ends


class Nodes:
    """A head without CPUs for the driver, and nodes for the work, all on this machine."""

    def __init__(self, n: int) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            connect=False,
            head_node_args={"num_cpus": 0, "object_store_memory": 150 * 2**20},
        )
        self.address = self._cluster.address
        self._nodes = [self._add() for _ in range(n)]

    def kill_one(self, choose: random.Random) -> None:
        """SIGKILL a raylet; its workers follow it. A new node takes its place."""
        node = self._nodes.pop(choose.randrange(len(self._nodes)))
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        with suppress(Exception):  # the rest of the node, whatever is left of it
            self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._add())

    def workers(self) -> list[int]:
        """Process ids of the workers of all nodes."""
        nodes = [self._cluster.head_node, *self._nodes]
        return children({node.all_processes["raylet"][0].process.pid for node in nodes})

    def stop(self) -> None:
        self._cluster.shutdown()

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=2, object_store_memory=150 * 2**20)


class Driver:
    """`sentisynth synthesize` in a process of its own, as a user starts it."""

    def __init__(self, recipe: list[str], out: Path, trace: Path, address: str) -> None:
        self.started = time.monotonic()
        trace.mkdir(parents=True, exist_ok=True)
        self._log = (trace / f"driver-{time.time_ns()}.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "chaos_driver.py"), str(trace), *recipe, "--out", str(out)],
            env={**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": _pythonpath()},
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )

    def poll(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        return self._process.wait()

    def events(self) -> list[dict[str, Any]]:
        """The JSON lines of its progress."""
        lines = Path(self._log.name).read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith('{"event"')]

    def told(self) -> str:
        return Path(self._log.name).read_text()[-3000:]


def children(parents: set[int]) -> list[int]:
    """Ray's workers that have something to do, of these raylets."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                name = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                busy = name.startswith("ray::") and not any(x in name for x in _NOT_WORKERS)
                if busy and parent in parents:
                    found.append(int(entry.name))
    return sorted(found)


def _pythonpath() -> str:
    return os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
