"""Waiting for nodes, on clusters that are told and not started."""

from types import SimpleNamespace
from typing import Any

import pytest

from sentisynth.config.load import load_config
from sentisynth.config.outside import ClusterConfig
from sentisynth.errors import PlacementError
from sentisynth.flows.session import Workplace
from sentisynth.runtime import nodes
from sentisynth.runtime.placement import Resources, place_stream


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the autoscaler was asked for; a tick takes no time."""
    found: list[Any] = []
    monkeypatch.setattr(
        "ray.autoscaler.sdk.request_resources", lambda bundles: found.append(len(bundles))
    )
    monkeypatch.setattr(nodes, "_TICK_S", 0.0)
    return found


def cluster(monkeypatch: pytest.MonkeyPatch, *gpus: int) -> None:
    """One with so many nodes of a GPU at each look, and at the end as many as at the last."""
    left = list(gpus)

    def look() -> Resources:
        n = left.pop(0) if len(left) > 1 else left[0]
        return Resources(node_cpus=(4.0,) * (n + 1), node_gpus=(0.0, *(1.0,) * n))

    monkeypatch.setattr(nodes, "cluster_resources", look)


def place(config: ClusterConfig, told: list[str]) -> Workplace:
    console = SimpleNamespace(note=told.append)
    return Workplace(directory=None, tracker=None, console=console, cluster=config)  # type: ignore[arg-type]


def test_a_stage_waits_for_gpus_that_were_taken_away(
    monkeypatch: pytest.MonkeyPatch, asked: list[Any]
) -> None:
    told: list[str] = []
    work = place(ClusterConfig(gpus=2), told)
    cluster(monkeypatch, 2)
    work.gather()
    assert told == [] and asked == []
    cluster(monkeypatch, 0, 0, 1, 2)
    work.gather()
    assert [line.split("and ")[1] for line in told] == [
        "0 of 2 GPUs are there",
        "1 of 2 GPUs are there",
    ]
    assert asked == [2, 2, 2, 0]  # at each look, since Ray forgets; it does not outlive the waiting


def test_what_never_comes_is_a_sentence(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    cluster(monkeypatch, 1)
    with pytest.raises(PlacementError, match="2 of 3 nodes and 1 of 4 GPUs are there; start more"):
        place(ClusterConfig(nodes=3, gpus=4, wait_s=0.01), []).gather()
    assert set(asked[:-1]) == {4} and asked[-1] == 0


def test_gpus_that_were_lost_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, asked: list[Any]
) -> None:
    own = ["synthesis.generate_pool.gpus=1", "synthesis.verify_pool.gpus=1"]
    config = load_config("quickstart", ["cluster.gpus=4", *own])
    before = place_stream(config.synthesis, Resources(node_cpus=(8.0,), node_gpus=(2.0,)))
    cluster(monkeypatch, 0, 1, 2)
    told: list[str] = []
    assert nodes.wait_for_room(config, before, told.append) == before
    assert asked == [4, 4, 0] and len(told) == 2


def test_a_machine_alone_is_not_asked(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    cluster(monkeypatch, 0)
    place(ClusterConfig(), []).gather()
    assert asked == []
