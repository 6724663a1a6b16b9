"""Sweeps and studies: many students from one pool, on Ray Tune. Nothing is generated or scored.

sweep/<kind>/shared/        tokenised rows, logits and selections that all trials map
sweep/<kind>/trials/        a JSON file a trial, written once it is done
sweep/<kind>/student/       the best student by validation macro-F1
sweep/<kind>/results.csv  summary.json  report.html
"""

import dataclasses
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sentisynth import schema
from sentisynth.config.load import parse_config, with_values
from sentisynth.config.types import RunConfig
from sentisynth.data.files import write_json, write_text
from sentisynth.data.ledger import SCORED
from sentisynth.data.logits import logits_of
from sentisynth.data.manifest import read_manifest, read_receipts
from sentisynth.data.select import HELD_OUT, TRAIN, select, split_synthetic, synthetic_rows
from sentisynth.errors import ConfigError, QuotaError, SweepError, TrackingError
from sentisynth.evaluation.metrics import distinct_n, macro_f1, mean_entropy
from sentisynth.evaluation.sweeps import points_of, render_sweep, to_csv, told, verdict
from sentisynth.flows.parts import plan_parts
from sentisynth.flows.session import Session
from sentisynth.flows.synthesize import fill_pool
from sentisynth.models.classifier import predict_logits, starts_from_teacher
from sentisynth.models.loading import load_tokenizer, model_digest, resolve_model, save_model
from sentisynth.runtime.ray_cluster import cluster_resources
from sentisynth.runtime.tracking import SweepLog
from sentisynth.runtime.tune import Stopping, run_trials, search_trials
from sentisynth.seeding import fingerprint
from sentisynth.training.checkpoint import Progress
from sentisynth.training.jobs import read_splits
from sentisynth.training.tasks import classification_rows
from sentisynth.training.trials import (
    HARD,
    REAL,
    ROWS,
    SELECTIONS,
    SOFT,
    UNVERIFIED,
    VALIDATION,
    Trial,
    TrialRunner,
    read_results,
    result_of,
    selection_name,
)

