import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sentisynth.config.types import TrainConfig
from sentisynth.errors import ModelError
from sentisynth.models.classifier import load_classifier
from sentisynth.models.vocabulary import embedding_name
from sentisynth.training import loop
from sentisynth.training.checkpoint import Progress, best_weights, put_weights, read_progress
from sentisynth.training.loop import decay_until, endless_batches, evaluations, fit
from sentisynth.training.rows import Rows
from sentisynth.training.tasks import (
    ClassificationTask,
    LanguageModelTask,
    classification_rows,
    language_rows,
)
from tests.conftest import RESOURCES, reviews


def corpus(split: str, n: int) -> pa.Table:
    return reviews(split, n).rename_columns(["text", "labels"])


def task(tiny_bert: Path, n: int = 30) -> ClassificationTask:
    torch.manual_seed(0)
    model, tokenizer = load_classifier(str(tiny_bert), ["n", "p"])
    rows = [classification_rows(t, tokenizer, 32) for t in (corpus("train", n), VALIDATION)]
    return ClassificationTask(model, tokenizer, *rows)


VALIDATION = corpus("validation", 20)


def whole(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_an_epoch_sees_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 203)
    batches = endless_batches(lengths, 8, seed=1)
    epoch = [next(batches) for _ in range(26)]
    assert sorted(np.concatenate(epoch).tolist()) == list(range(203))
    spread = [np.ptp(lengths[rows]) for rows in epoch]
    assert np.mean(spread) < 15  # rows of a batch have like lengths


def test_a_text_is_learned_by_heart(tiny_bert: Path, tmp_path: Path) -> None:
    config = TrainConfig(epochs=60, batch_size=20, learning_rate=3e-3)
    entries: list[dict[str, float]] = []
    fit(task(tiny_bert), config, 1, entries.append, tmp_path)
    assert entries[-1]["train_loss"] < 0.3 * entries[0]["train_loss"]


def reweighted(rows: Rows, weights: list[float]) -> Rows:
    return dataclasses.replace(rows, weights=np.array(weights, np.float32))


def test_rows_that_weigh_nothing_teach_nothing_and_break_nothing(
    tiny_bert: Path, tmp_path: Path
) -> None:
    learned = task(tiny_bert)
    learned.rows = reweighted(learned.rows, [0.0] * 60)
    fit(learned, TrainConfig(epochs=1, batch_size=8, weight_decay=0), 1, print, tmp_path)
    assert torch.equal(whole(learned.model), whole(task(tiny_bert).model))


def test_a_step_learns_from_the_weighted_mean(tiny_bert: Path, tmp_path: Path) -> None:
    """A row of weight 3 counts as the same row three times."""
    found = []
    for i, (which, weights) in enumerate((([0, 1], [3.0, 1.0]), ([0, 0, 0, 1], [1.0] * 4))):
        learned = without_dropout(task(tiny_bert))
        rows = learned.rows
        ids = [rows.ids[rows.starts[r] : rows.starts[r + 1]].tolist() for r in which]
        learned.rows = Rows.of(ids, rows.labels[which], np.array(weights, np.float32))
        config, told = TrainConfig(epochs=1, batch_size=4, warmup_ratio=0, precision="fp32"), []
        each = [learned.loss(learned.model, np.array([row])).item() for row in range(len(which))]
        fit(learned, config, 1, told.append, tmp_path / str(i))
        assert told[0]["train_loss"] == pytest.approx(sum(each) / 4, rel=1e-5)  # Σ w L / Σ w
        found.append(whole(learned.model))
    assert torch.allclose(*found, atol=1e-6)


