"""The trainings of a run, as functions: what they save is what was asked for."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from sentisynth import schema
from sentisynth.config.load import load_config
from sentisynth.models.classifier import load_classifier
from sentisynth.models.generator import load_generator
from sentisynth.training.jobs import _class_weights, adapt
from sentisynth.training.rows import Rows
from sentisynth.training.tasks import ClassificationTask, classification_rows
from tests.conftest import reviews


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    for name, split, n in (("seed", "train", 24), ("validation", "validation", 8)):
        table = reviews(split, n).rename_columns([schema.TEXT, schema.LABELS])
        pq.write_table(table, path / f"{name}.parquet")
    pq.write_table(table, path / "test.parquet")
    return path


def test_adapters_are_merged_into_what_is_saved(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    overrides = [f"generator.model={tiny_gpt2}", "generator.lora_rank=2"]
    overrides += ["generator.train.epochs=2", "generator.train.batch_size=8"]
    config = load_config("quickstart", overrides)
    (tmp_path / "work").mkdir()
    (tmp_path / "out").mkdir()
    adapt(config, corpus, tmp_path / "out", tmp_path / "work", print)
    found, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = [config.control_token(label) for label in (0, 1)]
    torch.manual_seed(0)
    start, tokenizer = load_generator(str(tiny_gpt2), tokens, torch.float32)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    before, after = start.state_dict(), found.state_dict()
    names = {n for n in after if not after[n].equal(before[n])}
    assert any("c_attn" in n for n in names) and not any("ln_" in n for n in names)
    embeddings = "transformer.wte.weight"
    rest = [i for i in range(len(tokenizer)) if i not in ids]
    assert after[embeddings][rest].equal(before[embeddings][rest])
    found.eval()
    prompt = torch.tensor([ids[:1]])
    assert found(prompt).logits.isfinite().all()


def test_balanced_weights_are_those_of_their_formula(corpus: Path) -> None:
    rows = pa.table({schema.TEXT: ["x"] * 8, schema.LABELS: [0, 0, 0, 0, 0, 1, 1, 2]})
    balanced = load_config("quickstart", ["teacher.class_weights=balanced"]).teacher
    assert _class_weights(balanced, rows) == pytest.approx([8 / 15, 8 / 6, 8 / 3])
    given = load_config("quickstart", ["teacher.class_weights=[0.5,2]"]).teacher
    assert _class_weights(given, rows) == [0.5, 2.0]
    assert _class_weights(load_config("quickstart").teacher, rows) is None


def test_smoothed_and_weighted_losses_are_those_of_their_formulas(tiny_bert: Path) -> None:
    model, tokenizer = load_classifier(str(tiny_bert), ["n", "p"])
    model.eval()
    table = reviews("train", 4).rename_columns([schema.TEXT, schema.LABELS])
    weights = [0.5, 2.0]
    rows: Rows = classification_rows(table, tokenizer, 32, class_weights=weights)
    labels = table[schema.LABELS].to_numpy()
    np.testing.assert_allclose(rows.weights_of(np.arange(len(labels))), np.take(weights, labels))
    task = ClassificationTask(model, tokenizer, rows, rows, label_smoothing=0.2)
    index = np.arange(len(labels))
    with torch.no_grad():
        loss = float(task.loss(model, index))
        logits = task._logits(model, rows, index).double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    smooth = 0.8 * np.eye(2)[labels] + 0.1
    assert loss == pytest.approx((np.take(weights, labels) * -(smooth * log_p).sum(axis=1)).sum())
