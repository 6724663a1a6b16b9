"""Trials: what of them is a result, and what becomes of a listener's error. No Ray is started."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sentisynth.errors import ModelError, RunDirectoryError
from sentisynth.runtime import tune
from sentisynth.runtime.placement import Resources
from sentisynth.training.checkpoint import Progress


class Runner:
    """Two evaluations, then an error that is no sentence."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.progress, self.concluded = Progress(), list[dict[str, Any]]()

    def train(self, _: Any) -> Iterator[dict[str, Any]]:
        for step in (1, 2):
            self.progress.evaluations.append({"step": step, tune.METRIC: 0.5})
            yield self.progress.evaluations[-1]
        raise MemoryError("of the GPU")

    def conclude(self, _: Any, **how: Any) -> None:
        self.concluded.append(how)


def trial_of(runner: type[Runner], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A trial in this process."""
    monkeypatch.setattr(tune, "TrialRunner", runner)
    monkeypatch.setattr(tune, "leave_in_time", lambda: None)
    monkeypatch.setattr(tune, "_trial_of", lambda *_: SimpleNamespace(name="x"))
    setting: Any = SimpleNamespace(
        config=None,
        shared=Path(),
        out=Path(),
        teacher=Path(),
        stopping="asha",
        resources=Resources(node_cpus=(1.0,), node_gpus=(0.0,)),
    )
    return tune._trainable(setting)()


@pytest.mark.parametrize(("n_steps", "wanted"), [(2, [{"stopped": True}]), (3, [])])
def test_a_trial_that_fails_is_no_result_one_that_is_stopped_is(
    n_steps: int, wanted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of(Runner, monkeypatch)
    for _ in range(min(n_steps, 2)):
        trial.step()
    if n_steps > 2:
        with pytest.raises(MemoryError):
            trial.step()
    trial.cleanup()
    assert trial._runner.concluded == wanted


class FullDisk(Runner):
    """A directory that takes nothing."""

    def train(self, _: Any) -> Iterator[dict[str, Any]]:
        yield {"step": 1, tune.METRIC: 0.5}
        raise RunDirectoryError("best.safetensors cannot be written: No space left on device")


class Late(FullDisk):
    """One that is full when a training that fails is written down."""

    def train(self, _: Any) -> Iterator[dict[str, Any]]:
        yield {"step": 1, tune.METRIC: 0.5}
        raise ModelError("the loss is no number")

    def conclude(self, _: Any, **how: Any) -> None:
        raise RunDirectoryError("x.json cannot be written: No space left on device")


@pytest.mark.parametrize("runner", [FullDisk, Late])
def test_a_full_disk_ends_the_sweep_and_is_no_result(
    runner: type[Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of(runner, monkeypatch)
    assert "done" not in trial.step()
    last = trial.step()
    assert last["done"] and not trial._runner.concluded
    heard: list[Any] = []
    told = tune._Told(heard.append)

    def fit() -> None:
        told.on_trial_result(0, [], None, result=last)

    tuner: Any = SimpleNamespace(fit=fit)
    with pytest.raises(RunDirectoryError, match=r"No space left on device; mend that, and the sa"):
        tune._failed(tuner, told, lambda values: values)  # type: ignore[arg-type,return-value]
    trial.cleanup()
    assert not trial._runner.concluded and not heard


def test_a_listener_that_fails_is_heard_at_the_end() -> None:
    heard = []

    def listen(result: dict[str, Any]) -> None:
        heard.append(result)
        raise RunDirectoryError("no space is left")

    told = tune._Told(listen)
    for i in range(3):
        told.on_trial_result(0, [], None, result={"i": i})
    assert heard == [{"i": 0}]
    tuner: Any = SimpleNamespace(fit=list)
    with pytest.raises(RunDirectoryError, match="no space"):
        tune._failed(tuner, told, lambda values: values)  # type: ignore[arg-type,return-value]
