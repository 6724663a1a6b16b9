from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from sentisynth.config.types import TrainConfig
from sentisynth.errors import ModelError
from sentisynth.models.classifier import load_classifier
from sentisynth.training.loop import endless_batches, fit
from sentisynth.training.tasks import ClassificationTask, LanguageModelTask
from tests.conftest import RESOURCES, reviews


def corpus(split: str, n: int) -> pa.Table:
    return reviews(split, n).rename_columns(["text", "labels"])


def task(tiny_bert: Path) -> ClassificationTask:
    torch.manual_seed(0)
    model, tokenizer = load_classifier(str(tiny_bert), ["n", "p"])
    return ClassificationTask(model, tokenizer, corpus("train", 30), corpus("validation", 20), 32)


def test_an_epoch_sees_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 203)
    batches = endless_batches(lengths, 8, seed=1)
    epoch = [next(batches) for _ in range(26)]
    assert sorted(np.concatenate(epoch).tolist()) == list(range(203))
    spread = [np.ptp(lengths[rows]) for rows in epoch]
    assert np.mean(spread) < 15  # rows of a batch have like lengths


def test_a_text_is_learned_by_heart(tiny_bert: Path) -> None:
    config = TrainConfig(epochs=60, batch_size=20, learning_rate=3e-3)
    entries: list[dict[str, float]] = []
    fit(task(tiny_bert), config, 1, entries.append)
    assert entries[-1]["train_loss"] < 0.3 * entries[0]["train_loss"]


def test_rows_that_weigh_nothing_teach_nothing_and_break_nothing(tiny_bert: Path) -> None:
    learned = task(tiny_bert)
    learned._weights = torch.zeros(60)
    fit(learned, TrainConfig(epochs=1, batch_size=8, weight_decay=0), 1, lambda _: None)
    before = task(tiny_bert).model.state_dict()
    for name, tensor in learned.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_step_learns_from_the_weighted_mean(tiny_bert: Path) -> None:
    """A row of weight 3 counts as the same row three times."""
    found = []
    for rows, weights in (([0, 1], [3.0, 1.0]), ([0, 0, 0, 1], [1.0] * 4)):
        learned = task(tiny_bert)
        learned.model.config.hidden_dropout_prob = 0.0
        for module in learned.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        learned._ids = [learned._ids[i] for i in rows]
        learned._labels, learned._weights = learned._labels[rows], torch.tensor(weights)
        fit(learned, TrainConfig(epochs=1, batch_size=4, warmup_ratio=0), 1, lambda _: None)
        found.append(torch.cat([p.detach().flatten() for p in learned.model.parameters()]))
    assert torch.allclose(*found, atol=1e-6)


def test_a_training_that_diverges_is_a_sentence(tiny_bert: Path) -> None:
    learned = task(tiny_bert)
    with torch.no_grad():
        learned.model.classifier.bias[0] = float("nan")
    with pytest.raises(ModelError, match="the training loss is nan at step"):
        fit(learned, TrainConfig(epochs=1), 1, lambda _: None)


def test_the_same_seed_gives_the_same_weights(tiny_bert: Path) -> None:
    config = TrainConfig(epochs=2, batch_size=8)
    weights = []
    for _ in range(2):
        learned = task(tiny_bert)
        fit(learned, config, 7, lambda _: None)
        weights.append(torch.cat([p.flatten() for p in learned.model.parameters()]))
    assert torch.equal(*weights)


def test_the_best_weights_stay_and_patience_ends_the_training(tiny_bert: Path) -> None:
    learned = task(tiny_bert)
    config = TrainConfig(epochs=50, batch_size=20, learning_rate=5e-3, early_stopping=4)
    history = fit(learned, config, 1, lambda _: None)
    values = [e["macro_f1"] for e in history.evaluations]
    best = int(np.argmax(values))
    assert history.best_step == history.evaluations[best]["step"]
    assert len(values) == best + 1 + 4 < 50
    assert learned.evaluate(None)["macro_f1"] == pytest.approx(values[best])


def test_perplexity_is_exp_of_the_mean_over_tokens() -> None:
    from sentisynth.models.generator import control_token_id, load_generator, training_ids

    model, tokenizer = load_generator(str(RESOURCES / "gpt2-mini"), ["<N>", "<P>"])
    ids = [control_token_id(tokenizer, t) for t in ("<N>", "<P>")]
    table = corpus("validation", 6)
    found = LanguageModelTask(model, tokenizer, ids, table, table, 64).perplexity()
    total, count = 0.0, 0
    for text, label in zip(table["text"].to_pylist(), table["labels"].to_pylist(), strict=True):
        row = training_ids(tokenizer, ids[label], text, 64)
        with torch.inference_mode():
            log_probs = model(torch.tensor([row])).logits[0].log_softmax(dim=-1)
        total -= sum(log_probs[i, token].item() for i, token in enumerate(row[1:]))
        count += len(row) - 1
    assert found == pytest.approx(np.exp(total / count), rel=1e-4)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_rises_then_follows_its_schedule(schedule: str) -> None:
    from sentisynth.training.loop import _rate

    rate = _rate(TrainConfig.model_validate({"schedule": schedule, "warmup_ratio": 0.1}), 100)
    values = [rate(step) for step in range(100)]
    assert values[0] == pytest.approx(0.1) and max(values) == 1.0
    assert values[55] == pytest.approx(1.0 if schedule == "constant" else 0.5)
