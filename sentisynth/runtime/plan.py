"""Which units to hand out next: as many as the actors need, few beyond the quota."""

import random
from collections import deque

from sentisynth.data.units import Unit

_SMOOTHING = 0.2
_MOST_MORE = 512
_BUNDLE_S = 0.25
_LARGEST_BUNDLE = 16


class UnitPlan:
    """The units of a run, made one by one; a plan of millions costs no memory.

    Labels take turns. A unit is handed out while its number is below its label's horizon, which
    follows what is missing from the quota, and while few enough are in flight: one a worker, and
    `n_waiting` or as many as the workers finish in a second more, whichever is more. So that is
    what a crash can cost, less what was not begun, and yet quick units hide the time that they
    take from stage to stage. Very quick units travel in bundles of a quarter of a second of work,
    since a task of Ray costs some 20 ms.
    """

    _WINDOW = 16  # units of a label that a shuffled plan draws from

    def __init__(
        self,
        *,
        n_labels: int,
        size: int,
        n_workers: int,
        n_waiting: int,
        done: set[Unit],
        shuffle: int | None = None,
    ) -> None:
        self._size, self._done = size, done
        self._n_workers, self._n_waiting = n_workers, n_waiting
        self._seconds_a_unit = float("inf")
        self._horizons = [0] * n_labels
        self._next = [0] * n_labels
        self._ahead: list[deque[int]] = [deque() for _ in range(n_labels)]
        self._random = None if shuffle is None else random.Random(shuffle)
        self._turn = 0
        self.in_flight: set[Unit] = set()

    def want(self, horizons: list[int]) -> None:
        """Let units of each label be handed out up to these numbers."""
        self._horizons = horizons

    def finished(self, unit: Unit, seconds: float) -> None:
        """The unit's file is in the pool; all stages together worked so long for it."""
        self.in_flight.discard(unit)
        if self._seconds_a_unit == float("inf"):
            self._seconds_a_unit = seconds
        self._seconds_a_unit += _SMOOTHING * (seconds - self._seconds_a_unit)

    @property
    def limit(self) -> int:
        """Units that may be in flight now."""
        a_second = self._n_workers / max(self._seconds_a_unit, 1e-3)
        return self._n_workers + max(self._n_waiting, min(int(a_second), _MOST_MORE))

    def hand_out(self) -> list[list[Unit]]:
        """The bundles of units to start now."""
        units: list[Unit] = []
        while len(self.in_flight) < self.limit:
            unit = self._take()
            if unit is None:
                break
            self.in_flight.add(unit)
            units.append(unit)
        size = max(1, min(int(_BUNDLE_S / max(self._seconds_a_unit, 1e-3)), _LARGEST_BUNDLE))
        return [units[i : i + size] for i in range(0, len(units), size)]

    def _take(self) -> Unit | None:
        n_labels = len(self._next)
        for turn in range(self._turn, self._turn + n_labels):
            label = turn % n_labels
            ahead = self._look_ahead(label)
            if ahead:
                self._turn = turn + 1
                i = self._random.randrange(len(ahead)) if self._random else 0
                number = ahead[i]
                del ahead[i]
                return Unit(label, number, self._size)
        return None

    def _look_ahead(self, label: int) -> deque[int]:
        """Numbers of the label below its horizon that come next, done ones left out."""
        ahead, window = self._ahead[label], self._WINDOW if self._random else 1
        while len(ahead) < window and self._next[label] < self._horizons[label]:
            unit = Unit(label, self._next[label], self._size)
            self._next[label] += 1
            if unit not in self._done:
                ahead.append(unit.number)
        return ahead
