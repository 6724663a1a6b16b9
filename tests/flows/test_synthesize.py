"""The driver's loop, over streams that are played here."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sentisynth.config.load import load_config
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


@pytest.mark.parametrize(
    ("overrides", "has_kernels", "is_begun", "is_told"),
    [
        ([], True, False, True),
        ([], True, True, False),  # a pool that was begun stays what it is
        ([], False, False, False),
        (["synthesis.precision=fp32"], True, False, False),
    ],
)
def test_a_faster_precision_is_named(
    overrides: list[str], has_kernels: bool, is_begun: bool, is_told: bool
) -> None:
    told: list[str] = []
    session: Any = SimpleNamespace(
        config=load_config("quickstart", overrides),
        devices=[SimpleNamespace(has_kernels=has_kernels)],
        console=SimpleNamespace(event=lambda *_, **__: None, note=told.append),
    )
    decided = {
        "engine": "batch",
        "unit_size": 8,
        "precision": ["fp32", "fp32"],
        "devices": ["cpu", "cpu"],
    }
    synthesize._tell_engine(session, decided, is_begun=is_begun)
    assert ["precision=int8 would generate faster" in line for line in told] == [True] * is_told
