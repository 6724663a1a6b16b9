"""Ray Tune: runs the trials of a sweep on actors that go from one trial to the next."""

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import ConcurrencyLimiter

from sentisynth import signals
from sentisynth.config.types import RunConfig
from sentisynth.errors import RunDirectoryError, SentisynthError
from sentisynth.models.devices import check_gpu
from sentisynth.runtime.leaving import leave_in_time
from sentisynth.runtime.placement import Resources
from sentisynth.runtime.ray_cluster import hide_gpus
from sentisynth.seeding import derive_seed
from sentisynth.training.checkpoint import Progress
from sentisynth.training.trials import Trial, TrialRunner

METRIC = "macro_f1"
Stopping = Literal["none", "asha", "median"]
_TRIALS_A_GPU = 4
_MOST_DEATHS = 3
_BROKEN = "broken"  # why the sweep cannot go on, in a trial's last result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What all trials of a sweep have in common, and how they run."""

    config: RunConfig
    shared: Path
    """Directory of the rows that the trials map."""
    out: Path
    """Directory where each trial writes its file."""
    teacher: Path
    resources: Resources
    stopping: Stopping
    on_result: Callable[[dict[str, Any]], None]
    """Told of each evaluation, in the driver's process."""

    @property
    def at_once(self) -> int:
        """Trials that run at the same time: one a CPU, or four a GPU where there are any."""
        most = self.resources.cpus
        if self.resources.gpus:
            most = min(self.resources.gpus * _TRIALS_A_GPU, most)
        return max(1, int(most))


def run_trials(trials: Sequence[Trial], setting: Setting) -> list[tuple[Trial, str]]:
    """Train every trial; each writes its file. Returns those that did not, and why.

    A trial whose process dies is tried again, from its checkpoint if it has one.
    """
    space = {"trial": tune.grid_search([dataclasses.asdict(trial) for trial in trials])}
    told, steps = _Told(setting.on_result), max(trial.steps for trial in trials)
    tuner = _tuner(_trainable(setting), space, setting, told, steps)
    return _failed(tuner, told, lambda values: Trial(**values["trial"]))


def search_trials(
    base: Trial,
    space: dict[str, tuple[str, float, float]],
    setting: Setting,
    *,
    samples: int,
    seeds: Sequence[int],
    known: Sequence[tuple[dict[str, Any], float]],
) -> list[tuple[Trial, str]]:
    """As `run_trials`, with points that Optuna's TPE proposes (Akiba et al., 2019): `samples` of
    them beyond the `known` ones, which are told to it with their figures.

    `space` maps a field of `Trial`, or a key of the configuration, to uniform or loguniform and
    its bounds; the seed is drawn from `seeds`.
    """
    from ray.tune.search.optuna import OptunaSearch

    kinds = {"uniform": tune.uniform, "loguniform": tune.loguniform}
    domains = {key: kinds[kind](low, high) for key, (kind, low, high) in space.items()}
    search = OptunaSearch(
        domains,
        metric=METRIC,
        mode="max",
        seed=derive_seed(setting.config.seed, "search", len(known)) % 2**32,
        points_to_evaluate=[point for point, _ in known] or None,
        evaluated_rewards=[figure for _, figure in known] or None,
    )
    told = _Told(setting.on_result)
    tuner = _tuner(
        _trainable(setting, base, tuple(seeds)),
        None,
        setting,
        told,
        base.steps,
        search=ConcurrencyLimiter(search, max_concurrent=max(2, setting.at_once)),
        samples=samples,
    )
    return _failed(tuner, told, lambda values: _trial_of(values, base, tuple(seeds)))


