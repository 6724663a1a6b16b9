"""The objective against an independent calculation in numpy, from logits."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from sentisynth import schema
from sentisynth.config.types import DistilConfig
from sentisynth.data.select import real_rows, synthetic_rows
from sentisynth.models.classifier import load_classifier, predict_logits
from sentisynth.models.losses import distillation_loss
from sentisynth.training.tasks import ClassificationTask, classification_rows


def numpy_objective(
    student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, alpha: float, t: float
) -> np.ndarray:
    """L_i = α T² KL(softmax(z_t/T) ‖ softmax(z_s/T)) + (1 − α) CE(z_s, y), row by row in a loop."""
    losses = []
    for z_s, z_t, y in zip(student.astype(float), teacher.astype(float), labels, strict=True):
        p = np.exp(z_t / t) / np.exp(z_t / t).sum()
        q = np.exp(z_s / t) / np.exp(z_s / t).sum()
        kl = sum(pi * np.log(pi / qi) for pi, qi in zip(p, q, strict=True))
        ce = -np.log(np.exp(z_s[y]) / np.exp(z_s).sum())
        losses.append(alpha * t * t * kl + (1 - alpha) * ce)
    return np.array(losses)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("k", [2, 5])
def test_objective_agrees_with_numpy(alpha: float, temperature: float, k: int) -> None:
    random = np.random.default_rng(int(100 * alpha + 10 * temperature + k))
    student, teacher = random.normal(0, 2, (2, 40, k))
    labels = random.integers(0, k, 40)
    soft = torch.softmax(torch.tensor(teacher) / temperature, dim=1)
    ours = distillation_loss(
        torch.tensor(student), soft, torch.tensor(labels), alpha=alpha, temperature=temperature
    )
    wanted = numpy_objective(student, teacher, labels, alpha, temperature)
    assert np.abs(ours.numpy() - wanted).max() < 1e-6


def test_a_certain_teacher_gives_finite_loss_and_gradient() -> None:
    student = torch.zeros(1, 2, requires_grad=True)
    soft = torch.tensor([[1.0, 0.0]])
    loss = distillation_loss(student, soft, torch.tensor([0]), alpha=1.0, temperature=2.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_an_equal_student_has_no_divergence() -> None:
    z = torch.tensor([[0.3, -1.2, 2.0]])
    soft = torch.softmax(z / 3, dim=1)
    loss = distillation_loss(z, soft, torch.tensor([2]), alpha=1.0, temperature=3.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_step_weights_each_row_of_the_dataset(
    tiny_bert: Path, beta: float, temperature: float
) -> None:
    """From teacher logits through the dataset's columns to Σ w L / Σ w, as the loop computes it."""
    random = np.random.default_rng(0)
    teacher, labels = random.normal(0, 2, (6, 2)).astype(np.float32), np.array([0, 1, 1, 0, 1, 0])
    texts = [f"a film of {word}" for word in ("love", "war", "bees", "rain", "snow", "time")]
    corpus = pa.table({"text": texts[:2], "labels": labels[:2]}, schema=schema.CORPUS)
    pool = pa.table(
        {
            schema.CANDIDATE_ID: [f"x-{i}" for i in range(4)],
            schema.LABEL: labels[2:].astype(np.int32),
            schema.TEXT: texts[2:],
            schema.TEACHER_LOGITS: pa.array(list(teacher[2:]), pa.list_(pa.float32())),
        }
    )
    rows = pa.concat_tables(
        [
            real_rows(corpus, teacher[:2], temperature=temperature),
            synthetic_rows(pool, beta=beta, temperature=temperature),
        ]
    )
    model, tokenizer = load_classifier(str(tiny_bert), ["n", "p"])
    model.eval()
    config = DistilConfig(alpha=0.7, beta=beta, temperature=temperature)
    texts = rows["text"].to_pylist()
    student = predict_logits(model, tokenizer, texts, max_length=16)
    task = ClassificationTask(
        model,
        tokenizer,
        classification_rows(rows, tokenizer, 16, soft=True),
        classification_rows(corpus, tokenizer, 16),
        objective=config,
    )
    batch = np.array([0, 1, 2, 3, 4, 5, ~0])  # the last one is a filler
    loss = task.loss(model, batch) / task.weight(batch)
    w = np.array([1, 1, beta, beta, beta, beta])
    wanted = (w * numpy_objective(student, teacher, labels, 0.7, temperature)).sum() / w.sum()
    assert loss.item() == pytest.approx(wanted, abs=1e-6)
