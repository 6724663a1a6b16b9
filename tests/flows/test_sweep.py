"""Sweeps: many students from one pool, each trained once, whatever is interrupted."""

import csv
import io
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from sentisynth.cli import main
from sentisynth.config.load import load_config
from sentisynth.config.types import RunConfig
from sentisynth.config.yaml_text import parse_value
from sentisynth.data.files import sha256_file, write_json
from sentisynth.errors import ConfigError, QuotaError
from sentisynth.evaluation.sweeps import candidates, points_of, sweep_plots, to_csv, verdict
from sentisynth.flows import sweep, sweep_rows
from sentisynth.flows.sweep import _done, _those_of
from sentisynth.flows.sweep_plan import plan_sweep
from sentisynth.flows.sweep_rows import selection_digests
from sentisynth.models.loading import model_digest
from sentisynth.training.checkpoint import Progress
from sentisynth.training.rows import Rows
from sentisynth.training.trials import Trial, read_results, result_of

CHOICES: dict[str, Any] = {"seeds": [1], "search": "grid", "samples": 4, "stopping": "none"}


@pytest.fixture(scope="module")
def swept(
    finished_run: Path, quick_overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A sweep of four trainings, while the weights of teacher and generator are not there."""
    out = tmp_path_factory.mktemp("sweep") / "run"
    shutil.copytree(finished_run, out)
    command = ["sweep", "alpha-beta", "quickstart", *quick_overrides, "--out", str(out)]
    command += ["dim.alpha=[0.2,0.9]", "dim.beta=[0.5]", "register=mini", "--seeds", "41,42"]
    weights = [out / name / "model.safetensors" for name in ("teacher", "generator")]
    known = {path.parent: model_digest(path.parent) for path in weights}
    with pytest.MonkeyPatch.context() as patch:
        for module in ("parts", "sweep"):
            patch.setattr(
                f"sentisynth.flows.{module}.model_digest",
                lambda path: known.get(path) or model_digest(path),
            )
        for path in weights:
            path.rename(path.with_suffix(".away"))
        assert main(command) == 0
        for path in weights:
            path.with_suffix(".away").rename(path)
    return out, command


def runs_of(out: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{out / 'mlflow' / 'mlflow.db'}")
    parent = json.loads((out / "sweep" / "alpha-beta" / "mlflow.json").read_text())["run_id"]
    experiments = [e.experiment_id for e in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent}'")
    assert client.get_run(parent).info.status == "FINISHED"
    return list(found)


def test_a_grid_is_trained_reported_and_recorded(swept: tuple[Path, list[str]]) -> None:
    out = swept[0] / "sweep" / "alpha-beta"
    with (out / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {(r["alpha"], r["beta"], r["seed"]) for r in rows} == {
        (a, "0.5", s) for a in ("0.2", "0.9") for s in ("41", "42")
    }
    summary = json.loads((out / "summary.json").read_text())
    assert [len(point["values"]) for point in summary["points"]] == [2, 2]
    assert summary["best"]["mean"] == max(point["mean"] for point in summary["points"])
    assert {entry["seed"] for entry in summary["test"]} == {41, 42}
    page = (out / "report.html").read_text()
    assert summary["verdict"] in page.replace("&#39;", "'") and "<svg" in page
    assert (out / "student" / "model.safetensors").is_file()
    assert not (out / ".tune").exists()


def test_mlflow_has_each_trial_once(swept: tuple[Path, list[str]]) -> None:
    runs = runs_of(swept[0])
    assert len({run.data.tags["trial"] for run in runs}) == len(runs) == 4
    assert {run.data.params["alpha"] for run in runs} == {"0.2", "0.9"}
    assert all("best.macro_f1" in run.data.metrics for run in runs)


def test_only_what_is_missing_is_trained_again(swept: tuple[Path, list[str]]) -> None:
    out, command = swept
    trials = out / "sweep" / "alpha-beta" / "trials"
    before = {path.name: path.read_bytes() for path in trials.glob("*.json")}
    times = {path.name: path.stat().st_mtime_ns for path in trials.glob("*.json")}
    lost = sorted(before)[0]
    (trials / lost).unlink()
    shutil.rmtree(trials / f"{lost.removesuffix('.json')}.work", ignore_errors=True)
    assert main(command) == 0
    for path in trials.glob("*.json"):
        assert (path.stat().st_mtime_ns == times[path.name]) == (path.name != lost)
        first, second = json.loads(before[path.name]), json.loads(path.read_text())
        assert first["evaluations"] == second["evaluations"]
    assert len(runs_of(out)) == 4


def test_the_best_student_is_registered_once(swept: tuple[Path, list[str]]) -> None:
    """The same command again has the same best student; another one would lie beside it."""
    from mlflow import MlflowClient

    out = swept[0]
    client = MlflowClient(f"sqlite:///{out / 'mlflow' / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'mini'")
    assert client.get_model_version_by_alias("mini", "best").version == version.version
    digest = sha256_file(out / "sweep" / "alpha-beta" / "student" / "model.safetensors")
    assert version.source.endswith(f"/student-{digest[:12]}")


def test_a_training_that_fails_is_a_row_with_its_reason(
    finished_run: Path, quick_overrides: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    command = ["sweep", "arms", "quickstart", *quick_overrides, "--out", str(out)]
    command += ["dim.arm=[soft,unverified]", "dim.student.model=[fresh:bert-tiny,teacher:99]"]
    assert main([*command, "--seeds", "41"]) == 0
    assert "nothing is known of the spread" in (out / "sweep/arms/summary.json").read_text()
    summary = json.loads((out / "sweep" / "arms" / "summary.json").read_text())
    failed = [p for p in summary["points"] if p["point"]["student.model"] == "teacher:99"]
    assert len(failed) == 2
    assert all("write teacher:N with N from 1" in p["errors"][0] for p in failed)
    assert all(p["mean"] is not None for p in summary["points"] if p not in failed)


@pytest.mark.slow
def test_a_search_and_a_pool_that_is_extended(
    finished_run: Path, quick_overrides: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    common = ["quickstart", *quick_overrides, "--out", str(out), "--seeds", "41"]
    assert main(["sweep", "tau", *common, "dim.tau=[0.5,0.6]"]) == 0
    assert main(["check", str(out)]) == 0
    search = ["search=optuna", "samples=3", "stopping=asha", "dim.beta=uniform(0.1,1)"]
    assert main(["sweep", "alpha", *common, *search]) == 0
    trials = list((out / "sweep" / "alpha" / "trials").glob("*.json"))
    assert len(trials) == 3
    assert main(["sweep", "alpha", *common, "samples=4", *search[2:], search[0]]) == 0
    assert len(list((out / "sweep" / "alpha" / "trials").glob("*.json"))) == 4


@pytest.mark.parametrize(
    ("kind", "dims", "choices", "told"),
    [
        ("alpha", {"alpha": []}, {}, r"dim.alpha is \[\]; write a list"),
        ("alpha", {"alpha": [0.5, 1.5]}, {}, r"dim.alpha has 1.5; it must lie in \[0, 1\]"),
        ("tau", {"tau": ["high"]}, {}, r"dim.tau has 'high'"),
        ("alpha", {"alfa": [0.5]}, {}, r"dim.alfa is neither alpha, beta"),
        ("alpha", {"alpha": "uniform(0,1)"}, {}, r"dim.alpha is a range; a grid needs a list"),
        ("alpha", {"alpha": "uniform(1,0)"}, {"search": "optuna"}, "the first bound must be"),
        ("arms", {"arm": ["soft", "loud"]}, {}, "dim.arm is 'loud'"),
        ("size", {"size": [-1]}, {}, "dim.size has -1"),
        ("alpha", {}, {"seeds": []}, "at least one seed"),
        ("tau", {}, {"search": "optuna"}, "ranges, and tau is a list; leave out search=optuna"),
        ("arms", {}, {"search": "optuna"}, "ranges, and arm is a list; leave out search=optuna"),
        ("alpha", {"alpha": [0.5]}, {"search": "optuna"}, r"is a list; give it as uniform\(a,b\)"),
        ("alpha", {"tau": "uniform(0.5,0.9)"}, {"search": "optuna"}, "only alpha, beta"),
        ("alpha", {"tau": "uniform(0.5,0.9)"}, {}, "as a list, and leave out search=optuna"),
        ("alpha", {"beta": "uniform(0,2)"}, {"search": "optuna"}, r"dim.beta has 2.0"),
        ("alpha", {"seed": [1, 2]}, {}, "dim.seed is neither"),
        ("alpha", {"student.train.workers": [2]}, {}, "dim.student.train.workers is neither"),
        ("arms", {"student.model": ["gpt2"]}, {}, "only fresh:SHAPE and teacher:N go together"),
        ("alpha", {}, {"seeds": [-1]}, r"the seeds are \[-1\]"),
        ("alpha", {}, {"search": "random"}, "search is 'random'"),
        ("alpha", {}, {"samples": 0}, "samples is 0"),
        ("alpha", {}, {"stopping": "soon"}, "stopping is 'soon'"),
        ("alpha", {"student.train.learning_rate": [0]}, {}, "student.train.learning_rate is 0"),
        ("alpha", {}, {"register": "models/mini"}, "register is 'models/mini'; a registered model"),
        ("alpha", {}, {"register": "mini:1"}, "register is 'mini:1'"),
        ("alpha", {}, {"register": "mini's"}, 'register is "mini\'s"'),
        ("alpha", {}, {"register": " "}, "register is ' '"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_a_sentence(
    kind: Any, dims: dict[str, Any], choices: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        plan_sweep(kind, load_config("quickstart"), dims, **{**CHOICES, **choices})


def test_a_registered_model_has_any_plain_name() -> None:
    for name in ("mini", "Mini 2.1-beta_3", "catalog.schema.mini", "kleines_Modell_für_alle"):
        plan = plan_sweep("alpha", load_config("quickstart"), {}, **CHOICES, register=name)
        assert plan.register == name


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    rates = parse_value("[1e-4, 0.0001, 1.5E-3]")
    dims = {"beta": parse_value("[1e-1,2e-1,1]"), "student.train.learning_rate": rates}
    grid = plan_sweep("beta", load_config("quickstart"), dims, **CHOICES).grid
    assert grid["beta"] == (0.1, 0.2, 1.0)
    assert grid["student.train.learning_rate"] == (1e-4, 1e-4, 1.5e-3)
    assert all(type(value) is float for values in grid.values() for value in values)


def test_a_pool_is_extended_as_far_as_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest wish is out of reach: the others are met, and the pool of before stays."""
    asked: list[tuple[float, int]] = []

    @dataclass
    class Session:
        config: RunConfig
        console: Any

    def fill(session: Any) -> None:
        synthesis = session.config.synthesis
        asked.append((synthesis.tau, synthesis.n_per_class))
        if synthesis.tau > 0.97:
            raise QuotaError("out of reach")

    monkeypatch.setattr(sweep_rows, "fill_pool", fill)
    notes: list[str] = []
    base = load_config("quickstart", ["synthesis.tau=0.7", "synthesis.n_per_class=30"])
    session: Any = Session(config=base, console=SimpleNamespace(note=notes.append))
    sweep_rows._extend(session, {(0.9, 30), (0.99, 30), (0.95, 60)})
    assert asked == [(0.99, 60), (0.9, 30), (0.95, 60), (0.99, 30), (0.7, 30)]
    assert notes == ["   out of reach"]


@pytest.mark.parametrize(
    ("points", "drawn"),
    [
        ([(a, b) for a in (0.1, 0.5) for b in (1, 2, 3)], ["Map of macro-F1"]),
        ([(i / 9, 10.0**-i) for i in range(9)], ["9 points by macro-F1"]),
    ],
)
def test_points_that_fill_no_grid_are_scattered(
    points: list[tuple[float, float]], drawn: list[str]
) -> None:
    found = [{"point": {"x": x, "y": y}, "mean": x + y, "values": [0.5]} for x, y in points]
    plots = sweep_plots({"dims": ["x", "y"], "points": found})
    assert [plot.alt[: len(told)] for plot, told in zip(plots, drawn, strict=True)] == drawn


def test_a_run_without_a_pool_is_a_sentence(
    quick_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "alpha", "quickstart", *quick_overrides, "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "run `sentisynth teacher …` first" in capsys.readouterr().err


@pytest.mark.parametrize(("stopping", "wanted"), [("none", ["whole"]), ("asha", ["cut", "whole"])])
def test_trainings_that_were_cut_count_where_some_may_be_cut(
    stopping: str, wanted: list[str], tmp_path: Path
) -> None:
    trials = [Trial(**result(0.1, seed, 0.5)["trial"]) for seed in (1, 2)]
    for trial, steps in zip(trials, (2, 8), strict=True):
        progress = Progress(step=steps, best_step=steps, evaluations=[{"step": steps}])
        found = result_of(trial, progress, stopped=True)
        write_json(tmp_path / f"{trial.name}.json", found)
    plan: Any = SimpleNamespace(search="grid", stopping=stopping)
    counted = _those_of(plan, trials[0], trials, read_results(tmp_path))
    names = {trial.name: name for trial, name in zip(trials, ("cut", "whole"), strict=True)}
    assert sorted(names[name] for name in counted) == wanted
    table = to_csv(read_results(tmp_path), ["alpha"], {})
    assert sorted(row["cut"] for row in csv.DictReader(io.StringIO(table))) == ["0", "1"]


def test_a_training_that_failed_is_missing_for_the_next_command(tmp_path: Path) -> None:
    trials = [Trial(**result(0.1, seed, 0.5)["trial"]) for seed in (1, 2)]
    write_json(tmp_path / f"{trials[0].name}.json", result_of(trials[0], Progress(), "no number"))
    write_json(tmp_path / f"{trials[1].name}.json", result_of(trials[1], Progress(step=8)))
    plan: Any = SimpleNamespace(search="grid", stopping="none")
    assert list(_done(plan, trials[0], trials, tmp_path)) == [trials[1].name]
    assert list(read_results(tmp_path)) == [trials[1].name]


def test_a_search_counts_its_own_points_and_knows_those_of_a_grid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, dims = load_config("quickstart"), {"alpha": "uniform(0,1)"}
    plan = plan_sweep("alpha", config, dims, **{**CHOICES, "search": "optuna"})
    asked: list[Any] = []
    monkeypatch.setattr(sweep, "search_trials", lambda *_, **given: asked.append(given))
    done = {f"t{i}": {**result(i / 10, 1, 0.5), "is_search": i == 0} for i in range(5)}
    base: Any = Trial(**done["t0"]["trial"])
    sweep._train_missing(plan, base, [], done, cast(Any, None))
    assert asked[0]["samples"] == 3 and len(asked[0]["known"]) == 5
    drawn = {name: {**found, "is_search": True} for name, found in done.items()}
    assert sweep._train_missing(plan, base, [], drawn, cast(Any, None)) == [] and len(asked) == 1


def test_a_sweep_on_disk_is_refused_where_the_code_of_trainings_gives_other_students(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sweep, "plan_parts", lambda _: {})
    monkeypatch.setattr(sweep, "model_digest", lambda _: "")
    session: Any = SimpleNamespace(config=load_config("quickstart"))
    parts = sweep._parts(session, tmp_path)
    assert parts["code"] == 1 and "trainings" not in parts  # as before stamps named it
    monkeypatch.setattr(sweep, "CODE_VERSION", 3)
    assert sweep._parts(session, tmp_path) == {**parts, "trainings": 3}


def test_the_same_rows_have_the_same_digest_wherever_they_lie(tmp_path: Path) -> None:
    texts = {"a": [1, 2], "b": [3], "c": [4, 5, 6]}

    def digests(name: str, order: str, selections: dict[str, str]) -> dict[str, str]:
        shared, soft = tmp_path / name, np.array([[ord(t), 1.0] for t in order], np.float32)
        shared.mkdir()
        labels = np.zeros(len(order))
        Rows.of([texts[t] for t in order], labels, soft_labels=soft).save(shared / "rows.arrow")
        places = {k: np.array([order.index(t) for t in v]) for k, v in selections.items()}
        np.savez(shared / "selections.npz", **cast(Any, places))
        return selection_digests(shared)

    alone = digests("alone", "ab", {"real": "a", "n=1": "b"})
    beside = digests("beside", "acb", {"real": "a", "n=1": "b", "n=2": "cb"})
    assert {name: beside[name] for name in alone} == alone
    assert len(set(beside.values())) == 3


def result(alpha: float, seed: int, f1: float | None) -> dict[str, Any]:
    trial = Trial(
        alpha=alpha, beta=0.3, tau=0.9, temperature=2.0, n_per_class=9, seed=seed, steps=8
    )
    values = {k: getattr(trial, k) for k in Trial.__dataclass_fields__}
    best = None if f1 is None else {"macro_f1": f1}
    return {"trial": values, "best": best, "cut": False, "error": "" if best else "it failed"}


def test_points_have_their_spread_and_the_verdict_their_lead() -> None:
    figures = {(0.1, 1): 0.60, (0.1, 2): 0.62, (0.5, 1): 0.70, (0.5, 2): 0.72, (0.9, 1): None}
    results = {f"t{i}": result(a, s, f) for i, ((a, s), f) in enumerate(figures.items())}
    points = points_of(results, ["alpha"], {})
    assert [p["mean"] for p in points] == [pytest.approx(0.61), pytest.approx(0.71), None]
    assert points[1]["std"] == pytest.approx(0.0141, abs=1e-4) and points[2]["errors"]
    assert points[1]["low"] == pytest.approx(0.70) and points[1]["high"] == pytest.approx(0.72)
    told = verdict(points[1], points, ["alpha"])
    assert "α 0.5, 0.710 ± 0.014; it leads α 0.1" in told and "more than twice" in told


def test_the_best_setting_has_all_its_seeds_where_one_has() -> None:
    figures = {(0.1, 1): 0.60, (0.1, 2): 0.62, (0.5, 1): 0.90, (0.5, 2): None}
    results = {f"t{i}": result(a, s, f) for i, ((a, s), f) in enumerate(figures.items())}
    points = points_of(results, ["alpha"], {})
    assert candidates(points) == points[:1]
    told = verdict(points[0], points, ["alpha"])
    assert told.endswith("Left out of the choice, since a training is missing: 1 of 2 settings.")
    results["t0"] = result(0.1, 1, None)
    results["t4"] = result(0.9, 1, None)
    points = points_of(results, ["alpha"], {})
    assert candidates(points) == points[:2]
    told = verdict(points[1], points, ["alpha"])
    assert "α 0.5, 0.900; it leads α 0.1" in told
    assert told.endswith(
        "No setting has all its seeds: this is the choice among those that have 1."
    )


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_killed_driver_leaves_no_trace(
    swept: tuple[Path, list[str]], finished_run: Path, tmp_path: Path
) -> None:
    """Killed after the first and after the third of four trainings."""
    calm, command = swept
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    command = [str(out) if part == str(calm) else part for part in command]
    trials = out / "sweep" / "alpha-beta" / "trials"
    code = "import sys; from sentisynth.cli import main; sys.exit(main(sys.argv[1:]))"
    for n_done in (1, 3):
        with subprocess.Popen([sys.executable, "-c", code, *command]) as process:
            while len(list(trials.glob("*.json"))) < n_done:
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
    assert main(command) == 0
    for path in (calm / "sweep" / "alpha-beta" / "trials").glob("*.json"):
        first, second = json.loads(path.read_text()), json.loads((trials / path.name).read_text())
        assert first["evaluations"] == second["evaluations"]
    assert len(runs_of(out)) == 4
    first, second = (r / "sweep" / "alpha-beta" / "student" for r in (calm, out))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