Kind = Literal["alpha-beta", "alpha", "beta", "tau", "temperature", "size", "arms"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TENTHS = tuple(round(0.1 * i, 1) for i in range(1, 11))
_GRIDS: dict[Kind, dict[str, tuple[Any, ...]]] = {
    "alpha-beta": {"alpha": _TENTHS, "beta": _TENTHS},
    "alpha": {"alpha": _TENTHS},
    "beta": {"beta": _TENTHS},
    "tau": {"tau": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)},
    "temperature": {"temperature": (1.0, 2.0, 4.0, 8.0)},
    "size": {"n_per_class": ()},  # shares of the pool
    "arms": {"arm": (SOFT, HARD, UNVERIFIED)},
}
_SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
_KEYS = {  # what people call the fields of a trial
    "alpha": "alpha",
    "beta": "beta",
    "tau": "tau",
    "temperature": "temperature",
    "size": "n_per_class",
    "arm": "arm",
    "distil.alpha": "alpha",
    "distil.beta": "beta",
    "synthesis.tau": "tau",
    "distil.temperature": "temperature",
    "synthesis.n_per_class": "n_per_class",
}
_OTHER_KEYS = (
    "student.model",
    *(f"student.train.{key}" for key in ("learning_rate", "schedule", "warmup_ratio")),
    *(f"student.train.{key}" for key in ("weight_decay", "max_grad_norm", "early_stopping")),
)
_RANGES = ("alpha", "beta", "temperature", _OTHER_KEYS[1], *_OTHER_KEYS[3:6])
_BOUNDS = {"alpha": (0, 1), "beta": (0, 1), "tau": (0, 1), "temperature": (1e-3, 100)}
_RANGE = re.compile(r"^(uniform|loguniform)\(([^,]+),([^,]+)\)$")
_CODE_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a sweep tries."""

    kind: Kind
    grid: Mapping[str, tuple[Any, ...]]
    ranges: Mapping[str, tuple[str, float, float]]
    """Of a search: uniform or loguniform, and the bounds."""
    seeds: tuple[int, ...]
    search: Literal["grid", "optuna"]
    samples: int
    stopping: Stopping
    register: str
    """Name of a registered model whose alias `best` the best student gets; empty: none."""


def plan_sweep(
    kind: Kind,
    config: RunConfig,
    dims: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    search: Literal["grid", "optuna"],
    samples: int,
    stopping: Stopping,
    register: str = "",
) -> SweepPlan:
    """The dimensions of a kind, changed and joined by `dims`. Raises ConfigError."""
    grid: dict[str, tuple[Any, ...]] = dict(_GRIDS[kind])
    ranges: dict[str, tuple[str, float, float]] = {}
    if kind == "size":
        most = config.synthesis.n_per_class
        grid = {"n_per_class": tuple(sorted({int(share * most) for share in _SHARES}))}
    for name, value in dims.items():
        key = _KEYS.get(name, name)
        if key not in _KEYS.values() and key not in _OTHER_KEYS:
            raise ConfigError(
                f"dim.{name} is neither {', '.join(list(_KEYS)[:6])} nor one of "
                f"{', '.join(_OTHER_KEYS)}"
            )
        found = _RANGE.match(value.replace(" ", "")) if isinstance(value, str) else None
        if found:
            if key not in _RANGES:
                raise ConfigError(
                    f"dim.{name} is a range; only {', '.join(_RANGES)} can be searched: give "
                    f"dim.{name} as a list"
                )
            ranges[key] = _range(name, found)
            _check_values(config, key, ranges[key][1:])
            grid.pop(key, None)
        elif isinstance(value, list) and value:
            as_is = [float(v) if key in _BOUNDS and type(v) is int else v for v in value]
            grid[key] = tuple(as_is)
        else:
            raise ConfigError(
                f"dim.{name} is {value!r}; write a list such as [0.2,0.5], or uniform(0,1) or "
                f"loguniform(1e-5,1e-3) with search=optuna"
            )
    if search == "grid" and ranges:
        raise ConfigError(
            f"dim.{next(iter(ranges))} is a range; a grid needs a list, or search=optuna"
        )
    if search not in ("grid", "optuna"):
        raise ConfigError(f"search is {search!r}; it must be grid or optuna")
    if stopping not in get_args(Stopping):
        raise ConfigError(f"stopping is {stopping!r}; it must be none, asha or median")
    if not isinstance(samples, int) or samples < 1:
        raise ConfigError(f"samples is {samples!r}; it must be a whole number of at least 1")
    for key, values in grid.items():
        _check_values(config, key, values)
    if search == "optuna":
        given = {_KEYS.get(name, name) for name in dims}
        lists = [key for key in grid if key in given or key not in _RANGES]
        if lists:
            raise ConfigError(
                f"search=optuna searches ranges, and {lists[0]} is a list; give it as "
                f"uniform(a,b), or leave out search=optuna"
            )
        ranges |= {key: ("uniform", min(values), max(values)) for key, values in grid.items()}
        grid = {}
    if not all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds):
        raise ConfigError(f"the seeds are {list(seeds)}; they must be whole numbers of at least 0")
    if not seeds:
        raise ConfigError("a sweep needs at least one seed; give --seeds 41,42,43")
    return SweepPlan(
        kind=kind,
        grid=grid,
        ranges=ranges,
        seeds=tuple(dict.fromkeys(seeds)),
        search=search,
        samples=samples,
        stopping=stopping,
        register=str(register),
    )


def run_sweep(session: Session, plan: SweepPlan) -> None:
    """Train what is missing, choose by validation, report. The same again goes on."""
    config, directory = session.config, session.directory
    teacher = directory.require("teacher", f"teacher {config.name}")
    out = directory.path / "sweep" / plan.kind
    directory.begin(f"sweep/{plan.kind}", _parts(session, teacher))
    base = Trial(
        alpha=config.distil.alpha,
        beta=config.distil.beta,
        tau=config.synthesis.tau,
        temperature=config.distil.temperature,
        n_per_class=config.synthesis.n_per_class,
        seed=plan.seeds[0],
        steps=_steps(session, plan),
    )
    trials = _grid(base, plan)
    what = f"{plan.search}, " + (f"{len(trials)} trainings" if trials else f"{plan.samples} points")
    selections, impossible = _selections(session, trials or [base])
    diversity = _prepare(session, selections, out / "shared", teacher)
    (out / "trials").mkdir(exist_ok=True)
    trials = [trial for trial in trials if trial.selection not in impossible]
    done = _those_of(plan, base, trials, read_results(out / "trials"))
    missing = [trial for trial in trials if trial.name not in done]
    log = SweepLog(session.tracker, plan.kind, out / "mlflow.json")
    runner = TrialRunner(out / "shared", out / "trials", config, teacher)
    n_all, counted = len(trials) or plan.samples, [len(done)]

    def follow(result: dict[str, Any]) -> None:
        counted[0] += bool(result.get("done"))
        figure = f"macro-F1 {result['macro_f1']:.3f}"
        session.console.progress(f"{counted[0]}/{n_all} done  {figure}")
        if result.get("done"):
            with suppress(TrackingError):  # it is recorded at the end, or the end says why not
                log.record(out / "trials" / f"{result['trial_name']}.json")

    common: dict[str, Any] = {
        "config": config,
        "shared": out / "shared",
        "out": out / "trials",
        "teacher": teacher,
        "resources": cluster_resources(),
        "stopping": plan.stopping,
        "on_result": follow,
    }
    failed: list[tuple[Trial, str]] = []
    with session.console.stage(f"sweep {plan.kind}: {what}"):
        if missing:
            failed = run_trials(missing, **common)
        elif plan.search == "optuna" and len(done) < plan.samples:
            failed = search_trials(
                base,
                dict(plan.ranges),
                samples=plan.samples - len(done),
                seeds=plan.seeds,
                known=[
                    (_point(r["trial"], plan), r["best"]["macro_f1"])
                    for r in done.values()
                    if r["best"]
                ],
                **common,
            )
        shutil.rmtree(out / ".tune", ignore_errors=True)
    results = _those_of(plan, base, trials, read_results(out / "trials"))
    for name in results:
        log.record(out / "trials" / f"{name}.json")
    # processes that died are told of, and tried again by the next command
    results |= {trial.name: result_of(trial, Progress(), reason) for trial, reason in failed}
    for trial in _grid(base, plan):
        if trial.selection in impossible:
            results[trial.name] = result_of(trial, Progress(), impossible[trial.selection])
    _conclude(session, plan, out, results, diversity, runner, log)


def _steps(session: Session, plan: SweepPlan) -> int:
    """Optimiser steps of every training: the epochs over the most rows that any of them has, so
    that they differ in what they learn from and not in how long.
    """
    config = session.config
    most = max(plan.grid.get("n_per_class", (config.synthesis.n_per_class,)))
    real = read_splits(session.directory.require("corpus", f"sweep {plan.kind}"))["seed"].num_rows
    rows = real + len(config.data.labels) * (most - 2 * round(HELD_OUT * most))
    train = config.student.train
    return -(-rows // train.batch_size) * train.epochs


def _those_of(
    plan: SweepPlan, base: Trial, trials: Sequence[Trial], results: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Results of this sweep's points, whatever else was tried in the directory."""
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
    points = points_of(results, dims, diversity)
    if not any(point["values"] for point in points):
        reasons = {result["error"] for result in results.values()}
        raise SweepError(f"no training of the sweep succeeded: {'; '.join(sorted(reasons))}")
    best = max((p for p in points if p["values"]), key=lambda p: p["mean"])
    test = read_splits(session.directory.require("corpus", f"sweep {plan.kind}"))["test"]
    texts, labels = test[schema.TEXT].to_pylist(), test[schema.LABELS].to_numpy().astype(np.int64)
    tested = []
    for name in best["trials"]:
        trial = Trial(**results[name]["trial"])
        model, tokenizer = runner.finished(trial)
        logits = predict_logits(model, tokenizer, texts, max_length=config.student.max_length)
        figure = macro_f1(labels, logits.argmax(axis=1), len(config.data.labels))
        tested.append({"trial": name, "seed": trial.seed, "test_macro_f1": figure})
        if results[name]["best"]["macro_f1"] == max(best["values"]):
            shutil.rmtree(out / "student", ignore_errors=True)
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
        "best": best,
        "test": tested,
        "verdict": sentence,
    }
    write_json(out / "summary.json", summary)
    write_text(out / "results.csv", to_csv(results, dims, diversity))
    write_text(out / "report.html", render_sweep(config.name, summary))
    log.conclude(summary, out, plan.register)
    _show(session, summary, out)


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


