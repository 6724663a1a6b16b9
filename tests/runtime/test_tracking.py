"""A tracking server that goes away in the middle of a run, and comes back."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sentisynth.cli import main
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
