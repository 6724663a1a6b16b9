"""Training: rows a second of the loop, and of its engines.

    python benchmarks/training.py distil  [--rows N] [--steps N] [--repeats N]
        [--precision fp32 bf16] [--vocabulary embedded large] [--json FILE]
    python benchmarks/training.py engines [--steps N] [--repeats N] [--models student teacher]
        [--json FILE]

distil: a student of BERT-tiny's shape on rows with soft labels (texts of the embedded Rotten
Tomatoes, drawn again up to N rows; soft labels and weights made up), batches of 32, at most 64
tokens, α 0.9, T 2. In turn in each repetition, same initial weights, rows, steps and precision:

- ours: `training.loop.fit`.
- Trainer: the Hugging Face Trainer with the objective as its loss, random batches padded to their
  longest row, its default optimiser (torch's fused AdamW), no evaluation, logging or saving.
- Trainer, by length: the same with its grouping by length.

`embedded` is the embedded tokenizer of 8,192 pieces, `large` a WordPiece vocabulary of 30,522 rows,
BERT's size, of which the texts use what they use. Then the share of each part of our step.

engines: DDP and DeepSpeed ZeRO 0 to 3 with two worker processes, in turn in each repetition; the
ratio of step times to DDP's. On a CPU over gloo, on GPUs over NCCL, one each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from environment import environment
from shapes import deberta
from transformers import AutoModelForSequenceClassification, BertConfig

from sentisynth.config.load import load_config
from sentisynth.config.types import DistilConfig, TrainConfig
from sentisynth.data.sources import read_rows
from sentisynth.models.classifier import tokenize
from sentisynth.models.loading import load_tokenizer, resolve_model
from sentisynth.models.losses import distillation_loss
from sentisynth.training import loop
from sentisynth.training.engine import make_engine
from sentisynth.training.rows import Rows
from sentisynth.training.tasks import ClassificationTask

MAX_LENGTH, BATCH, SEED = 64, 32, 41
OBJECTIVE = DistilConfig()


def rows_of(tokenizer: Any, n: int, ids_up_to: int) -> Rows:
    """Real lengths and tokens; labels, soft labels and weights made up."""
    config = load_config("quickstart")
    texts = read_rows(config.data.source, config.data)["text"].to_pylist()
    random = np.random.default_rng(SEED)
    ids = tokenize(tokenizer, texts, MAX_LENGTH)
    spread = random.permutation(ids_up_to)  # pieces keep their frequencies under other numbers
    chosen = [[int(spread[i]) for i in ids[j]] for j in random.integers(0, len(ids), n)]
    soft = random.dirichlet((0.5, 0.5), n).astype(np.float32)
    weights = np.where(random.random(n) < 1 / 21, 1.0, OBJECTIVE.beta).astype(np.float32)
    return Rows.of(chosen, soft.argmax(axis=1), weights, soft)


def student(vocabulary: int) -> Any:
    torch.manual_seed(SEED)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        num_labels=2,
    )
    return AutoModelForSequenceClassification.from_config(config)


def train_config(precision: str, **settings: Any) -> TrainConfig:
    values = {"batch_size": BATCH, "precision": precision, "learning_rate": 3e-4, **settings}
    return TrainConfig.model_validate(values)


def ours(rows: Rows, tokenizer: Any, vocabulary: int, precision: str, steps: int) -> float:
    """Rows a second."""
    few = Rows.of([[1, 2]] * 2, np.array([0, 1]))
    task = ClassificationTask(student(vocabulary), tokenizer, rows, few, objective=OBJECTIVE)
    with tempfile.TemporaryDirectory() as work:
        config = train_config(precision)
        progress = loop.fit(
            task, config, SEED, lambda _: None, Path(work), total_steps=steps, eval_every=steps
        )
    return steps * BATCH / progress.seconds


def trainer(
    rows: Rows, tokenizer: Any, vocabulary: int, precision: str, steps: int, by_length: bool = False
) -> float:
    """Rows a second of the Hugging Face Trainer."""
    from transformers import Trainer, TrainingArguments

    assert rows.soft_labels is not None
    bounds = zip(rows.starts[:-1], rows.starts[1:], strict=True)
    data = [
        {
            "input_ids": rows.ids[a:b].tolist(),
            "labels": int(rows.labels[i]),
            "soft_labels": rows.soft_labels[i],
            "weights": rows.weights[i],
        }
        for i, (a, b) in enumerate(bounds)
    ]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        padded = tokenizer.pad({"input_ids": [x["input_ids"] for x in batch]}, return_tensors="pt")
        return {
            **padded,
            "labels": torch.tensor([x["labels"] for x in batch]),
            "soft_labels": torch.tensor(np.stack([x["soft_labels"] for x in batch])),
            "weights": torch.tensor([x["weights"] for x in batch]),
        }

    class Distiller(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
            soft, weights, labels = (inputs.pop(k) for k in ("soft_labels", "weights", "labels"))
            logits = model(**inputs).logits.float()
            settings = {"alpha": OBJECTIVE.alpha, "temperature": OBJECTIVE.temperature}
            loss = distillation_loss(logits, soft, labels, **settings)
            return (weights * loss).sum() / weights.sum()

    with tempfile.TemporaryDirectory() as out:
        settings: dict[str, Any] = {
            "output_dir": out,
            "per_device_train_batch_size": BATCH,
            "max_steps": steps,
            "learning_rate": 3e-4,
            "lr_scheduler_type": "linear",
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": [],
            "remove_unused_columns": False,
            "disable_tqdm": True,
            "bf16": precision == "bf16",
            "use_cpu": not torch.cuda.is_available(),
        }
        if by_length:
            settings["train_sampling_strategy"] = "group_by_length"
        arguments = TrainingArguments(**settings)
        made = Distiller(
            model=student(vocabulary), args=arguments, train_dataset=data, data_collator=collate
        )
        started = time.perf_counter()
        made.train()
        return steps * BATCH / (time.perf_counter() - started)


def profile(rows: Rows, tokenizer: Any, vocabulary: int, precision: str) -> dict[str, float]:
    """Milliseconds of each part of our step, and of the whole, over 200 steps."""
    few = Rows.of([[1, 2]] * 2, np.array([0, 1]))
    task = ClassificationTask(student(vocabulary), tokenizer, rows, few, objective=OBJECTIVE)
    spent: dict[str, float] = {}

    def timed(owner: Any, name: str, part: str) -> None:
        method: Callable[..., Any] = getattr(owner, name)

        def measured(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                spent[part] = spent.get(part, 0.0) + time.perf_counter() - started

        object.__setattr__(owner, name, measured)

    steps = 200
    config = train_config(precision)

    def make_timed(*arguments: Any) -> Any:
        engine = make_engine(*arguments)
        timed(engine, "backward", "backward")
        timed(engine, "step", "clip and update")
        return engine

    timed(task, "loss", "batch, forward and loss")
    timed(task.rows, "padded", "  of which the batch")
    with tempfile.TemporaryDirectory() as work, patch.object(loop, "make_engine", make_timed):
        progress = loop.fit(
            task, config, SEED, lambda _: None, Path(work), total_steps=steps, eval_every=steps
        )
    spent["whole step"] = progress.seconds
    return {part: 1e3 * seconds / steps for part, seconds in spent.items()}


def distil(arguments: argparse.Namespace) -> dict[str, Any]:
    tokenizer = load_tokenizer(resolve_model("package:gpt2-mini"))
    results: dict[str, Any] = {}
    for size in arguments.vocabulary:
        vocabulary = len(tokenizer) if size == "embedded" else 30522
        rows = rows_of(tokenizer, arguments.rows, vocabulary)
        used = len(np.unique(rows.ids))
        for precision in arguments.precision:
            ways: dict[str, Callable[..., float]] = {
                "ours": ours,
                "Trainer": trainer,
                "Trainer, by length": partial(trainer, by_length=True),
            }
            found: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(arguments.repeats):
                for name, way in ways.items():
                    found[name].append(way(rows, tokenizer, vocabulary, precision, arguments.steps))
            middle = {name: statistics.median(values) for name, values in found.items()}
            parts = profile(rows, tokenizer, vocabulary, precision)
            print(f"\n{vocabulary:,} pieces, {used:,} of them used, {precision}")
            for name, value in middle.items():
                spread = f"{min(found[name]):,.0f} to {max(found[name]):,.0f}"
                pairs = zip(found["ours"], found[name], strict=True)
                ratio = statistics.median(own / other for own, other in pairs)
                print(
                    f"  {name:20} {value:8,.0f} rows/s  ({spread})  ours is {ratio:.2f} times that"
                )
            for part, value in parts.items():
                print(f"    {part:26} {value:7.2f} ms a step")
            results[f"{size}, {precision}"] = {
                "used": used,
                "rows_per_second": found,
                "ms_per_step": parts,
            }
    return results


def teacher_model() -> Any:
    return deberta(SEED, vocabulary=8192, width=384, layers=6, heads=6)


ENGINES: dict[str, dict[str, Any]] = {
    "torch DDP": {"engine": "torch"},
    **{f"ZeRO {n}": {"engine": "deepspeed", "zero_stage": n} for n in range(4)},
}


def engine_worker(arguments: argparse.Namespace) -> None:
    """One of two workers: all engines in turn, several times; the first writes what it took."""
    import torch.distributed as dist

    rank, device = arguments.rank, torch.cuda.is_available()
    if device:
        torch.cuda.set_device(rank)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    if not device:
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    dist.init_process_group(
        "nccl" if device else "gloo",
        init_method=f"file://{arguments.rendezvous}",
        rank=rank,
        world_size=2,
    )
    tokenizer = load_tokenizer(resolve_model("package:gpt2-mini"))
    rows = rows_of(tokenizer, 4000, len(tokenizer))
    few = Rows.of([[1, 2]] * 2, np.array([0, 1]))
    found: dict[str, dict[str, list[float]]] = {}
    for size in arguments.models:
        taken = found[size] = {name: [] for name in ENGINES}
        for _ in range(arguments.repeats):
            for name, settings in ENGINES.items():
                model = student(len(tokenizer)) if size == "student" else teacher_model()
                task = ClassificationTask(model, tokenizer, rows, few)
                config = train_config("bf16" if device else "fp32", workers=2, **settings)
                with tempfile.TemporaryDirectory() as work:
                    steps = {"total_steps": arguments.steps, "eval_every": arguments.steps}
                    progress = loop.fit(task, config, SEED, lambda _: None, Path(work), **steps)
                taken[name].append(1e3 * progress.seconds / arguments.steps)
    if rank == 0:
        Path(arguments.rendezvous + ".json").write_text(json.dumps(found))
    dist.destroy_process_group()


def engines(arguments: argparse.Namespace) -> dict[str, Any]:
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        raise SystemExit("two workers need two GPUs; hide this one to compare them on the CPU")
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = str(Path(directory) / "rendezvous")
        options = ["--steps", arguments.steps, "--repeats", arguments.repeats]
        options += ["--rendezvous", rendezvous, "--models", *arguments.models]
        worker = [sys.executable, "-W", "ignore", __file__, "worker"]
        workers = [
            subprocess.Popen([*worker, "--rank", str(rank), *map(str, options)])
            for rank in range(2)
        ]
        if [process.wait() for process in workers] != [0, 0]:
            raise SystemExit("a worker failed")
        found: dict[str, Any] = json.loads(Path(rendezvous + ".json").read_text())
    for size, taken in found.items():
        base = taken["torch DDP"]
        print(f"\n{size}: two workers, batch {BATCH}")
        for name, values in taken.items():
            ratios = [value / other for value, other in zip(values, base, strict=True)]
            print(
                f"  {name:10} {statistics.median(values):7.1f} ms a step, "
                f"{statistics.median(ratios):.2f} times DDP's ({min(ratios):.2f} to "
                f"{max(ratios):.2f})"
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("distil", "engines", "worker"))
    parser.add_argument("--rows", type=int, default=21000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=("fp32", "bf16"))
    parser.add_argument(
        "--vocabulary", nargs="+", default=["embedded", "large"], choices=("embedded", "large")
    )
    parser.add_argument(
        "--models", nargs="+", default=["student", "teacher"], choices=("student", "teacher")
    )
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rendezvous", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "worker":
        engine_worker(arguments)
        return
    found = {"distil": distil, "engines": engines}[arguments.what](arguments)
    if arguments.json:
        told = {**environment(), "seed": SEED, "repeats": arguments.repeats, "results": found}
        arguments.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