def _trainable(
    setting: Setting, base: Trial | None = None, seeds: tuple[int, ...] = ()
) -> type[tune.Trainable]:
    """A class that trains trials in its own process; a step is an evaluation."""
    config, shared, out, teacher = setting.config, setting.shared, setting.out, setting.teacher
    stopping, has_gpu = setting.stopping, setting.resources.gpus > 0  # the listener stays here

    class StudentTrial(tune.Trainable):
        def setup(self, values: dict[str, Any]) -> None:
            leave_in_time()
            hide_gpus()
            if has_gpu:
                check_gpu()
            torch.set_num_threads(1)
            is_search = base is not None
            self._runner = TrialRunner(shared, out, config, teacher, is_search=is_search)
            self._broken: RunDirectoryError | None = None
            self.reset_config(values)

        def reset_config(self, values: dict[str, Any]) -> bool:
            self._end_early()
            self._runner.progress = Progress()  # no longer that of the trial before
            self._trial = _trial_of(values, base, seeds)
            self._evaluations = self._runner.train(self._trial)
            self._is_at_work, self._last = True, {METRIC: 0.0, "step": 0}
            self._highest = 0.0
            return True

        def step(self) -> dict[str, Any]:
            try:
                if self._broken is not None:
                    raise self._broken
                told = self._stepped()
            except RunDirectoryError as error:  # a full disk: no trial would end otherwise
                self._is_at_work = False
                told = {**self._last, "done": True, _BROKEN: str(error)}
            return {**told, "trial_name": self._trial.name}

        def _stepped(self) -> dict[str, Any]:
            try:
                entry = next(self._evaluations)
                self._highest = max(self._highest, entry[METRIC])
                self._last = {**entry, METRIC: self._highest}  # a student is judged by its best
                return self._last
            except StopIteration:
                self._is_at_work = False
                self._runner.conclude(self._trial)
                self._last = dict(self._runner.progress.evaluations[-1])
                self._last[METRIC] = max(e[METRIC] for e in self._runner.progress.evaluations)
            except RunDirectoryError:
                raise
            except SentisynthError as error:  # a row with its reason, not a hole
                self._is_at_work = False
                self._runner.conclude(self._trial, error=str(error))
            except Exception:
                self._is_at_work = False  # what was reached is no result: it is tried again
                raise
            return {**self._last, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """The training keeps its own, in its work directory."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """See `save_checkpoint`."""

        def cleanup(self) -> None:
            self._end_early()

        def _end_early(self) -> None:
            """A scheduler stopped the trial: what it reached is its result."""
            if getattr(self, "_is_at_work", False):
                try:
                    self._evaluations.close()
                    if stopping != "none" and self._runner.progress.evaluations:
                        self._runner.conclude(self._trial, stopped=True)
                except RunDirectoryError as error:  # the next step of this process tells it
                    self._broken = error
            self._is_at_work = False

    return StudentTrial


def _trial_of(values: dict[str, Any], base: Trial | None, seeds: tuple[int, ...]) -> Trial:
    if base is None:
        return Trial(**values["trial"])
    fields = {k: v for k, v in values.items() if k in Trial.__dataclass_fields__}
    other = {k: v for k, v in values.items() if k not in fields}
    drawn = dataclasses.replace(base, **fields, settings={**base.settings, **other})
    return dataclasses.replace(drawn, seed=seeds[int(drawn.name, 16) % len(seeds)])


class _Broken(BaseException):
    """Ends Tune as Ctrl-C does: what the other trials have reached is no result."""


class _Told(tune.Callback):
    """Passes results on. Tune writes its callbacks to a file: this one leaves its listener out."""

    def __init__(self, on_result: Callable[[dict[str, Any]], None]) -> None:
        self._on_result = on_result
        self.error: SentisynthError | OSError | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, *_: Any, result: dict[str, Any], **__: Any) -> None:
        """An error of the listener is kept: Tune would stop all trials, and show its traceback."""
        if _BROKEN in result:
            raise _Broken(result[_BROKEN])
        if self.error is None:
            try:
                self._on_result(result)
            except (SentisynthError, OSError) as error:
                self.error = error


def _tuner(
    trainable: type[tune.Trainable],
    space: dict[str, Any] | None,
    setting: Setting,
    told: _Told,
    steps: int,
    *,
    search: Any = None,
    samples: int = 1,
) -> tune.Tuner:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one is never silent
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    storage = setting.out.parent / ".tune"
    shutil.rmtree(storage, ignore_errors=True)
    gpus = {"gpu": 1 / _TRIALS_A_GPU} if setting.resources.gpus else {}
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, **gpus}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            scheduler=_scheduler(setting.stopping, steps),
            search_alg=search,
            num_samples=samples,
            reuse_actors=True,
            max_concurrent_trials=setting.at_once if search is None else None,
        ),
        run_config=tune.RunConfig(
            storage_path=str(storage),
            name="sweep",
            verbose=0,
            callbacks=[told],
            failure_config=tune.FailureConfig(max_failures=_MOST_DEATHS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0),
        ),
    )


def _scheduler(stopping: Stopping, steps: int) -> TrialScheduler | None:
    """Time is counted in optimiser steps, so that a trial that goes on is compared rightly."""
    if stopping == "asha":
        return AsyncHyperBandScheduler(
            time_attr="step", max_t=max(2, steps), grace_period=max(1, steps // 4)
        )
    if stopping == "median":
        return MedianStoppingRule(time_attr="step", grace_period=max(1, steps // 4))
    return None


def _failed(
    tuner: tune.Tuner, told: _Told, trial_of: Callable[[dict[str, Any]], Trial]
) -> list[tuple[Trial, str]]:
    """Trials whose process failed in a way of its own, with the last line of what it said. Raises
    what the listener raised, and RunDirectoryError where the trials' files cannot be written.
    """
    # Tune's own answer to Ctrl-C is to end as if all were well
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    with signals.kept():
        try:
            results = tuner.fit()
        except _Broken as broken:
            raise RunDirectoryError(
                f"{broken}; mend that, and the same command goes on from here"
            ) from None
    if told.error is not None:
        raise told.error
    failed = []
    for result in results:
        if result.error is not None and result.config:
            lines = str(result.error).strip().splitlines() or ["unknown"]
            failed.append((trial_of(result.config), lines[-1][:300]))
    return failed