def test_the_loss_is_told_between_evaluations_and_changes_nothing(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    config = TrainConfig(epochs=20, batch_size=20, eval_every=30)
    told: dict[float, list[dict[str, float]]] = {}
    for seconds in (1e6, -1.0):
        monkeypatch.setattr(loop, "_PULSE_S", seconds)
        (tmp_path / str(seconds)).mkdir()
        fit(
            task(tiny_bert), config, 1, told.setdefault(seconds, []).append, tmp_path / str(seconds)
        )
    calm, often = told.values()
    assert [entry["step"] for entry in calm] == [30, 60]
    assert [entry["step"] for entry in often] == [20, 30, 40, 60]
    assert [entry for entry in often if "macro_f1" in entry] == calm


def test_a_long_epoch_is_saved_on_the_way(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = loop._save, list[int]()

    def told(work: Path, progress: Progress, *rest: Any) -> None:
        saved.append(progress.step)
        save(work, progress, *rest)

    monkeypatch.setattr(loop, "_LONGEST_UNSAVED_S", -1.0)
    monkeypatch.setattr(loop, "_save", told)
    learned = task(tiny_bert)
    config = TrainConfig(epochs=1, batch_size=1)
    fit(learned, config, 1, print, tmp_path)
    assert saved == [20, 40, 60] and len(learned.rows) == 60


def test_accumulated_forward_passes_make_the_same_step(tiny_bert: Path, tmp_path: Path) -> None:
    found, passes = [], []
    for micro in (None, 3):
        learned = without_dropout(task(tiny_bert))
        passes.append(counted(learned))
        learned.rows = reweighted(learned.rows, [1.0, 0.3] * 30)
        config = TrainConfig(epochs=1, batch_size=16, micro_batch_size=micro)
        fit(learned, config, 1, print, tmp_path / str(micro))
        found.append(whole(learned.model))
    assert torch.allclose(*found, atol=1e-6)
    assert passes[1][0] > 4 * passes[0][0]


def counted(learned: ClassificationTask) -> list[int]:
    """How many losses it computes from now on."""
    loss, found = learned.loss, [0]

    def counting(*inputs: Any) -> Any:
        found[0] += 1
        return loss(*inputs)

    learned.loss = counting  # type: ignore[method-assign]
    return found


def test_checkpointed_activations_change_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    found = []
    for checkpointed in (False, True):
        learned = task(tiny_bert)
        config = TrainConfig(epochs=1, batch_size=16, gradient_checkpointing=checkpointed)
        fit(learned, config, 1, print, tmp_path / str(checkpointed))
        assert learned.model.is_gradient_checkpointing == checkpointed
        found.append(whole(learned.model))
    assert torch.equal(*found)


def test_a_training_that_diverges_is_a_sentence(tiny_bert: Path, tmp_path: Path) -> None:
    learned = task(tiny_bert)
    with torch.no_grad():
        learned.model.classifier.bias[0] = float("nan")
    with pytest.raises(ModelError, match="the training loss is nan at step"):
        fit(learned, TrainConfig(epochs=1), 1, print, tmp_path)


def test_the_same_seed_gives_the_same_weights(tiny_bert: Path, tmp_path: Path) -> None:
    config = TrainConfig(epochs=2, batch_size=8)
    weights = []
    for name in ("a", "b"):
        learned = task(tiny_bert)
        fit(learned, config, 7, print, tmp_path / name)
        weights.append(whole(learned.model))
    assert torch.equal(*weights)


def test_the_best_weights_stay_and_patience_ends_the_training(
    tiny_bert: Path, tmp_path: Path
) -> None:
    learned = task(tiny_bert)
    config = TrainConfig(epochs=50, batch_size=20, learning_rate=5e-3, early_stopping=4)
    progress = fit(learned, config, 1, print, tmp_path)
    values = [e["macro_f1"] for e in progress.evaluations]
    best = int(np.argmax(values))
    assert progress.best_step == progress.evaluations[best]["step"]
    assert len(values) == best + 1 + 4 < 50
    put_weights(learned.model, best_weights(tmp_path), tmp_path)
    learned.model.eval()
    assert learned.evaluate(learned.model, None)["macro_f1"] == pytest.approx(values[best])


@pytest.mark.parametrize("metric", ["validation_loss", "accuracy"])
def test_another_figure_can_choose(tiny_bert: Path, tmp_path: Path, metric: str) -> None:
    config = TrainConfig.model_validate({"epochs": 20, "learning_rate": 5e-3, "metric": metric})
    progress = fit(task(tiny_bert), config, 1, print, tmp_path)
    values = [e[metric] for e in progress.evaluations]
    best = min(values) if metric == "validation_loss" else max(values)
    assert progress.evaluations[values.index(best)]["step"] == progress.best_step


def test_a_training_goes_on_from_its_checkpoint_to_the_same_weights(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """Stopped between evaluations, twice; dropout is on."""
    config = TrainConfig(epochs=4, batch_size=8, checkpoint_every=5, eval_every=7)
    learned = task(tiny_bert)
    undisturbed = fit(learned, config, 3, print, tmp_path / "a")
    for stop_at in (12, 21, 100):
        learned_again = task(tiny_bert)
        stop_after(learned_again, stop_at - read_progress(tmp_path / "b").step)
        with contextlib.suppress(KeyboardInterrupt):
            fit(learned_again, config, 3, print, tmp_path / "b")
    again = read_progress(tmp_path / "b")
    assert torch.equal(whole(learned.model), whole(learned_again.model))
    assert again.evaluations == undisturbed.evaluations and again.is_finished
    files = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in "ab"]
    assert files[0] == files[1] == [f"best-{again.best_step:08d}.safetensors", "progress.json"]
    assert (tmp_path / "a" / files[0][0]).read_bytes() == (
        tmp_path / "b" / files[0][0]
    ).read_bytes()


def test_a_training_that_is_ended_from_outside_goes_on_from_there(
    tiny_bert: Path, tmp_path: Path
) -> None:
    config = TrainConfig(epochs=4, batch_size=8)
    learned = task(tiny_bert)
    undisturbed = fit(learned, config, 3, print, tmp_path / "a")
    work = tmp_path / "b"
    found = evaluations(task(tiny_bert), config, 3, work, read_progress(work))
    for _ in range(2):
        next(found)
    found.close()
    assert read_progress(work).step == 16 and best_weights(work)
    again = task(tiny_bert)
    assert fit(again, config, 3, print, work).evaluations == undisturbed.evaluations
    assert torch.equal(whole(learned.model), whole(again.model))


def stop_after(learned: ClassificationTask, steps: int) -> None:
    """Raise in the forward pass of the step after `steps` more."""
    count, loss = iter(range(steps)), learned.loss

    def counted(forward: torch.nn.Module, rows: np.ndarray) -> torch.Tensor:
        if next(count, None) is None:
            raise KeyboardInterrupt
        return loss(forward, rows)

    learned.loss = counted  # type: ignore[method-assign]


def test_a_checkpoint_of_another_model_is_a_sentence(
    tiny_bert: Path, tiny_gpt2: Path, tmp_path: Path
) -> None:
    config = TrainConfig(epochs=2, batch_size=8, checkpoint_every=3)
    learned = task(tiny_bert)
    stop_after(learned, 4)
    with contextlib.suppress(KeyboardInterrupt):
        fit(learned, config, 3, print, tmp_path)
    model, tokenizer = load_classifier(str(tiny_gpt2), ["n", "p"])
    rows = [classification_rows(t, tokenizer, 32) for t in (corpus("train", 30), VALIDATION)]
    other = ClassificationTask(model, tokenizer, *rows)
    with pytest.raises(ModelError, match="the checkpoint in .* is of another model"):
        fit(other, config, 3, print, tmp_path)


@pytest.mark.parametrize("name", ["progress.json", "state-00000003.safetensors"])
def test_a_damaged_checkpoint_is_a_sentence(tiny_bert: Path, tmp_path: Path, name: str) -> None:
    config = TrainConfig(epochs=2, batch_size=8, checkpoint_every=3)
    learned = task(tiny_bert)
    stop_after(learned, 4)
    with contextlib.suppress(KeyboardInterrupt):
        fit(learned, config, 3, print, tmp_path)
    (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(ModelError, match="remove .* to begin this training anew"):
        fit(task(tiny_bert), config, 3, print, tmp_path)


def without_dropout(learned: ClassificationTask) -> ClassificationTask:
    for module in learned.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return learned


def test_a_smaller_table_trains_as_the_whole_one(tiny_bert: Path, tmp_path: Path) -> None:
    """Rows of the embedding that no text uses only decay; the others are trained the same."""
    config = TrainConfig(epochs=3, batch_size=8, learning_rate=1e-3, weight_decay=0.1)
    small = without_dropout(task(tiny_bert))
    vocabulary = small.vocabulary
    assert vocabulary is not None and len(vocabulary) < 500
    fit(small, config, 1, print, tmp_path / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sentisynth.training.tasks.used_vocabulary", lambda *_: None)
        full = without_dropout(task(tiny_bert))
    start = full.model.get_input_embeddings().weight.detach().clone()
    fit(full, config, 1, print, tmp_path / "full")
    trained = dict(full.model.named_parameters())
    for name, tensor in small.model.named_parameters():
        if name != embedding_name(small.model):
            torch.testing.assert_close(tensor, trained[name], atol=2e-6, rtol=1e-5)
    table = small.model.get_input_embeddings().weight.detach()
    decay = decay_until(config, 24, 24)
    grown = vocabulary.grow(start, table, decay)
    assert decay < 0.999
    torch.testing.assert_close(
        grown, full.model.get_input_embeddings().weight.detach(), atol=2e-6, rtol=1e-5
    )


def test_perplexity_is_exp_of_the_mean_over_tokens() -> None:
    from sentisynth.models.generator import control_token_id, load_generator, training_ids

    model, tokenizer = load_generator(str(RESOURCES / "gpt2-mini"), ["<N>", "<P>"])
    ids = [control_token_id(tokenizer, t) for t in ("<N>", "<P>")]
    table = corpus("validation", 6)
    rows = language_rows(table, tokenizer, ids, 64)
    model.eval()
    found = LanguageModelTask(model, tokenizer, rows, rows).evaluate(model, None)
    total, count = 0.0, 0
    for text, label in zip(table["text"].to_pylist(), table["labels"].to_pylist(), strict=True):
        row = training_ids(tokenizer, ids[label], text, 64)
        with torch.inference_mode():
            log_probs = model(torch.tensor([row])).logits[0].log_softmax(dim=-1)
        total -= sum(log_probs[i, token].item() for i, token in enumerate(row[1:]))
        count += len(row) - 1
    assert found["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-4)
    assert found["validation_loss"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_rises_then_follows_its_schedule(schedule: str) -> None:
    from sentisynth.training.loop import _rate

    settings = {"schedule": schedule, "warmup_ratio": 0.1, "learning_rate": 0.5}
    rate = _rate(TrainConfig.model_validate(settings), 100)
    values = [rate(step) / 0.5 for step in range(100)]
    assert values[0] == pytest.approx(0.1) and max(values) == 1.0
    assert values[55] == pytest.approx(1.0 if schedule == "constant" else 0.5)
