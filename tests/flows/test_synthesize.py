"""The driver's loop, over streams that are played here."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sentisynth.data import pool as pool_module
from sentisynth.flows import synthesize
from tests.data.pools import configured, fill, recovered


class Quiet:
    """A stream that brings no unit for three seconds, and should have been left by then."""

    n_restarts = in_flight = 0

    def __init__(self) -> None:
        self.restarts = {"generate": 0, "verify": 0}

    def want(self, horizons: list[int]) -> None:
        pass

    def __enter__(self) -> "Quiet":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[None]:
        yield from [None] * 3
        pytest.fail("nobody counted what was there")


def test_what_was_there_is_counted_though_no_unit_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in (0, 1):
        fill(tmp_path, label, range(2))
    config = configured()
    monkeypatch.setattr(pool_module, "_COUNTING_S", -1.0)
    monkeypatch.setattr(pool_module, "_NEARLY", -1.0)
    reader = recovered(tmp_path, config)
    assert reader.is_behind
    session: Any = SimpleNamespace(console=SimpleNamespace(progress=lambda *_: None))
    log: Any = SimpleNamespace(metrics=lambda *_, **__: None)
    placement: Any = None
    stream: Any = Quiet()
    synthesize._run(session, config, placement, reader, stream, log, set())
    assert reader.all_full and not reader.is_behind
