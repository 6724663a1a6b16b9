"""One trial of a sweep: its student is that of its figures, whatever was kept of its training."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from transformers import PreTrainedModel

from sentisynth import schema
from sentisynth.config.load import load_config
from sentisynth.models.loading import load_tokenizer
from sentisynth.training.tasks import classification_rows
from sentisynth.training.trials import ROWS, SELECTIONS, VALIDATION, Trial, TrialRunner
from tests.conftest import reviews

TRIAL = Trial(alpha=0.5, beta=0.5, tau=0.9, temperature=2.0, n_per_class=0, seed=1, steps=8)


@pytest.fixture
def runner(tiny_bert: Path, tmp_path: Path) -> TrialRunner:
    """Trials of 8 steps on real rows alone, with an evaluation every 2."""
    settings = ["model=fresh:bert-tiny", "max_length=32", "train.batch_size=4"]
    settings += ["train.eval_every=2", "train.learning_rate=1e-3", "train.metric=validation_loss"]
    config = load_config("quickstart", [f"student.{setting}" for setting in settings])
    tokenizer, shared = load_tokenizer(tiny_bert), tmp_path / "shared"
    shared.mkdir()
    for name, split in ((ROWS, "train"), (VALIDATION, "validation")):
        table = reviews(split, 6).rename_columns([schema.TEXT, schema.LABELS])
        labels = pa.array([0] * table.num_rows)  # a loss that falls from step to step
        table = table.set_column(1, schema.LABELS, labels)
        soft = pa.array([[1.0, -1.0]] * table.num_rows, pa.list_(pa.float32()))
        table = table.append_column(schema.SOFT_LABELS, soft)
        table = table.append_column(schema.WEIGHTS, pa.array([1.0] * table.num_rows, pa.float32()))
        classification_rows(table, tokenizer, 32, soft=name == ROWS).save(shared / name)
    np.savez(shared / SELECTIONS, real=np.arange(12))
    return TrialRunner(shared, tmp_path / "trials", config, tiny_bert)


def trained(runner: TrialRunner, steps: int) -> None:
    """The trial at work, stopped after so many steps."""
    entries = runner.train(TRIAL)
    for entry in entries:
        if entry["step"] == steps:
            entries.close()


def weights(model: PreTrainedModel) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def same(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    one, other = weights(first), weights(second)
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("left", [0, 2, 6])
def test_a_student_is_that_of_its_figures_whatever_was_kept(runner: TrialRunner, left: int) -> None:
    """Of a trial that was cut at step 4: nothing is left, less than that, or more."""
    trained(runner, 4)
    work = runner.work(TRIAL)
    wanted, _ = runner.finished(TRIAL, 4)
    shutil.rmtree(work)
    if left:
        trained(runner, left)
    found, _ = runner.finished(TRIAL, 4)
    assert runner.progress.step == 4 and same(found, wanted)
    whole, _ = runner.finished(TRIAL, 8)
    assert runner.progress.step == 8 and not same(whole, wanted)