def _point(trial: dict[str, Any], plan: SweepPlan) -> dict[str, Any]:
    return {k: trial[k] if k in trial else trial["settings"][k] for k in plan.ranges}


def _parts(session: Session, teacher: Path) -> dict[str, Any]:
    """What all trials of a directory have in common."""
    config = session.config
    student = config.student
    start = student.model
    return {
        "code": _CODE_VERSION,
        "plan": fingerprint(plan_parts(session)),
        "teacher": model_digest(teacher),
        "student": student.model_dump(mode="json"),
        "start": start if starts_from_teacher(start) else model_digest(resolve_model(start)),
        "distil": config.distil.model_dump(mode="json"),
        "tau": config.synthesis.tau,
        "n_per_class": config.synthesis.n_per_class,
    }


def _selections(
    session: Session, trials: Sequence[Trial]
) -> tuple[dict[str, pa.Table], dict[str, str]]:
    """Pool rows of each selection that the trials need; and why there are none of some.

    The pool is extended, once, if a trial asks for more accepted rows than it has; or filled, if an
    extension was killed.
    """
    config, directory = session.config, session.directory
    wanted = {(t.arm != UNVERIFIED, t.tau, t.n_per_class) for t in trials if t.n_per_class}
    if not wanted:
        return {}, {}
    directory.require("generator", f"generator {config.name}")
    found: dict[str, pa.Table] = {}
    short: dict[str, str] = {}
    if directory.read_stamp("pool") is not None and read_manifest(directory.pool) is None:
        fill_pool(session)
    for is_extended in (False, True):
        short = {}
        for verified, tau, n in sorted(wanted):
            name = selection_name(verified, tau, n)
            try:
                found[name] = _selected(session, verified, tau, n)
            except QuotaError as error:
                short[name] = str(error)
        if not short or is_extended:
            break
        largest = {"tau": max(t for _, t, _ in wanted), "n_per_class": max(n for *_, n in wanted)}
        synthesis = config.synthesis.model_copy(update=largest)
        try:
            fill_pool(
                dataclasses.replace(
                    session, config=config.model_copy(update={"synthesis": synthesis})
                )
            )
        except QuotaError as error:
            session.console.note(f"   {error}")
            fill_pool(session)  # the pool of before is published again, with what was made
    return found, short


