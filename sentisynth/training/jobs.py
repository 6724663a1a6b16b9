"""What a training worker does from start to end: load, fit, save, predict. No Ray.

`teach`, `adapt` and `distil` are stages A, B and E. Each writes a `save_pretrained` directory with
metrics.json and a model card; classifiers add their logits on the real splits.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from sentisynth import schema
from sentisynth.config.types import DistilConfig, RunConfig
from sentisynth.data.files import write_json, write_table, write_text
from sentisynth.models.classifier import load_classifier
from sentisynth.models.generator import control_token_id, freeze_lower_blocks, load_generator
from sentisynth.seeding import derive_seed
from sentisynth.training.loop import History, fit, seed_all
from sentisynth.training.tasks import ClassificationTask, LanguageModelTask

Report = Callable[[dict[str, Any]], None]
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


def teach(config: RunConfig, corpus: Path, out: Path, report: Report) -> None:
    """Stage A: fine-tune the teacher on the seed rows; the best macro-F1 on validation is kept."""
    seed = derive_seed(config.seed, "teacher")
    seed_all(seed)
    splits = read_splits(corpus)
    model, tokenizer = load_classifier(config.teacher.model, config.data.labels)
    task = ClassificationTask(
        model, tokenizer, splits["seed"], splits["validation"], config.teacher.max_length
    )
    history = fit(task, config.teacher.train, seed, report)
    if _is_first_worker():
        _save_classifier(task, tokenizer, history, splits, out, config, "teacher")


def adapt(config: RunConfig, corpus: Path, out: Path, report: Report) -> None:
    """Stage B: fine-tune the generator; the lowest perplexity on validation is kept."""
    seed = derive_seed(config.seed, "generator")
    seed_all(seed)
    splits = read_splits(corpus)
    tokens = [config.control_token(label) for label in range(len(config.data.labels))]
    model, tokenizer = load_generator(config.generator.model, tokens)
    n_frozen = freeze_lower_blocks(model, config.generator.frozen_blocks)
    task = LanguageModelTask(
        model,
        tokenizer,
        [control_token_id(tokenizer, token) for token in tokens],
        splits["seed"],
        splits["validation"],
        config.generator.max_length,
    )
    history = fit(task, config.generator.train, seed, report)
    if _is_first_worker():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        metrics = {"frozen_blocks": n_frozen, "perplexity": task.perplexity(), **asdict(history)}
        write_json(out / "metrics.json", metrics)
        write_text(out / "README.md", _card(config, "generator", config.generator.model))


def distil(
    config: RunConfig,
    arm: Arm,
    corpus: Path,
    dataset: Path,
    teacher: Path,
    out: Path,
    report: Report,
) -> None:
    """Stage E: train a student arm. All arms get the optimiser steps that the mix gets, and are
    evaluated as often, so that they differ in their rows and objective alone.
    """
    seed = derive_seed(config.seed, "student")
    seed_all(seed)
    splits = read_splits(corpus)
    mix = pq.read_table(dataset / "train.parquet")
    rows = mix if arm.synthetic else mix.filter(pa.compute.invert(mix[schema.IS_SYNTH]))
    model, tokenizer = load_classifier(
        config.student.model, config.data.labels, tokenizer_from=teacher
    )
    objective: DistilConfig | None = config.distil if arm.soft else None
    task = ClassificationTask(
        model, tokenizer, rows, splits["validation"], config.student.max_length, objective
    )
    train = config.student.train
    epoch = -(-mix.num_rows // train.batch_size)
    steps, every = epoch * train.epochs, train.eval_every or epoch
    history = fit(task, train, seed, report, total_steps=steps, eval_every=every)
    if _is_first_worker():
        _save_classifier(task, tokenizer, history, splits, out, config, arm.title)


def read_splits(corpus: Path) -> dict[str, pa.Table]:
    """The real rows of a run by split."""
    return {name: pq.read_table(corpus / f"{name}.parquet") for name in SPLITS}


def _is_first_worker() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _save_classifier(
    task: ClassificationTask,
    tokenizer: Any,
    history: History,
    splits: dict[str, pa.Table],
    out: Path,
    config: RunConfig,
    role: str,
) -> None:
    task.model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for name, table in splits.items():
        columns = {schema.LABELS: table[schema.LABELS], schema.LOGITS: list(task.predict(table))}
        rows = pa.table(columns, schema=schema.PREDICTIONS)
        write_table(out / "predictions" / f"{name}.parquet", rows)
    n_parameters = sum(p.numel() for p in task.model.parameters())
    write_json(out / "metrics.json", {"parameters": n_parameters, **asdict(history)})
    start = config.teacher.model if role == "teacher" else config.student.model
    write_text(out / "README.md", _card(config, role, start))


def _card(config: RunConfig, role: str, start: str) -> str:
    return (
        f"# {config.name}: {role}\n\n"
        f"Fine-tuned by sentisynth from `{start}` on {config.data.n_seed} labelled rows of "
        f"`{config.data.source}`, seed {config.seed}. Classes: {', '.join(config.data.labels)}.\n\n"
        f"Load it with transformers' `from_pretrained`. Figures of the training are in "
        f"`metrics.json`, the whole configuration in the run's `config.yaml`.\n"
    )
