"""The stream on a cluster that changes, with GPUs that do not exist: the work is a CPU's."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from sentisynth.cli import main
from sentisynth.runtime.placement import PoolPlacement
from sentisynth.runtime.pools import StreamPool
from sentisynth.runtime.stream import UnitStream
from sentisynth.runtime.watch import NodesLostError
from tests.flows.nodes import wait_for
from tests.flows.test_submit import digests, trained

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Made = Callable[..., dict[str, str]]
OWN = ["synthesis.generate_pool.gpus=1", "synthesis.verify_pool.gpus=1"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    ray.shutdown()
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    monkeypatch.setenv("RAY_ADDRESS", found.address)

    def pretend() -> None:  # in every worker: pickled whole, as it is no module's
        from sentisynth.models import devices

        devices.check_gpu = lambda: None

    ray.init(log_to_driver=False, runtime_env={"worker_process_setup_hook": pretend})
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def larger(quick_overrides: list[str]) -> list[str]:
    return [
        *quick_overrides,
        "synthesis.n_per_class=200",
        "synthesis.max_candidates_per_class=3200",
    ]


@pytest.fixture
def made(finished_run: Path, larger: list[str], tmp_path: Path) -> Made:
    """Makes the pool of the finished run's models in a directory of a name; gives its digests."""

    def make(name: str, *overrides: str) -> dict[str, str]:
        out = tmp_path / name
        trained(finished_run, out)
        assert main(["synthesize", "quickstart", *larger, *overrides, "--out", str(out)]) == 0
        return digests(out)

    return make


def test_pools_are_sized_by_their_measured_pace(
    made: Made,
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster.add_node(num_cpus=4, num_gpus=4)
    calm = made("shared")
    monkeypatch.setattr("sentisynth.flows.synthesize._MEASURED_S", 2.0)
    # a bad one: one generator, three teachers
    monkeypatch.setattr("sentisynth.runtime.placement._FIRST_GUESS", 0.25)
    capsys.readouterr()
    assert made("own", *OWN) == calm
    # three quarters of a unit's seconds are generation, or less: then two and two are faster
    told = r"(3 generators and 1|2 generators and 2) teachers keep each other busy"
    assert re.search(told, capsys.readouterr().err)


def test_a_cluster_that_grows_is_used(
    made: Made,
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sentisynth.flows import synthesize
    from sentisynth.runtime import watch

    monkeypatch.setattr(watch, "_SETTLED_S", 1.0)
    of_one_kind = {"num_cpus": 2, "num_gpus": 1, "resources": {"accelerator_type:L4": 1}}
    cluster.add_node(**of_one_kind)
    calm = made("small")
    run, grown = synthesize._run, []

    def growing(*arguments: Any) -> None:
        if not grown:
            grown.append(cluster.add_node(**of_one_kind))
        run(*arguments)

    monkeypatch.setattr(synthesize, "_run", growing)
    capsys.readouterr()
    assert made("grown") == calm
    assert "the cluster grew from 2 nodes" in capsys.readouterr().err


def loads_for_ever() -> Any:
    time.sleep(3600)


@pytest.mark.parametrize("ends_by", [NodesLostError, KeyboardInterrupt])
def test_a_stream_whose_models_load_ends_at_once(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, ends_by: type[BaseException]
) -> None:
    """Ray Data waits half an hour for its actors, and gives nobody a handle meanwhile."""
    from sentisynth.runtime import watch

    monkeypatch.setattr(watch, "_SHORTEST_PATIENCE_S", 5.0)
    cluster.add_node(num_cpus=2, num_gpus=1)
    lost = cluster.add_node(num_cpus=2, num_gpus=1)
    placed = PoolPlacement(min_actors=2, max_actors=2, cpus=0.1, gpus=1)
    pools = [StreamPool(builds={"generate": loads_for_ever}, placed=placed)]
    stream = UnitStream(pools, n_labels=1, size=8, done=set())

    def loading() -> bool:
        return len(ray.get(stream._reports.loading.remote())) == 2

    def run_until_it_ends() -> None:
        with stream:
            stream.want([2])
            wait_for(lambda: next(iter(stream)) or loading(), "both actors")
            if ends_by is KeyboardInterrupt:
                raise KeyboardInterrupt
            cluster.remove_node(lost)
            for _ in stream:
                pass

    begun = time.monotonic()
    with pytest.raises(ends_by):
        run_until_it_ends()
    assert time.monotonic() - begun < 90 and not stream._reader.is_alive()
    n_gpus = 1.0 if ends_by is NodesLostError else 2.0
    wait_for(lambda: ray.available_resources().get("GPU") == n_gpus, "the GPUs to be free", 30)