def _prepare(
    session: Session, selections: dict[str, pa.Table], shared: Path, teacher: Path
) -> dict[str, dict[str, float]]:
    """Write what the trials map; returns the diversity of each selection."""
    config, directory = session.config, session.directory
    real = read_splits(directory.stage("corpus"))
    logits = logits_of(pq.read_table(teacher / "predictions" / "seed.parquet"), schema.LOGITS)
    tokenizer = _tokenizer(config, teacher)
    n_real = real["seed"].num_rows
    tables = [_labelled(real["seed"][schema.TEXT], real["seed"][schema.LABELS], logits)]
    place: dict[str, int] = {}
    for chosen in selections.values():
        ids = chosen[schema.CANDIDATE_ID].to_pylist()
        new = chosen.filter(pa.array([candidate not in place for candidate in ids]))
        for candidate in new[schema.CANDIDATE_ID].to_pylist():
            place[candidate] = n_real + len(place)
        tables.append(_labelled(new[schema.TEXT], new[schema.LABEL], logits_of(new)))
    table = pa.concat_tables(table for table in tables if table.num_rows)
    shared.mkdir(parents=True, exist_ok=True)
    rows = classification_rows(table, tokenizer, config.student.max_length, soft=True)
    rows.save(shared / ROWS)
    classification_rows(real["validation"], tokenizer, config.student.max_length).save(
        shared / VALIDATION
    )
    positions = {REAL: np.arange(n_real)}
    diversity: dict[str, dict[str, float]] = {}
    for name, chosen in selections.items():
        synthetic = synthetic_rows(chosen, beta=1.0, temperature=config.distil.temperature)
        train = split_synthetic(synthetic, config.seed)[TRAIN]
        positions[name] = np.array([place[c] for c in train[schema.CANDIDATE_ID].to_pylist()])
        texts = train[schema.TEXT].to_pylist()
        diversity[name] = {
            "distinct_1": distinct_n(texts, 1),
            "distinct_2": distinct_n(texts, 2),
            "soft_label_entropy": mean_entropy(logits_of(train, schema.SOFT_LABELS)),
        }
    arrays: dict[str, Any] = positions
    np.savez(shared / SELECTIONS, **arrays)
    return diversity


