"""The stream on a cluster that changes, with GPUs that do not exist: the work is a CPU's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from sentisynth.cli import main
from tests.flows.test_submit import digests, trained

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OWN = ["synthesis.generate_pool.gpus=1", "synthesis.verify_pool.gpus=1"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    ray.shutdown()
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    monkeypatch.setenv("RAY_ADDRESS", found.address)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def larger(quick_overrides: list[str]) -> list[str]:
    wanted = [o for o in quick_overrides if "generate_pool" not in o]
    return [*wanted, "synthesis.n_per_class=200", "synthesis.max_candidates_per_class=3200"]


def made(run: Path, out: Path, overrides: list[str]) -> dict[str, str]:
    trained(run, out)
    assert main(["synthesize", "quickstart", *overrides, "--out", str(out)]) == 0
    return digests(out)


def test_pools_are_sized_by_their_measured_pace(
    finished_run: Path,
    larger: list[str],
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster.add_node(num_cpus=4, num_gpus=4)
    calm = made(finished_run, tmp_path / "shared", larger)
    monkeypatch.setattr("sentisynth.flows.synthesize._MEASURED_S", 2.0)
    monkeypatch.setattr(
        "sentisynth.runtime.ray_cluster._FIRST_GUESS", 0.25
    )  # a bad one: one generator, three teachers
    capsys.readouterr()
    assert made(finished_run, tmp_path / "own", [*larger, *OWN]) == calm
    assert "3 generators and 1 teachers keep each other busy" in capsys.readouterr().err


def test_a_cluster_that_grows_is_used(
    finished_run: Path,
    larger: list[str],
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sentisynth.flows import synthesize
    from sentisynth.runtime import watch

    monkeypatch.setattr(watch, "_SETTLED_S", 1.0)
    cluster.add_node(num_cpus=2, num_gpus=1)
    calm = made(finished_run, tmp_path / "small", larger)
    run, grown = synthesize._run, []

    def growing(*arguments: Any) -> None:
        if not grown:
            grown.append(cluster.add_node(num_cpus=2, num_gpus=1))
        run(*arguments)

    monkeypatch.setattr(synthesize, "_run", growing)
    capsys.readouterr()
    assert made(finished_run, tmp_path / "grown", larger) == calm
    assert "the cluster grew from 2 nodes" in capsys.readouterr().err
