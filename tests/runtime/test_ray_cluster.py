"""Which cluster a command connects to, and what of it counts."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import ray

from sentisynth.runtime import ray_cluster
from sentisynth.runtime.ray_cluster import cluster_resources, connected, gpu_kinds
from sentisynth.runtime.watch import ClusterWatch, NodesGainedError

NO_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nonexistent/token"}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:9", "use `sentisynth submit`, or HOST:6379"),
        ("nonsense://hunter2@x", "no Ray that fits answers at nonsense://"),
        ("127.0.0.1:9", "the Ray at 127.0.0.1:9 asks for a token"),
    ],
)
def test_an_address_that_is_no_cluster_is_a_sentence(address: str, said: str) -> None:
    code = (
        "from sentisynth.errors import PlacementError\n"
        "from sentisynth.runtime.ray_cluster import connected\n"
        "try:\n"
        "    connected().__enter__()\n"
        "except PlacementError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **NO_TOKEN, "RAY_ADDRESS": address},
    )
    assert said in done.stdout and "hunter2" not in done.stdout


def test_an_interpreter_whose_path_has_a_space_is_quoted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray starts Ray Train's processes by a shell, and the training would wait for ever."""
    options: dict[str, object] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **given: options.update(given))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    # else it would end the processes of the session that other tests share
    monkeypatch.setattr("sentisynth.runtime.ray_cluster.workers_ended", nullcontext)
    monkeypatch.setattr(sys, "executable", "/my projects/.venv/bin/python")
    with connected():
        assert options["runtime_env"] == {"py_executable": "'/my projects/.venv/bin/python'"}


def test_gpus_of_another_kind_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("", "L4", "L4", "A100")
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, f"accelerator_type:{kind}": 1.0}}
        if kind
        else {"Alive": True, "Resources": {"CPU": 8.0}}
        for kind in kinds
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes[:3])
    watch = ClusterWatch()
    assert gpu_kinds() == {"L4"}
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert gpu_kinds() == {"L4", "A100"}
    assert (cluster_resources().gpus, cluster_resources(frozenset({"L4"})).gpus) == (3, 2)
    monkeypatch.setattr("sentisynth.runtime.watch._SETTLED_S", -1.0)
    watch.look(1)  # a node that gives other bytes is no gain
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, nodes[1]])
    with pytest.raises(NodesGainedError, match="to 4 nodes with 20 CPUs and 3 GPUs"):
        watch.look(1)
    monkeypatch.setattr(ray, "nodes", lambda: [nodes[0], nodes[1], nodes[3]])
    assert watch.told_loss() == (
        "the cluster has 2 nodes with 12 CPUs and 1 GPUs left of 3 nodes with 16 CPUs and 2 GPUs"
    )


def test_the_token_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray makes its file with whatever mode others have."""
    monkeypatch.setenv("HOME", str(tmp_path))
    ray_cluster._keep_token_private()  # there is none
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray" / "auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    ray_cluster._keep_token_private()
    assert token.stat().st_mode & 0o777 == 0o600 and token.read_text() == "secret"
