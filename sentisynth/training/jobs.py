"""What a training worker does from start to end: load, fit, save, predict. No Ray.

`teach`, `adapt` and `distil` are stages A, B and E. The first worker writes a `save_pretrained`
directory with metrics.json; classifiers add their logits on the real splits. `work` is a directory
that all workers share and that outlives them: a job that is called again goes on from there.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sentisynth import schema
from sentisynth.config.types import DistilConfig, RunConfig, TeacherConfig, TrainConfig
from sentisynth.data.files import write_json, write_table
from sentisynth.models.classifier import load_classifier, predict_logits
from sentisynth.models.devices import autocast_dtype, best_device
from sentisynth.models.generator import (
    add_adapters,
    control_token_id,
    freeze_lower_blocks,
    load_generator,
)
from sentisynth.models.loading import save_model
from sentisynth.models.vocabulary import embedding_name, used_vocabulary
from sentisynth.seeding import derive_seed
from sentisynth.training.checkpoint import (
    Progress,
    best_weights,
    put_weights,
    read_progress,
)
from sentisynth.training.engine import chosen_engine
from sentisynth.training.loop import Report, decay_until, fit, forward_passes, seed_all
from sentisynth.training.rows import Rows, is_first_worker, shared_rows
from sentisynth.training.tasks import (
    ClassificationTask,
    LanguageModelTask,
    classification_rows,
    language_rows,
)

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
SPLITS = ("seed", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train the student: which rows, with which objective."""

    name: str
    """Directory of the trained student in the run."""
    title: str
    synthetic: bool
    """Whether the synthetic rows are learned from beside the real ones."""
    soft: bool
    """The weighted objective with soft labels, or labels alone."""


ARMS = (
    Arm(name="student_labels", title="student, real rows, labels", synthetic=False, soft=False),
    Arm(name="student_real", title="student, real rows, distilled", synthetic=False, soft=True),
    Arm(name="student", title="student, real + synthetic", synthetic=True, soft=True),
)


def teach(config: RunConfig, corpus: Path, out: Path, work: Path, report: Report) -> None:
    """Stage A: fine-tune the teacher on the seed rows; the best validation figure is kept."""
    seed, teacher = derive_seed(config.seed, "teacher"), config.teacher
    splits = read_splits(corpus)

    def load() -> Loaded:
        seed_all(seed)
        return load_classifier(teacher.model, config.data.labels)

    _train_classifier(
        load,
        splits["seed"],
        splits,
        teacher.max_length,
        teacher.train,
        seed,
        out,
        work,
        report,
        class_weights=_class_weights(teacher, splits["seed"]),
        label_smoothing=teacher.label_smoothing,
    )


def adapt(config: RunConfig, corpus: Path, out: Path, work: Path, report: Report) -> None:
    """Stage B: fine-tune the generator; the lowest perplexity on validation is kept."""
    seed, settings = derive_seed(config.seed, "generator"), config.generator
    splits = read_splits(corpus)
    tokens = [config.control_token(label) for label in range(len(config.data.labels))]

    dtype = torch.float32
    if settings.lora_rank:  # frozen weights need no more digits than the forward pass has
        dtype = autocast_dtype(settings.train.precision, best_device()) or dtype

    def load() -> tuple[Any, PreTrainedTokenizerBase, list[int], int]:
        seed_all(seed)
        model, tokenizer = load_generator(settings.model, tokens, dtype)
        ids = [control_token_id(tokenizer, token) for token in tokens]
        if settings.lora_rank:
            return add_adapters(model, settings.lora_rank, ids), tokenizer, ids, 0
        return model, tokenizer, ids, freeze_lower_blocks(model, settings.frozen_blocks)

    model, tokenizer, control_ids, n_frozen = load()

    def rows(name: str) -> Rows:
        def tokenised() -> Rows:
            return language_rows(splits[name], tokenizer, control_ids, settings.max_length)

        return shared_rows(work / f"rows-{name}.arrow", tokenised)

    task_rows = rows("seed")
    task = LanguageModelTask(model, tokenizer, task_rows, rows("validation"))
    progress = fit(task, settings.train, seed, report, work)
    if is_first_worker():
        del task, model
        model, *_ = load()
        put_weights(model, best_weights(work), work)
        if settings.lora_rank:
            model = model.merge_and_unload()
        save_model(model, tokenizer, out)
        best = figures_of(progress)
        figures = {"frozen_blocks": n_frozen, "lora_rank": settings.lora_rank, **best}
        figures |= _lengths(task_rows, settings.max_length)
        write_json(out / "metrics.json", {**figures, **history(progress, settings.train)})


