import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sentisynth.config.load import load_config
from sentisynth.errors import PlacementError
from sentisynth.runtime import actors


@pytest.mark.parametrize("name", ["generate", "verify"])
def test_an_actor_that_does_not_see_its_gpu_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    entered: list[Any] = []
    reports = SimpleNamespace(
        add=SimpleNamespace(remote=told.append), enter=SimpleNamespace(remote=entered.append)
    )
    context = SimpleNamespace(was_current_actor_reconstructed=False, current_actor="this one")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(actors.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(actors.ray, "get", lambda sent: sent)
    monkeypatch.setattr(actors.ray, "is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(actors, "leave_in_time", lambda: None)  # this process is pytest's
    monkeypatch.setattr(f"sentisynth.stages.{name}.{name.title()}", lambda *_: None)
    build = partial(getattr(actors, f"build_{name}"), Path("model"), load_config("quickstart", []))
    context.get_accelerator_ids = lambda: {"GPU": []}
    actors.UnitStages({name: build}, None, reports)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # whatever its node has
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    context.get_accelerator_ids = lambda: {"GPU": ["0"]}
    with pytest.raises(PlacementError, match="was given a GPU and sees none.*driver"):
        actors.UnitStages({name: build}, None, reports)
    ((kind, error),) = told
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0" and entered == ["this one"] * 2
    assert kind == actors.FAILED and isinstance(error, PlacementError)
