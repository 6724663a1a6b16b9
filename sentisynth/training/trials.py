"""Many trainings of a student on one pool: what a sweep prepares once, and one trial. No Ray.

A trial reads tokenised rows and the teacher's logits from files that all workers map; no text is
tokenised, generated or scored again, whatever α, β, τ, T and n it has.
"""

import dataclasses
import shutil
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from sentisynth.config.load import parse_config, with_values
from sentisynth.config.types import DistilConfig, RunConfig
from sentisynth.data.files import read_json, write_json
from sentisynth.data.logits import softmax
from sentisynth.models.classifier import load_classifier
from sentisynth.seeding import derive_seed, fingerprint
from sentisynth.training.checkpoint import Progress, read_progress
from sentisynth.training.jobs import Loaded, finished_classifier
from sentisynth.training.loop import evaluations, seed_all
from sentisynth.training.rows import Rows
from sentisynth.training.tasks import ClassificationTask

ROWS, VALIDATION, SELECTIONS = "rows.arrow", "validation.arrow", "selections.npz"
REAL = "real"
_ALONE = {  # a trial is a process of its own
    "student.train.engine": "torch",
    "student.train.workers": 1,
    "student.train.zero_stage": None,
    "student.train.deepspeed": None,
    "student.train.offload": "none",
}
SOFT, HARD, UNVERIFIED = "soft", "hard", "unverified"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One training: a point of the sweep and a seed."""

    alpha: float
    beta: float
    tau: float
    temperature: float
    n_per_class: int
    seed: int
    steps: int
    """Optimiser steps of the training."""
    arm: str = SOFT
    """`soft`: the objective; `hard`: the teacher's label alone; `unverified`: the generator's label
    alone, of rows that the teacher was not asked about."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Other keys of the configuration."""

    @property
    def selection(self) -> str:
        """Name of the rows that it trains on; real rows alone for none."""
        return selection_name(self.arm != UNVERIFIED, self.tau, self.n_per_class)

    @property
    def name(self) -> str:
        """Short and unique within a sweep."""
        return fingerprint(dataclasses.asdict(self))[:12]


def selection_name(verified: bool, tau: float, n_per_class: int) -> str:
    """Of the positions of synthetic rows in SELECTIONS."""
    if n_per_class == 0:
        return REAL
    return f"tau={tau:g},n={n_per_class}" if verified else f"unverified,n={n_per_class}"


class TrialRunner:
    """A process that trains one trial after another on the same files; `is_search` if a search
    draws them.
    """

    def __init__(
        self,
        shared: Path,
        trials: Path,
        config: RunConfig,
        teacher: Path,
        *,
        is_search: bool = False,
    ) -> None:
        self._rows, self._validation = Rows.map(shared / ROWS), Rows.map(shared / VALIDATION)
        with np.load(shared / SELECTIONS, allow_pickle=False) as selections:
            self._selections = dict(selections)
        self._trials, self._config, self._teacher = trials, config, teacher
        self._is_search = is_search
        self.progress = Progress()
        """Of the training at work."""

    def train(self, trial: Trial) -> Generator[dict[str, Any], None, None]:
        """The figures of each evaluation; `conclude` then writes what came out."""
        config, seed = self._config_of(trial), derive_seed(trial.seed, "student")
        train = config.student.train
        work = self.work(trial)
        work.mkdir(parents=True, exist_ok=True)
        model, tokenizer = self._load(trial)
        objective = DistilConfig(
            alpha=trial.alpha if trial.arm == SOFT else 0.0,
            beta=trial.beta,
            temperature=trial.temperature,
        )
        task = ClassificationTask(
            model, tokenizer, self.rows_of(trial), self._validation, objective=objective
        )
        self.progress = read_progress(work)
        every = train.eval_every or max(1, trial.steps // train.epochs)
        yield from evaluations(
            task, train, seed, work, self.progress, total_steps=trial.steps, eval_every=every
        )

    def finished(self, trial: Trial, steps: int) -> Loaded:
        """The student of a trial at its best in the `steps` of its result; trained again up to
        there if what was kept is of other steps.
        """
        step = read_progress(self.work(trial)).step
        if step > steps:  # a later sweep went on with it, and was cut off
            shutil.rmtree(self.work(trial))
        if step != steps:
            with closing(self.train(trial)) as entries:
                for entry in entries:
                    if entry["step"] >= steps:
                        break
        return finished_classifier(
            lambda: self._load(trial),
            self.rows_of(trial),
            self._validation,
            self.work(trial),
            self._config_of(trial).student.train,
            trial.steps,
        )

    def _config_of(self, trial: Trial) -> RunConfig:
        values = with_values(self._config.model_dump(mode="json"), {**trial.settings, **_ALONE})
        return parse_config(values)

    def _load(self, trial: Trial) -> Loaded:
        config = self._config_of(trial)
        seed_all(derive_seed(trial.seed, "student"))
        return load_classifier(config.student.model, config.data.labels, self._teacher)

    def rows_of(self, trial: Trial) -> Rows:
        """Real rows, and the selected synthetic ones with weight β; soft labels at its T."""
        n_real = len(self._selections[REAL])
        chosen = self._selections[REAL]
        if trial.selection != REAL:
            chosen = np.concatenate((chosen, self._selections[trial.selection]))
        rows = self._rows.take(chosen)
        weights = np.full(len(rows), trial.beta, np.float32)
        weights[:n_real] = 1
        assert rows.soft_labels is not None
        soft = softmax(rows.soft_labels, trial.temperature).astype(np.float32)
        return dataclasses.replace(rows, weights=weights, soft_labels=soft)

    def work(self, trial: Trial) -> Path:
        """Where a trial keeps its checkpoint and its best weights."""
        return self._trials / f"{trial.name}.work"

    def conclude(self, trial: Trial, *, error: str = "", stopped: bool = False) -> None:
        """Write what came out of the training at work, whole or not at all."""
        progress = Progress() if error else self.progress
        result = result_of(trial, progress, error, stopped)
        write_json(self._trials / f"{trial.name}.json", {**result, "is_search": self._is_search})
        if error:
            shutil.rmtree(self.work(trial), ignore_errors=True)


def result_of(
    trial: Trial, progress: Progress, error: str = "", stopped: bool = False
) -> dict[str, Any]:
    """What a trial's file says; `cut` if a scheduler ended the training before its last step, so
    that its figures are not those that it would have had.
    """
    best = [e for e in progress.evaluations if e["step"] == progress.best_step]
    return {
        "trial": dataclasses.asdict(trial),
        "best": best[0] if best else None,
        "evaluations": progress.evaluations,
        "steps": progress.step,
        "seconds": progress.seconds,
        "cut": stopped and progress.step < trial.steps,
        "error": error,
    }


def read_results(trials: Path) -> dict[str, dict[str, Any]]:
    """What is concluded, by the name of the trial."""
    return {path.stem: read_result(path) for path in sorted(trials.glob("*.json"))}


def read_result(path: Path) -> dict[str, Any]:
    """A trial's file; earlier ones say `stopped` of one that was cut, and count for searches."""
    result = read_json(path)
    return {"cut": bool(result.get("stopped")), "is_search": True, **result}
