"""How far the stream is: accepted rows by class, rates, time left."""

import time
from typing import Any

from sentisynth.data.pool import PoolReader
from sentisynth.data.units import Unit
from sentisynth.flows.console import duration


class StreamProgress:
    """Figures of a stream at work.

    Rates count from the first finished unit on, since the time before it went to loading models;
    what an earlier command had made counts for the quota alone.
    """

    def __init__(self, reader: PoolReader, labels: tuple[str, ...], quota: int) -> None:
        self._reader, self._labels, self._quota = reader, labels, quota
        self._started = 0.0
        self._accepted_before = self._accepted()
        self.units = 0
        self._rows = 0

    def finished_unit(self, unit: Unit) -> None:
        """Count a unit whose file is in the pool."""
        self.units += 1
        if self.units == 1:
            self._started = time.monotonic()
            self._accepted_before = self._accepted()
        else:
            self._rows += unit.size

    def figures(self) -> dict[str, Any]:
        """Accepted rows by class, acceptance rate of what was counted, rows and tokens a second."""
        ledgers = [tally.ledger for tally in self._reader.tallies]
        generated = sum(ledger.generated for ledger in ledgers)
        tokens = sum(ledger.n_tokens for ledger in ledgers)
        seconds = time.monotonic() - self._started if self._rows else 0.0
        rows_s = self._rows / seconds if seconds else 0.0
        return {
            "accepted": self._accepted(),
            "acceptance": sum(self._accepted().values()) / generated if generated else 0.0,
            "rows_per_s": rows_s,
            "tokens_per_s": rows_s * tokens / generated if generated else 0.0,
        }

    def line(self) -> str:
        """The line of progress on the console."""
        figures = self.figures()
        counted = "  ".join(
            f"{name} {min(n, self._quota)}/{self._quota}" for name, n in figures["accepted"].items()
        )
        if not self._rows:
            return f"{counted}  {'models are loading' if not self.units else ''}".rstrip()
        return (
            f"{counted}  accepted {figures['acceptance']:.0%}  {figures['rows_per_s']:.0f} rows/s  "
            f"{figures['tokens_per_s']:.0f} tokens/s  {self._left()}"
        )

    def _left(self) -> str:
        seconds = time.monotonic() - self._started
        waits = []
        for name, accepted in self._accepted().items():
            missing, got = self._quota - accepted, accepted - self._accepted_before[name]
            if missing > 0:
                waits.append(seconds * missing / got if got > 0 else float("inf"))
        longest = max(waits, default=0.0)
        return "time left unknown" if longest == float("inf") else f"{duration(longest)} left"

    def _accepted(self) -> dict[str, int]:
        tallies = zip(self._labels, self._reader.tallies, strict=True)
        return {name: tally.ledger.accepted for name, tally in tallies}
