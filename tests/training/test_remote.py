"""Trainings whose run lies in an object store."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sentisynth.data.files import read_json
from sentisynth.data.run_directory import RunDirectory
from sentisynth.data.storage import download_files, location
from sentisynth.training.jobs import teach
from sentisynth.training.remote import run_from_store
from tests.flows.test_training import corpus, settings  # noqa: F401  a fixture


class KilledError(Exception):
    """The machine is gone."""


def test_a_training_goes_on_from_the_store_on_another_machine(
    bucket: str,
    corpus: Path,  # noqa: F811
    tiny_bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings(tiny_bert, workers=1)
    directory = RunDirectory(corpus.parent)
    directory.stamp(corpus, {"a": 1})
    from sentisynth.data.storage import upload

    upload(corpus, location(f"{bucket}/train/corpus"))
    inputs = [location(f"{bucket}/train/corpus")]
    told: list[dict[str, Any]] = []

    def report(entry: dict[str, Any], after: int) -> None:
        if "macro_f1" not in entry:  # where it is slow, a training tells its loss between
            return
        told.append(entry)
        if len(told) == after:
            raise KilledError

    made = {}
    for name, deaths in (("calm", ()), ("disturbed", (1, 2))):
        told.clear()
        out, work = (location(f"{bucket}/train/{name}-{kind}") for kind in ("out", "work"))
        for attempt, after in enumerate((*deaths, 0)):
            monkeypatch.setenv("SENTISYNTH_CACHE", str(tmp_path / f"{name}-{attempt}"))
            start = partial(
                run_from_store,
                partial(teach, config),
                inputs,
                out,
                work,
                partial(report, after=after),
                str(attempt),
            )
            if after:
                with pytest.raises(KilledError):
                    start()
                continue
            start()
        download_files(out, tmp_path / name)
        made[name] = tmp_path / name
        assert [entry["step"] for entry in told] == [6, 12, 18]
    calm, disturbed = (made[name] / "model.safetensors" for name in ("calm", "disturbed"))
    assert calm.read_bytes() == disturbed.read_bytes()
    first, second = (read_json(made[name] / "metrics.json") for name in ("calm", "disturbed"))
    assert first["evaluations"] == second["evaluations"]