def _labelled(texts: Any, labels: Any, logits: np.ndarray) -> pa.Table:
    """Rows whose soft labels are the teacher's raw logits: trials apply their own T."""
    return pa.table(
        {
            schema.TEXT: texts.combine_chunks(),
            schema.LABELS: labels.combine_chunks().cast(pa.int32()),
            schema.SOFT_LABELS: pa.array(list(logits.astype(np.float32)), pa.list_(pa.float32())),
            schema.WEIGHTS: np.ones(len(texts), np.float32),
        }
    )


def _tokenizer(config: RunConfig, teacher: Path) -> Any:
    start = config.student.model
    return load_tokenizer(teacher if starts_from_teacher(start) else resolve_model(start))


def _selected(session: Session, verified: bool, tau: float, n: int) -> pa.Table:
    config, directory = session.config, session.directory
    manifest = read_manifest(directory.pool)
    if manifest is None:
        raise SweepError(
            f"the pool in {directory.path} is not finished; run `sentisynth synthesize "
            f"{config.name}` first"
        )
    if manifest["plan"] != fingerprint(plan_parts(session)):
        raise SweepError(
            f"the pool in {directory.path} was made under other settings than these; give those of "
            f"its config.yaml, or choose another directory with --out"
        )
    near = config.synthesis.screens.near_duplicates
    rows, _ = select(
        (
            read_receipts(directory.pool, manifest, label, near)
            for label in range(len(config.data.labels))
        ),
        tau=tau,
        n_per_class=n,
        near_duplicates=near,
        verdicts=(schema.ACCEPTED,) if verified else SCORED,
    )
    return rows


def _range(name: str, found: re.Match[str]) -> tuple[str, float, float]:
    kind, low, high = found.groups()
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = (0.0, 0.0)
    if bounds[0] >= bounds[1] or (kind == "loguniform" and bounds[0] <= 0):
        raise ConfigError(
            f"dim.{name} is {found[0]}; the first bound must be a number below the second, and of "
            f"loguniform above 0"
        )
    return kind, *bounds


def _check_values(config: RunConfig, key: str, values: tuple[Any, ...]) -> None:
    low, high = _BOUNDS.get(key, (-math.inf, math.inf))
    for value in values:
        if key == "arm" and value not in (SOFT, HARD, UNVERIFIED):
            raise ConfigError(f"dim.arm is {value!r}; it must be soft, hard or unverified")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in _BOUNDS and not (number and low <= value <= high):
            raise ConfigError(f"dim.{key} has {value!r}; it must lie in [{low:g}, {high:g}]")
        if key == "n_per_class" and not (isinstance(value, int) and value >= 0):
            raise ConfigError(f"dim.size has {value!r}; it must be a whole number of at least 0")
        start = config.student.model
        if key == "student.model" and value != start:
            both = [starts_from_teacher(str(value)), starts_from_teacher(start)]
            if not all(both):
                raise ConfigError(
                    f"dim.student.model has {value!r}; the students of a sweep share the tokens of "
                    f"{start}: only fresh:SHAPE and teacher:N go together"
                )
        if key not in _KEYS.values():
            parse_config(with_values(config.model_dump(mode="json"), {key: value}))
