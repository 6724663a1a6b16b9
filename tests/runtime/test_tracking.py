"""MLflow's records: of a server that goes away in the middle of a run, and comes back; of a run
that another one replaces; of sweeps that end early, and of trainings that are tried again.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sentisynth.cli import main
from sentisynth.config.load import load_config
from sentisynth.data.files import write_json
from sentisynth.errors import SweepError
from sentisynth.runtime.outbox import Outbox
from sentisynth.runtime.sweep_log import SweepLog
from sentisynth.runtime.tracking import PARENT, Tracker
from sentisynth.training.checkpoint import Progress
from sentisynth.training.trials import Trial, result_of
from tests.flows.nodes import free_port, wait_for


@contextmanager
def server(path: Path, port: int) -> Iterator[None]:
    """`mlflow server` on loopback, over a store in `path`."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{path / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(path / "artifacts")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        import socket

        def answers() -> bool:
            with socket.socket() as asked:
                return asked.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_for(answers, "the MLflow server", 120)
            yield
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_goes_away_loses_nothing(
    tmp_path: Path,
    quick_overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ray_session: None,
) -> None:
    from mlflow import MlflowClient

    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    command = ["teacher", "quickstart", *quick_overrides, "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "cannot be used" in capsys.readouterr().err

    from sentisynth.flows import training

    serving = server(tmp_path, port)
    serving.__enter__()
    run = training.run_training

    def away(*arguments: object) -> None:
        serving.__exit__(None, None, None)
        run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "run_training", away)
    assert main(command) == 0
    assert "records are kept in" in capsys.readouterr().err
    (pending,) = (tmp_path / "run").glob("mlflow-pending-*.jsonl")
    assert pending.is_file() and (tmp_path / "run" / "teacher" / "model.safetensors").is_file()
    with server(tmp_path, port):
        assert main(command) == 0
        assert not pending.exists()
        client = MlflowClient(f"http://127.0.0.1:{port}")
        experiments = [e.experiment_id for e in client.search_experiments()]
        (stage,) = client.search_runs(experiments, "tags.stage = 'teacher'")
        assert stage.info.status == "FINISHED" and stage.data.metrics["macro_f1"] > 0
        assert client.list_artifacts(stage.info.run_id, "teacher")


def children(tracker: Tracker, parent: str) -> list[Any]:
    found = tracker.client.search_runs([tracker.experiment], f"tags.`{PARENT}` = '{parent}'")
    return list(found)


def test_what_an_earlier_run_left_joins_it_and_not_the_run_of_another_configuration(
    tmp_path: Path,
) -> None:
    first = Tracker(load_config("quickstart"), tmp_path)
    known = {PARENT: first.run_id, "sentisynth_key": "teacher-1", "stage": "teacher"}
    left = [
        {"what": "start", "run": "teacher-1", "tags": known, "name": "teacher", "time": 1.0},
        {"what": "tag", "run": "teacher-1", "name": "kept", "value": "yes"},
        {"what": "end", "run": "teacher-1", "status": "KILLED", "time": 2000},
        {"what": "tag", "run": "generator-1", "name": "of nobody", "value": "yes"},
        {"what": "end", "run": "generator-1", "status": "KILLED", "time": 2000},
        {"what": "tag", "run": first.run_id, "name": "of the first", "value": "yes"},
    ]
    (tmp_path / name_of(first.outbox)).write_text("".join(json.dumps(e) + "\n" for e in left))
    second = Tracker(load_config("quickstart", ["seed=7"]), tmp_path)
    assert second.run_id != first.run_id and len(second.outbox) == 0
    (child,) = children(second, first.run_id)
    assert child.data.tags["kept"] == "yes" and child.info.status == "KILLED"
    assert not children(second, second.run_id)
    before, after = (second.client.get_run(run_id) for run_id in (first.run_id, second.run_id))
    assert before.data.tags["of the first"] == "yes" and before.data.params["seed"] == "41"
    assert "of nobody" not in after.data.tags and after.data.params["seed"] == "7"
    assert after.info.status == "RUNNING"


def name_of(outbox: Outbox) -> str:
    return outbox._file.name


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (SweepError("none"), "FAILED")]
)
def test_a_sweep_that_ends_early_is_no_longer_running(
    tmp_path: Path, error: BaseException, status: str
) -> None:
    tracker = Tracker(load_config("quickstart"), tmp_path)
    log = SweepLog(tracker, "tau", tmp_path / "sweep.json", ["tau"], {})
    with pytest.raises(type(error)), log.at_work():
        raise error
    assert tracker.client.get_run(log.run_id).info.status == status


def test_a_training_that_failed_and_was_tried_again_is_recorded_both_times(tmp_path: Path) -> None:
    trial = Trial(alpha=0.1, beta=0.3, tau=0.9, temperature=2.0, n_per_class=9, seed=1, steps=8)
    figures = {"step": 8, "macro_f1": 0.5}
    done = Progress(step=8, best_step=8, evaluations=[figures])
    path = tmp_path / f"{trial.name}.json"
    tracker = Tracker(load_config("quickstart"), tmp_path)
    for result in (result_of(trial, Progress(), "the loss is no number"), result_of(trial, done)):
        write_json(path, result)
        for _ in range(2):  # each once, in whatever process
            log = SweepLog(tracker, "tau", tmp_path / "sweep.json", ["alpha"], {})
            log.record(path)
            log.record(path)
    runs = children(tracker, log.run_id)
    assert sorted(run.data.tags.get("error", "") for run in runs) == ["", "the loss is no number"]
