"""A Ray cluster of several nodes on one machine, by `ray start`, guarded by a token."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


class Nodes:
    """A head and more nodes, each a process group with a temp directory of its own."""

    def __init__(self, path: Path) -> None:
        token = path / "token"
        token.write_text(secrets.token_hex(32), encoding="utf-8")
        token.chmod(0o600)
        bin_folder = str(Path(sys.executable).parent)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        self.env = {
            **kept,
            "PATH": f"{bin_folder}:{kept['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        self._path, self._started = path, 0
        self._head = f"127.0.0.1:{free_port()}"
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._processes: list[subprocess.Popen[bytes]] = []
        head = [
            *("--head", f"--port={self._head.split(':')[1]}", "--include-dashboard=true"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={port}"),
        ]
        head.append(f"--ray-client-server-port={free_port()}")
        self._start(head)
        wait_for(self._answers, "the head's Jobs API")

    def add(self) -> subprocess.Popen[bytes]:
        """Start one more node."""
        return self._start([f"--address={self._head}"])

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """All processes of a node at once."""
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()
        self._processes.remove(node)

    def stop(self) -> None:
        """End all nodes."""
        for node in [*self._processes]:
            self.kill(node)
        for n in range(1, self._started + 1):
            shutil.rmtree(self._temp(n), ignore_errors=True)

    def _start(self, options: list[str]) -> subprocess.Popen[bytes]:
        self._started += 1
        temp = self._temp(self._started)
        ports = ("dashboard-agent-listen-port", "metrics-export-port", "runtime-env-agent-port")
        node = subprocess.Popen(
            [
                *(*RAY, "start", "--block", "--num-cpus=1", "--disable-usage-stats"),
                *("--node-ip-address=127.0.0.1", f"--temp-dir={temp}", *options),
                *(f"--{port}={free_port()}" for port in ports),
                "--object-store-memory=100000000",
            ],
            env=self.env,
            stdout=(self._path / f"node-{self._started}.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._processes.append(node)
        return node

    def _temp(self, n: int) -> str:
        return f"/tmp/ss{os.getpid()}n{n}"

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/api/version", timeout=2)
        except urllib.error.HTTPError as error:
            return error.code == 401  # it is there, and asks for the token
        except OSError:
            return False
        return True


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(is_so: object, what: str, seconds: float = 90.0) -> None:
    assert callable(is_so)
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.2)
