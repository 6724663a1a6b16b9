"""Nodes that come and go while a stream runs."""

import time

from sentisynth.runtime.placement import Placement
from sentisynth.runtime.ray_cluster import cluster_resources, gpu_kinds

_SHORTEST_PATIENCE_S = 30.0  # without a unit, once nodes are lost
_LONGEST_PATIENCE_S = 600.0
_GAIN = 1.25  # of GPUs, or of CPUs where there are none, that is worth loading models again
_SETTLED_S = 60.0  # for which a larger cluster stays as it is before it is used


class ClusterChangedError(Exception):
    """The stream is to be opened anew, on the cluster as it is now; what it made is kept."""


class NodesLostError(ClusterChangedError):
    """Nodes are gone, and units at work there never finish."""


class NodesGainedError(ClusterChangedError):
    """There is much more to work with than when the stream was opened."""


class UnbalancedError(ClusterChangedError):
    """A stage waits for the other; `placement` has sizes by their measured pace."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        super().__init__(
            f"by their pace, {placement.generate.max_actors} generators and "
            f"{placement.verify.max_actors} teachers keep each other busy"
        )


class ClusterWatch:
    """Compares the cluster with what it was when the stream was opened. Nodes with GPUs of another
    kind do not count: they would give units other bytes.
    """

    def __init__(self) -> None:
        self._kinds = gpu_kinds()
        self._then = self._seen = cluster_resources()
        self._latest = self._seen_since = time.monotonic()
        self._longest_s = 0.0

    def finished(self, seconds: float) -> None:
        """A unit is done; all stages together worked so long for it."""
        self._latest = time.monotonic()
        self._longest_s = max(self._longest_s, seconds)

    def told_loss(self) -> str:
        """What the cluster has lost, in words; empty if nothing."""
        now, then = cluster_resources(self._kinds), self._then
        is_less = now.cpus < then.cpus or now.gpus < then.gpus
        return f"the cluster has {now.told} left of {then.told}" if is_less else ""

    def look(self, in_flight: int) -> None:
        """Raise ClusterChangedError where the stream should be opened anew."""
        now, then = cluster_resources(self._kinds), self._then
        if now != self._seen:
            self._seen, self._seen_since = now, time.monotonic()
        patience = min(max(_SHORTEST_PATIENCE_S, 4 * self._longest_s), _LONGEST_PATIENCE_S)
        is_stalled = in_flight > 0 and time.monotonic() - self._latest > patience
        if is_stalled and (lost := self.told_loss()):
            raise NodesLostError(f"{lost}, and units that were at work there do not finish")
        before, after = (then.gpus, now.gpus) if then.gpus else (then.cpus, now.cpus)
        if after >= _GAIN * before and time.monotonic() - self._seen_since > _SETTLED_S:
            raise NodesGainedError(f"the cluster grew from {then.told} to {now.told}")
