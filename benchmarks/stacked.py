"""Where a small student's step goes, and whether several students in one process would win.

    python benchmarks/stacked.py --run DIR --sweep KIND [--students K] [--json FILE]

DIR holds a finished sweep. One thread: a step of one student after another, against a step of K
students stacked on a leading axis (`torch.func.vmap`; the same batch, weights and dropout of their
own, one fused AdamW), in turn, three times; then torch's profiler on the steps of one.
"""

import argparse
import copy
import json
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from environment import environment
from torch.func import functional_call, stack_module_state, vmap
from torch.profiler import ProfilerActivity, profile

from sentisynth.config.load import read_run_config
from sentisynth.config.types import DistilConfig
from sentisynth.models.classifier import load_classifier
from sentisynth.models.losses import distillation_loss
from sentisynth.training import loop
from sentisynth.training.engine import make_engine
from sentisynth.training.rows import Rows
from sentisynth.training.tasks import ClassificationTask
from sentisynth.training.trials import VALIDATION, Trial, TrialRunner, read_results

RATE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--sweep", required=True)
    parser.add_argument("--students", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task, train = student(arguments.run, arguments.sweep)
    batches = loop.endless_batches(task.rows.lengths, train.batch_size, 1)
    engine = make_engine(copy.deepcopy(task.model), train, 0, 1)
    together = Stacked(task, arguments.students)

    def one(n: int) -> None:
        for batch in islice(batches, n):
            loop.take_step(engine, task, [batch], task.weight(batch), RATE)

    def stacked(n: int) -> None:
        for batch in islice(batches, n):
            together.step(batch)

    one(20)
    stacked(5)
    ratios = []
    for _ in range(3):
        single, several = timed(one, 50), timed(stacked, 50) / arguments.students
        ratios.append(single / several)
        print(f"a step of one {single:.1f} ms, of one of {arguments.students} {several:.1f} ms")
    with profile(activities=[ProfilerActivity.CPU]) as found:
        one(40)
    total = sum(event.self_cpu_time_total for event in found.key_averages())
    shares = {
        event.key: event.self_cpu_time_total / total
        for event in sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)[:10]
    }
    for name, share in shares.items():
        print(f"{name:36} {share:6.1%}")
    if arguments.json:
        result = {**environment(), "one over stacked": ratios, "shares": shares}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def student(run: Path, sweep: str) -> tuple[ClassificationTask, Any]:
    """The training of a sweep's first trial."""
    config = read_run_config(run)
    shared = run / "sweep" / sweep / "shared"
    result = next(iter(read_results(run / "sweep" / sweep / "trials").values()))
    trial = Trial(**result["trial"])
    with tempfile.TemporaryDirectory() as scratch:
        runner = TrialRunner(shared, Path(scratch), config, run / "teacher")
        rows = runner.rows_of(trial)
    loop.seed_all(1)
    model, tokenizer = load_classifier(config.student.model, config.data.labels, run / "teacher")
    objective = DistilConfig(alpha=trial.alpha, beta=trial.beta, temperature=trial.temperature)
    validation = Rows.map(shared / VALIDATION)
    task = ClassificationTask(model, tokenizer, rows, validation, objective=objective)
    return task, config.student.train


class Stacked:
    """K copies of a student whose parameters are stacked."""

    def __init__(self, task: ClassificationTask, n: int) -> None:
        self._task = task
        copies = [copy.deepcopy(task.model) for _ in range(n)]
        stacked, self._buffers = stack_module_state(copies)
        self._parameters = {k: v.detach().requires_grad_() for k, v in stacked.items()}
        self._base = copy.deepcopy(task.model).train()
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=RATE, fused=True)

    def step(self, batch: Any) -> None:
        """One step of all; without clipping, which would only add to it."""
        task = self._task
        ids, mask = task.rows.padded(batch, 0)
        if task.vocabulary is not None:
            ids = torch.from_numpy(task.vocabulary.renumber(ids.numpy()))

        def forward(parameters: Any, buffers: Any) -> torch.Tensor:
            inputs = {"input_ids": ids, "attention_mask": mask}
            logits: torch.Tensor = functional_call(
                self._base, (parameters, buffers), kwargs=inputs
            ).logits
            return logits

        logits_NBK = vmap(forward, randomness="different")(self._parameters, self._buffers)
        labels = torch.from_numpy(task.rows.labels[batch])
        assert task.rows.soft_labels is not None
        soft = torch.from_numpy(task.rows.soft_labels[batch])
        weights = torch.from_numpy(task.rows.weights_of(batch))
        losses = [
            (weights * distillation_loss(one, soft, labels, alpha=0.5, temperature=2.0)).sum()
            for one in logits_NBK
        ]
        (torch.stack(losses).sum() / task.weight(batch)).backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def timed(steps: Any, n: int) -> float:
    """Milliseconds a step."""
    started = time.perf_counter()
    steps(n)
    return 1000 * (time.perf_counter() - started) / n


if __name__ == "__main__":
    main()
