"""Torch and DeepSpeed, one worker and two: the same curves, before and after a stop."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sentisynth.config.types import TrainConfig
from sentisynth.data.files import read_json
from sentisynth.errors import ConfigError
from sentisynth.training.deepspeed_engine import deepspeed_settings
from tests.training.two_workers import ENGINES, curve

EXACT = [name for name in ENGINES if not name.endswith("bf16")]


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """Directories of all engines with two workers, and `alone`: torch with one."""
    out = tmp_path_factory.mktemp("engines")
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-m", "tests.training.two_workers", str(tiny_bert), str(out)]
    env = {**os.environ, "PYTHONPATH": str(root)}
    workers = [subprocess.Popen([*command, str(r)], cwd=root, env=env) for r in range(2)]
    assert [worker.wait(timeout=280) for worker in workers] == [0, 0]
    curve(tiny_bert, "torch", 1, out / "alone")
    return out


def losses(path: Path) -> list[float]:
    return [entry["train_loss"] for entry in read_json(path)]


@pytest.mark.parametrize("name", EXACT)
def test_curves_of_two_workers_are_those_of_one(curves: Path, name: str) -> None:
    """Half the batch each, weighted rows and a filler included: Σ w L / Σ w is global."""
    alone = losses(curves / "alone" / "undisturbed.json")
    assert losses(curves / name / "undisturbed.json") == pytest.approx(alone, abs=1e-4)
    assert len(alone) == 3 and alone[-1] < 0.9 * alone[0]


@pytest.mark.parametrize("name", [n for n in ENGINES if n not in EXACT])
def test_bf16_learns_much_the_same(curves: Path, name: str) -> None:
    alone = losses(curves / "alone" / "undisturbed.json")
    assert losses(curves / name / "undisturbed.json") == pytest.approx(alone, abs=0.05)


@pytest.mark.parametrize("name", ENGINES)
def test_a_stopped_training_ends_with_the_same_weights(curves: Path, name: str) -> None:
    first, second = (
        load_file(next((curves / name / kind).glob("best-*.safetensors")))
        for kind in ("undisturbed", "stopped")
    )
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert tensor.equal(second[key]), key
    found = [read_json(curves / name / f"{kind}.json") for kind in ("undisturbed", "stopped")]
    assert found[0] == found[1]


def test_a_checkpoint_does_not_depend_on_the_engine(curves: Path) -> None:
    first, second = (
        load_file(next((curves / name / "undisturbed").glob("best-*.safetensors")))
        for name in ("torch", "zero-3")
    )
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        # softmax does not see a shift of all keys: that gradient is rounding, which AdamW scales up
        if not key.endswith("key.bias"):
            assert (tensor - second[key]).abs().max() < 1e-4, key


def settings_of(**train: object) -> dict[str, Any]:
    config = TrainConfig.model_validate({"batch_size": 48, "engine": "deepspeed", **train})
    return deepspeed_settings(config, torch.device("cpu"), 2)


def test_the_users_settings_go_through_and_ours_fill_in() -> None:
    theirs = {
        "train_micro_batch_size_per_gpu": "auto",
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "wall_clock_breakdown": True,
    }
    found = settings_of(deepspeed=theirs, micro_batch_size=6)
    assert found["train_micro_batch_size_per_gpu"] == 6
    assert found["gradient_accumulation_steps"] == 4
    assert found["zero_optimization"] == {"stage": 2, "overlap_comm": False}
    assert found["wall_clock_breakdown"] and theirs["train_micro_batch_size_per_gpu"] == "auto"


@pytest.mark.parametrize(
    ("theirs", "train", "sentence"),
    [
        ({"gradient_clipping": 5}, {}, "train.deepspeed.gradient_clipping is 5"),
        (
            {"bf16": {"enabled": True}},
            {"precision": "fp32"},
            "train.deepspeed.bf16.enabled is True",
        ),
        ({"fp16": True}, {}, "train.deepspeed.fp16 is True; it must be a mapping"),
        ({"optimizer": {"type": "Lamb"}}, {}, "has a section 'optimizer'; leave it out"),
        (
            {"zero_optimization": {"stage": 2}},
            {"zero_stage": 3},
            "train.deepspeed.zero_optimization.stage is 2",
        ),
        ({"train_micro_batch_size_per_gpu": 7}, {}, "train_micro_batch_size_per_gpu is 7"),
        ({}, {"precision": "fp16"}, "DeepSpeed has no fp16 on a CPU"),
    ],
)
def test_settings_that_contradict_ours_are_a_sentence(
    theirs: dict[str, Any], train: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        settings_of(deepspeed=theirs, **train)
