"""What the line of progress says, second by second."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sentisynth.config.load import load_config
from sentisynth.flows import progress as module
from sentisynth.flows.progress import StreamProgress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def ledger() -> Any:
    return SimpleNamespace(accepted=0, generated=0, counts={})


def test_what_earlier_commands_made_is_no_pace_of_this_one(clock: Clock) -> None:
    """A pool of which much is counted while the first units of a resume are made."""
    tallies = [SimpleNamespace(ledger=ledger()) for _ in range(2)]
    reader: Any = SimpleNamespace(tallies=tallies, is_behind=True, n_found_counted=0)
    stream: Any = SimpleNamespace(restarts={"generate": 0, "verify": 0}, n_restarts=0, in_flight=2)
    stream.waiting_for = lambda: "models are loading, or a unit takes long"
    config = load_config("quickstart", ["synthesis.n_per_class=2000"])
    told = StreamProgress(reader, stream, config)
    receipt: Any = SimpleNamespace(
        unit=SimpleNamespace(size=100), n_tokens=1000, n_scored_tokens=900, rows=np.arange(90)
    )
    finished: Any = SimpleNamespace(receipt=receipt, seconds={"generate": 5.0, "verify": 3.0})

    def counted(n: int, found: bool = False) -> None:
        reader.n_found_counted += found
        for tally in tallies:
            tally.ledger.accepted += n
            tally.ledger.generated += 2 * n

    assert (
        told.line()
        == "negative 0/2000  positive 0/2000  units that are there are still being counted"
    )
    counted(500, found=True)
    clock.now += 10
    assert told.figures()["seconds_left"] is None
    told.finished_unit(finished)
    counted(300, found=True)  # of those that were there, most of them
    assert told.figures()["seconds_left"] is None
    clock.now += 10
    told.finished_unit(finished)
    counted(100, found=True)
    assert told.line().endswith("units that are there are still being counted")
    reader.is_behind = False
    assert told.figures()["seconds_left"] is None
    clock.now += 10
    told.finished_unit(finished)
    counted(50)
    figures = told.figures()
    assert figures["accepted"] == {"negative": 950, "positive": 950}
    assert figures["seconds_left"] == pytest.approx(10 * 1050 / 50)
    assert told.line().endswith("2 units in flight  3:30 left")
    clock.now += 70
    assert "no unit for 1:10: models are loading" in told.line()
