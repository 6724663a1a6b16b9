"""Sweeps and studies: many students from one pool, on Ray Tune. Nothing is generated or scored.

sweep/<kind>/shared/        tokenised rows, logits and selections that all trials map
sweep/<kind>/trials/        a JSON file a trial, written once it is done
sweep/<kind>/student/       the best student by validation macro-F1
sweep/<kind>/results.csv  summary.json  report.html
"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from sentisynth import schema
from sentisynth.data.files import write_json, write_text
from sentisynth.data.select import learned_from
from sentisynth.errors import SweepError
from sentisynth.evaluation.sweeps import (
    candidates,
    points_of,
    render_sweep,
    to_csv,
    told,
    verdict,
)
from sentisynth.flows.parts import plan_parts
from sentisynth.flows.session import Session
from sentisynth.flows.sweep_plan import SweepPlan
from sentisynth.flows.sweep_rows import selected_rows, selection_digests, write_shared
from sentisynth.flows.training import CODE_VERSION
from sentisynth.models.classifier import predict_logits, starts_from_teacher
from sentisynth.models.loading import model_digest, resolve_model, save_model
from sentisynth.models.metrics import macro_f1
from sentisynth.runtime.ray_cluster import cluster_resources
from sentisynth.runtime.sweep_log import SweepLog
from sentisynth.runtime.tune import Setting, run_trials, search_trials
from sentisynth.seeding import fingerprint
from sentisynth.training.checkpoint import Progress
from sentisynth.training.jobs import read_splits
from sentisynth.training.trials import (
    Trial,
    TrialRunner,
    read_results,
    result_of,
)

_CODE_VERSION = 1  # raise it when the same trial would give another student
_TRAININGS_UNNAMED = 2  # the version of the trainings' code that stamps do not name


def run_sweep(session: Session, plan: SweepPlan) -> None:
    """Train what is missing, choose by validation, report. The same again goes on."""
    config, directory = session.config, session.directory
    teacher = directory.require_trained("teacher")
    out = directory.path / "sweep" / plan.kind
    directory.begin(f"sweep/{plan.kind}", _parts(session, teacher))
    base = _base(session, plan)
    trials = _grid(base, plan)
    what = f"{plan.search}, " + (f"{len(trials)} trainings" if trials else f"{plan.samples} points")
    selections, impossible = selected_rows(session, trials or [base])
    diversity = write_shared(session, selections, out / "shared", teacher)
    (out / "trials").mkdir(exist_ok=True)
    trials = [trial for trial in trials if trial.selection not in impossible]
    dims = list(plan.grid) or list(plan.ranges)
    digests = selection_digests(out / "shared")
    log = SweepLog(session.tracker, plan.kind, out / "mlflow.json", dims, digests)
    runner = TrialRunner(out / "shared", out / "trials", config, teacher)
    with log.at_work():
        with session.console.stage(f"sweep {plan.kind}: {what}"):
            results = _trained(session, plan, base, trials, out, teacher, log)
        for trial in _grid(base, plan):
            if trial.selection in impossible:
                results[trial.name] = result_of(trial, Progress(), impossible[trial.selection])
        _conclude(session, plan, out, results, diversity, runner, log)


def _trained(
    session: Session,
    plan: SweepPlan,
    base: Trial,
    trials: Sequence[Trial],
    out: Path,
    teacher: Path,
    log: SweepLog,
) -> dict[str, dict[str, Any]]:
    """Train what is missing; the results of all. What fails is one with its reason, and missing
    for the next command.
    """
    place = out / "trials"
    done = _done(plan, base, trials, place)
    n_done, n_all = _n_counted(plan, done), len(trials) or plan.samples
    setting = Setting(
        config=session.config,
        shared=out / "shared",
        out=place,
        teacher=teacher,
        resources=cluster_resources(),
        stopping=plan.stopping,
        on_result=_follower(session, log, place, n_done, n_all),
    )
    failed = _train_missing(plan, base, trials, done, setting)
    shutil.rmtree(out / ".tune", ignore_errors=True)
    results = _those_of(plan, base, trials, read_results(place))
    for name in results:
        log.record(place / f"{name}.json")
    return results | {trial.name: result_of(trial, Progress(), reason) for trial, reason in failed}


def _done(
    plan: SweepPlan, base: Trial, trials: Sequence[Trial], place: Path
) -> dict[str, dict[str, Any]]:
    """Results of this sweep's points that stand; those of trainings that failed, and are asked for
    again, are removed.
    """
    found = _those_of(plan, base, trials, read_results(place))
    for trial in trials:
        if trial.name in found and found[trial.name]["error"]:
            (place / f"{trial.name}.json").unlink()
    return {name: result for name, result in found.items() if not result["error"]}


def _n_counted(plan: SweepPlan, done: dict[str, dict[str, Any]]) -> int:
    """How many of these results are what was asked for: of a search its own, while it knows a
    grid's, too.
    """
    return sum(plan.search == "grid" or result["is_search"] for result in done.values())


def _base(session: Session, plan: SweepPlan) -> Trial:
    """The configuration's own point, which the sweep varies."""
    config = session.config
    return Trial(
        alpha=config.distil.alpha,
        beta=config.distil.beta,
        tau=config.synthesis.tau,
        temperature=config.distil.temperature,
        n_per_class=config.synthesis.n_per_class,
        seed=plan.seeds[0],
        steps=_steps(session, plan),
    )


