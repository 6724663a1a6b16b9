"""Trials: what of them is a result, and what becomes of a listener's error. No Ray is started."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sentisynth.errors import RunDirectoryError
from sentisynth.runtime import tune
from sentisynth.runtime.placement import Resources
from sentisynth.training.checkpoint import Progress


class Runner:
    """Two evaluations, then an error that is no sentence."""

    def __init__(self, *_: Any) -> None:
        self.progress, self.concluded = Progress(), list[dict[str, Any]]()

    def train(self, _: Any) -> Iterator[dict[str, Any]]:
        for step in (1, 2):
            self.progress.evaluations.append({"step": step, tune.METRIC: 0.5})
            yield self.progress.evaluations[-1]
        raise MemoryError("of the GPU")

    def conclude(self, _: Any, **how: Any) -> None:
        self.concluded.append(how)


@pytest.mark.parametrize(("n_steps", "wanted"), [(2, [{"stopped": True}]), (3, [])])
def test_a_trial_that_fails_is_no_result_one_that_is_stopped_is(
    n_steps: int, wanted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "TrialRunner", Runner)
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
    trial = tune._trainable(setting)()
    for _ in range(min(n_steps, 2)):
        trial.step()
    if n_steps > 2:
        with pytest.raises(MemoryError):
            trial.step()
    trial.cleanup()
    assert trial._runner.concluded == wanted


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