def distil(
    config: RunConfig,
    arm: Arm,
    corpus: Path,
    dataset: Path,
    teacher: Path,
    out: Path,
    work: Path,
    report: Report,
) -> None:
    """Stage E: train a student arm. All arms get the optimiser steps that the mix gets, and are
    evaluated as often, so that they differ in their rows and objective alone.
    """
    seed, train = derive_seed(config.seed, "student"), config.student.train
    mix = pq.read_table(dataset / "train.parquet")

    def load() -> Loaded:
        seed_all(seed)
        return load_classifier(config.student.model, config.data.labels, teacher)

    epoch = -(-mix.num_rows // train.batch_size)
    _train_classifier(
        load,
        mix if arm.synthetic else mix.filter(pa.compute.invert(mix[schema.IS_SYNTH])),
        read_splits(corpus),
        config.student.max_length,
        train,
        seed,
        out,
        work,
        report,
        objective=config.distil if arm.soft else None,
        total_steps=epoch * train.epochs,
        eval_every=train.eval_every or epoch,
    )


def read_splits(corpus: Path) -> dict[str, pa.Table]:
    """The real rows of a run by split."""
    return {name: pq.read_table(corpus / f"{name}.parquet") for name in SPLITS}


def _train_classifier(
    load: Callable[[], Loaded],
    rows: pa.Table,
    splits: dict[str, pa.Table],
    max_length: int,
    train: TrainConfig,
    seed: int,
    out: Path,
    work: Path,
    report: Report,
    *,
    objective: DistilConfig | None = None,
    class_weights: list[float] | None = None,
    label_smoothing: float = 0.0,
    total_steps: int | None = None,
    eval_every: int | None = None,
) -> None:
    """Train what `load` gives on `rows`, and save it with its logits on the real splits."""
    model, tokenizer = load()

    def tokenised(table: pa.Table, *, of_training: bool) -> Rows:
        return classification_rows(
            table,
            tokenizer,
            max_length,
            soft=of_training and objective is not None,
            class_weights=class_weights if of_training else None,
        )

    train_rows = shared_rows(work / "rows-train.arrow", lambda: tokenised(rows, of_training=True))
    validation_rows = shared_rows(
        work / "rows-validation.arrow", lambda: tokenised(splits["validation"], of_training=False)
    )
    task = ClassificationTask(
        model,
        tokenizer,
        train_rows,
        validation_rows,
        objective=objective,
        label_smoothing=label_smoothing,
    )
    progress = fit(task, train, seed, report, work, total_steps=total_steps, eval_every=eval_every)
    if not is_first_worker():
        return
    total = total_steps or -(-len(task.rows) // train.batch_size) * train.epochs
    del task, model
    model, tokenizer = finished_classifier(load, train_rows, validation_rows, work, train, total)
    tokenizer.model_max_length = max_length  # as it learned to read
    save_model(model, tokenizer, out)
    for name, table in splits.items():
        texts = table[schema.TEXT].to_pylist()
        logits_NK = predict_logits(model, tokenizer, texts, max_length=max_length)
        columns = {schema.LABELS: table[schema.LABELS], schema.LOGITS: list(logits_NK)}
        predictions = pa.table(columns, schema=schema.PREDICTIONS)
        write_table(out / "predictions" / f"{name}.parquet", predictions)
    n_parameters = sum(p.numel() for p in model.parameters())
    figures = {"parameters": n_parameters, **_lengths(train_rows, max_length)}
    write_json(out / "metrics.json", {**figures, **history(progress, train)})


def _lengths(rows: Rows, max_length: int) -> dict[str, int]:
    """How many rows there are, and how many are as long as a row may be: longer ones were cut."""
    full = int((rows.lengths >= max_length).sum())
    return {"rows": len(rows), "rows_of_max_length": full, "max_length": max_length}


def finished_classifier(
    load: Callable[[], Loaded],
    rows: Rows,
    validation: Rows,
    work: Path,
    train: TrainConfig,
    total_steps: int,
) -> Loaded:
    """What `load` gives, with the best weights of the training in `work`, on the best device.

    Tokens that `rows` and `validation` do not use had no gradient, only decay.
    """
    model, tokenizer = load()
    weights = best_weights(work)
    vocabulary = used_vocabulary(model, tokenizer, rows.ids, validation.ids)
    if vocabulary is not None and weights:
        key = f"weights.{embedding_name(model)}"
        decay = decay_until(train, read_progress(work).best_step, total_steps)
        whole = model.get_input_embeddings().weight.detach()
        weights[key] = vocabulary.grow(whole, weights[key], decay)
    put_weights(model, weights, work)
    return model.to(best_device()), tokenizer


def _class_weights(teacher: TeacherConfig, rows: pa.Table) -> list[float] | None:
    if teacher.class_weights is None:
        return None
    if teacher.class_weights != "balanced":
        return list(teacher.class_weights)
    counts = np.bincount(rows[schema.LABELS].to_numpy())
    return [float(rows.num_rows / (len(counts) * max(n, 1))) for n in counts]


def figures_of(progress: Progress) -> dict[str, float]:
    """The figures of the evaluation whose weights were kept."""
    kept = [e for e in progress.evaluations if e["step"] == progress.best_step]
    entry = kept[0] if kept else progress.evaluations[-1]
    return {k: v for k, v in entry.items() if k not in ("step", "epoch", "train_loss")}


def history(progress: Progress, train: TrainConfig) -> dict[str, Any]:
    """What metrics.json says of any training."""
    kept = ("evaluations", "best_step", "seconds")
    return {
        **{k: v for k, v in asdict(progress).items() if k in kept},
        "steps": progress.step,
        "engine": chosen_engine(train),
        "workers": train.workers,
        "forward_passes": forward_passes(train, train.workers),
    }