def _follower(
    session: Session, log: SweepLog, trials: Path, n_done: int, n_all: int
) -> Callable[[dict[str, Any]], None]:
    """Shows each evaluation of any trial, and records the trials that are done."""
    counted = [n_done]

    def follow(result: dict[str, Any]) -> None:
        counted[0] += bool(result.get("done"))
        name, figure = result["trial_name"], result["macro_f1"]
        figures = {"done": counted[0], "of": n_all, "trial": name, "macro_f1": figure}
        session.console.progress(f"{counted[0]}/{n_all} done  macro-F1 {figure:.3f}", figures)
        if result.get("done"):
            log.record(trials / f"{name}.json")

    return follow


def _train_missing(
    plan: SweepPlan,
    base: Trial,
    trials: Sequence[Trial],
    done: dict[str, dict[str, Any]],
    setting: Setting,
) -> list[tuple[Trial, str]]:
    """Train what has no result; gives the trials whose processes died, and why."""
    missing = [trial for trial in trials if trial.name not in done]
    if missing:
        return run_trials(missing, setting)
    n_left = plan.samples - _n_counted(plan, done)
    if plan.search != "optuna" or n_left <= 0:
        return []
    return search_trials(
        base,
        dict(plan.ranges),
        setting,
        samples=n_left,
        seeds=plan.seeds,
        known=_known(plan, done),
    )


