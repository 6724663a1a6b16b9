"""How far the stream is: accepted rows by class, rates, time left."""

import time
from collections import Counter
from typing import Any

from sentisynth.config.types import RunConfig
from sentisynth.data.pool import PoolReader
from sentisynth.flows.console import duration
from sentisynth.runtime.stream import Finished, UnitStream

_LONG_S = 60.0


class StreamProgress:
    """Figures of a stream at work.

    Rates count from the first finished unit on, since the time before it went to loading models;
    what an earlier command had made counts for the quota alone, whenever it is counted.
    """

    def __init__(self, reader: PoolReader, stream: UnitStream, config: RunConfig) -> None:
        self._reader, self._stream = reader, stream
        self._labels, self._quota = config.data.labels, config.synthesis.n_per_class
        self._started, self._latest = 0.0, time.monotonic()
        self._before, self._accepted_before = self._latest, self._accepted()
        self._found = reader.n_found_counted
        self.units = 0
        self._rows = self._tokens = 0
        self._stages: dict[str, Counter[str]] = {}

    def finished_unit(self, finished: Finished) -> None:
        """Count a unit whose file is in the pool."""
        self.units += 1
        self._latest = time.monotonic()
        if self.units == 1:
            self._started = time.monotonic()
            return
        receipt = finished.receipt
        self._rows += receipt.unit.size
        self._tokens += receipt.n_tokens
        for stage, seconds in finished.seconds.items():
            seen = self._stages.setdefault(stage, Counter())
            seen["seconds"] += seconds  # type: ignore[assignment]
            scored = stage == "verify"  # it works on what the screens let through
            seen["rows"] += len(receipt.rows) if scored else receipt.unit.size
            seen["tokens"] += receipt.n_scored_tokens if scored else receipt.n_tokens

    def pace(self, after: float) -> dict[str, float]:
        """Seconds of a unit in each stage, once units have come for so long; before, nothing."""
        if not self._rows or time.monotonic() - self._started < after:
            return {}
        n = self.units - 1  # the first one is not counted
        return {stage: seen["seconds"] / n for stage, seen in self._stages.items()}

    def figures(self) -> dict[str, Any]:
        """What is known now. A stage's rate is that of one of its actors while it works, `busy`
        how many of them work on average.
        """
        if self._found != self._reader.n_found_counted or not self._rows:
            self._before, self._accepted_before = time.monotonic(), self._accepted()
            self._found = self._reader.n_found_counted
        ledgers = dict(zip(self._labels, (t.ledger for t in self._reader.tallies), strict=True))
        generated = sum(ledger.generated for ledger in ledgers.values())
        accepted = self._accepted()
        seconds = time.monotonic() - self._started if self._rows else 0.0
        return {
            "quota": self._quota,
            "accepted": accepted,
            "acceptance": sum(accepted.values()) / generated if generated else 0.0,
            "verdicts": {name: dict(ledger.counts) for name, ledger in ledgers.items()},
            "rows_per_s": self._rows / seconds if seconds else 0.0,
            "tokens_per_s": self._tokens / seconds if seconds else 0.0,
            "stages": {
                stage: {
                    "rows_per_s": seen["rows"] / seen["seconds"] if seen["seconds"] else 0.0,
                    "tokens_per_s": seen["tokens"] / seen["seconds"] if seen["seconds"] else 0.0,
                    "busy": seen["seconds"] / seconds if seconds else 0.0,
                    "restarts": self._stream.restarts[stage],
                }
                for stage, seen in self._stages.items()
            },
            "units": self.units,
            "in_flight": self._stream.in_flight,
            "restarts": self._stream.n_restarts,
            "seconds_since_unit": time.monotonic() - self._latest,
            "seconds_left": self._seconds_left(accepted),
        }

    def line(self) -> str:
        """The line of progress on the console."""
        figures = self.figures()
        counted = "  ".join(
            f"{name} {min(n, self._quota)}/{self._quota}" for name, n in figures["accepted"].items()
        )
        restarts = f"  {figures['restarts']} restarts" if figures["restarts"] else ""
        still = "units that are there are still being counted" if self._reader.is_behind else ""
        if figures["seconds_since_unit"] > _LONG_S:
            waited = duration(figures["seconds_since_unit"])
            reason = self._stream.waiting_for() if figures["in_flight"] else still
            return f"{counted}{restarts}  no unit for {waited}: {reason}"
        if not self._rows:
            loading = "" if self.units else "models are loading"
            return f"{counted}{restarts}  {still or loading}".rstrip()
        busy = "  ".join(
            f"{stage} {figures['stages'][stage]['busy']:.1f}" for stage in ("generate", "verify")
        )
        seconds = figures["seconds_left"]
        left = "time left unknown" if seconds is None else f"{duration(seconds)} left"
        return (
            f"{counted}  accepted {figures['acceptance']:.0%}  {figures['rows_per_s']:.0f} rows/s  "
            f"{figures['tokens_per_s']:.0f} tokens/s  busy: {busy}  {figures['in_flight']} units "
            f"in flight{restarts}  {still or left}"
        )

    def _seconds_left(self, accepted: dict[str, int]) -> float | None:
        """By the label that needs longest at its rate so far; None if one has none."""
        longest, seconds = 0.0, time.monotonic() - self._before
        for name, n in accepted.items():
            missing, got = self._quota - n, n - self._accepted_before[name]
            if missing > 0 and got <= 0:
                return None
            if missing > 0:
                longest = max(longest, seconds * missing / got)
        return longest

    def _accepted(self) -> dict[str, int]:
        tallies = zip(self._labels, self._reader.tallies, strict=True)
        return {name: tally.ledger.accepted for name, tally in tallies}