def _steps(session: Session, plan: SweepPlan) -> int:
    """Optimiser steps of every training: the epochs over the most rows that any of them has, so
    that they differ in what they learn from and not in how long.
    """
    config = session.config
    most = max(plan.grid.get("n_per_class", (config.synthesis.n_per_class,)))
    real = read_splits(session.directory.require("corpus", "teacher …"))["seed"].num_rows
    rows = real + len(config.data.labels) * learned_from(most)
    train = config.student.train
    return -(-rows // train.batch_size) * train.epochs


def _those_of(
    plan: SweepPlan, base: Trial, trials: Sequence[Trial], results: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Results of this sweep's points, whatever else was tried in the directory; trainings that an
    earlier sweep cut short are none where none is to be cut.
    """
    if plan.stopping == "none":
        results = {name: result for name, result in results.items() if not result["cut"]}
    if plan.search == "grid":
        names = {trial.name for trial in trials}
        return {name: result for name, result in results.items() if name in names}

    def is_inside(values: dict[str, Any]) -> bool:
        free = {"seed", "settings", *plan.ranges}
        fixed = dataclasses.asdict(base)
        if any(values[k] != v for k, v in fixed.items() if k not in free):
            return False
        settings = {key for key in plan.ranges if key not in fixed}
        point = {**values, **values["settings"]}
        return (
            set(values["settings"]) == settings
            and values["seed"] in plan.seeds
            and all(low <= point[key] <= high for key, (_, low, high) in plan.ranges.items())
        )

    return {name: result for name, result in results.items() if is_inside(result["trial"])}


def _conclude(
    session: Session,
    plan: SweepPlan,
    out: Path,
    results: dict[str, dict[str, Any]],
    diversity: dict[str, dict[str, float]],
    runner: TrialRunner,
    log: SweepLog,
) -> None:
    """Choose on validation, then look at the test rows once, and tell."""
    config = session.config
    dims = list(plan.grid) or list(plan.ranges)
    measured = {
        name: diversity.get(Trial(**result["trial"]).selection, {})
        for name, result in results.items()
    }
    points = points_of(results, dims, measured)
    if not any(point["values"] for point in points):
        reasons = {result["error"] for result in results.values()}
        raise SweepError(f"no training of the sweep succeeded: {'; '.join(sorted(reasons))}")
    best = max(candidates(points), key=lambda p: p["mean"])
    test = read_splits(session.directory.require("corpus", "teacher …"))["test"]
    texts, labels = test[schema.TEXT].to_pylist(), test[schema.LABELS].to_numpy().astype(np.int64)
    tested = []
    for name in best["trials"]:
        trial = Trial(**results[name]["trial"])
        model, tokenizer = runner.finished(trial, results[name]["steps"])
        logits = predict_logits(model, tokenizer, texts, max_length=config.student.max_length)
        figure = macro_f1(labels, logits.argmax(axis=1), len(config.data.labels))
        tested.append({"trial": name, "seed": trial.seed, "test_macro_f1": figure})
        if results[name]["best"]["macro_f1"] == max(best["values"]):
            shutil.rmtree(out / "student", ignore_errors=True)
            tokenizer.model_max_length = config.student.max_length
            save_model(model, tokenizer, out / "student")
    for path in (out / "trials").glob("*.work"):
        if path.stem not in best["trials"]:
            shutil.rmtree(path)
    sentence = verdict(best, points, dims)
    summary = {
        "kind": plan.kind,
        "dims": dims,
        "seeds": list(plan.seeds),
        "points": points,
        "cut": sum(result["cut"] for result in results.values()),
        "trainings": len(results),
        "best": best,
        "test": tested,
        "verdict": sentence,
    }
    write_json(out / "summary.json", summary)
    write_text(out / "results.csv", to_csv(results, dims, measured))
    write_text(out / "report.html", render_sweep(config.name, summary))
    _show(session, summary, out)
    log.conclude(summary, out, plan.register)


def _show(session: Session, summary: dict[str, Any], out: Path) -> None:
    dims = summary["dims"]
    ranked = sorted(summary["points"], key=lambda p: -(p["mean"] or 0.0))[:12]
    rows = [
        [
            told(point["point"], dims),
            _figure(point),
            str(len(point["values"])),
        ]
        for point in ranked
    ]
    console = session.console
    console.table("macro-F1 on validation rows, mean ± deviation", ["setting", "F1", "seeds"], rows)
    tested = [entry["test_macro_f1"] for entry in summary["test"]]
    spread = f" ± {np.std(tested, ddof=1):.3f}" if len(tested) > 1 else ""
    console.result("")
    console.result(summary["verdict"])
    console.result(f"On the test rows the best setting has {np.mean(tested):.3f}{spread}.")
    console.result(f"report   {out / 'report.html'}")
    console.result(f"student  {out / 'student'}")


def _figure(point: dict[str, Any]) -> str:
    if point["mean"] is None:
        return "failed"
    return f"{point['mean']:.3f}" + ("" if point["std"] is None else f" ± {point['std']:.3f}")


def _grid(base: Trial, plan: SweepPlan) -> list[Trial]:
    trials = []
    for values in product(*plan.grid.values()) if plan.grid else ():
        point = dict(zip(plan.grid, values, strict=True))
        fields = {k: v for k, v in point.items() if k in Trial.__dataclass_fields__}
        settings = {k: v for k, v in point.items() if k not in fields}
        trials += [
            dataclasses.replace(base, **fields, settings=settings, seed=seed) for seed in plan.seeds
        ]
    return list({trial.name: trial for trial in trials}.values())


def _known(plan: SweepPlan, done: dict[str, dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Points that a search has tried, and their figures."""
    points = []
    for result in done.values():
        values = {**result["trial"], **result["trial"]["settings"]}
        if result["best"]:
            points.append(({k: values[k] for k in plan.ranges}, result["best"]["macro_f1"]))
    return points


def _parts(session: Session, teacher: Path) -> dict[str, Any]:
    """What all trials of a directory have in common."""
    config = session.config
    student = config.student
    start = student.model
    newer = {} if CODE_VERSION == _TRAININGS_UNNAMED else {"trainings": CODE_VERSION}
    return {
        "code": _CODE_VERSION,
        **newer,
        "plan": fingerprint(plan_parts(session)),
        "teacher": model_digest(teacher),
        "student": student.model_dump(mode="json"),
        "start": start if starts_from_teacher(start) else model_digest(resolve_model(start)),
        "distil": config.distil.model_dump(mode="json"),
        "tau": config.synthesis.tau,
        "n_per_class": config.synthesis.n_per_class,
    }
