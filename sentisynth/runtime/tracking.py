"""MLflow: one parent run a pipeline, one child run a stage. The one user of MLflow."""

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sentisynth.config.types import RunConfig
from sentisynth.data.files import write_json
from sentisynth.errors import RunDirectoryError, TrackingError
from sentisynth.seeding import fingerprint

_PARENT = "mlflow.parentRunId"
_ILLEGAL = re.compile(r"[^a-zA-Z0-9_\-. ]")
_LONGEST_KEY, _LONGEST_VALUE = 240, 6000


class StageLog:
    """The MLflow run of one stage."""

    def __init__(self, client: Any, uri: str, run_id: str) -> None:
        self._client, self._uri, self._run_id = client, uri, run_id

    def metrics(self, figures: dict[str, Any], step: int = 0) -> None:
        """Numbers of a nested mapping under dotted names; what is no number is left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = {
            _key(name): float(value)
            for name, value in flatten(figures).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        entries = [Metric(name, value, now, step) for name, value in numbers.items()]
        with _store(self._uri):
            for start in range(0, len(entries), 500):
                self._client.log_batch(self._run_id, metrics=entries[start : start + 500])

    def params(self, values: dict[str, Any]) -> None:
        """A nested mapping under dotted names."""
        from mlflow.entities import Param

        entries = [
            Param(_key(name), str(value)[:_LONGEST_VALUE])
            for name, value in flatten(values).items()
        ]
        with _store(self._uri):
            for start in range(0, len(entries), 100):
                self._client.log_batch(self._run_id, params=entries[start : start + 100])

    def dataset(self, name: str, path: Path, digest: str, n_rows: int) -> None:
        """A data file that went in, with its sha256."""
        from mlflow.entities import Dataset, DatasetInput

        entry = Dataset(
            name=name,
            digest=digest[:36],
            source_type="local",
            source=json.dumps({"uri": str(path)}),
            profile=json.dumps({"num_rows": n_rows, "sha256": digest}),
        )
        with _store(self._uri):
            self._client.log_inputs(self._run_id, datasets=[DatasetInput(entry)])

    def artifacts(self, path: Path, name: str) -> None:
        """A directory or a file that came out."""
        with _store(self._uri):
            if path.is_dir():
                self._client.log_artifacts(self._run_id, str(path), name)
            else:
                self._client.log_artifact(self._run_id, str(path))


class Tracker:
    """The parent run of a run directory. The same configuration goes on with the same MLflow run,
    another one (after --overwrite) starts a new one.
    """

    def __init__(self, config: RunConfig, directory: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from mlflow import MlflowClient

        for name in ("mlflow", "mlflow.store.db.utils", "alembic"):  # what they say is raised, too
            logging.getLogger(name).setLevel(logging.CRITICAL)

        own = directory / "mlflow"
        given = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        is_own = given is None
        self.uri = uri = given or f"sqlite:///{own / 'mlflow.db'}"
        with _store(uri):
            if is_own:
                _make_store(own / "mlflow.db")
            self.client = MlflowClient(tracking_uri=uri)
            self.experiment = self._experiment_id(
                config.tracking.experiment, (own / "artifacts").as_uri() if is_own else None
            )
        self._file = directory / "mlflow.json"
        self._identity = {
            "uri": uri,
            "experiment": config.tracking.experiment,
            "config": fingerprint(config.model_dump(mode="json")),
        }
        self.run_id = self._continued() or self._started(config)
        self.log = StageLog(self.client, self.uri, self.run_id)

    @contextmanager
    def stage(self, name: str) -> Iterator[StageLog]:
        """A child run, ended with what happened in the block."""
        with _store(self.uri):
            run = self.client.create_run(
                self.experiment, tags={_PARENT: self.run_id, "stage": name}, run_name=name
            )
        with self._ending(run.info.run_id):
            yield StageLog(self.client, self.uri, run.info.run_id)

    @contextmanager
    def parent(self) -> Iterator[None]:
        """The parent run, ended with what happened in the block."""
        with self._ending(self.run_id):
            yield

    @contextmanager
    def _ending(self, run_id: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            # what happened in the block is what matters
            with suppress(TrackingError), _store(self.uri):
                self.client.set_terminated(run_id, "KILLED" if stopped else "FAILED")
            raise
        with _store(self.uri):
            self.client.set_terminated(run_id, "FINISHED")

    def _experiment_id(self, name: str, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name, artifact_location=artifacts))
        return str(found.experiment_id)

    def _continued(self) -> str | None:
        if not self._file.is_file():
            return None
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
            run_id = str(known.pop("run_id"))
        except (ValueError, KeyError, AttributeError):
            raise RunDirectoryError(f"{self._file} is damaged; remove it") from None
        if known != self._identity:
            return None
        from mlflow.exceptions import MlflowException

        try:
            self.client.update_run(run_id, status="RUNNING")
        except MlflowException:  # the store was removed: a new run
            return None
        return run_id

    def _started(self, config: RunConfig) -> str:
        run = self.client.create_run(self.experiment, run_name=config.name)
        run_id = str(run.info.run_id)
        write_json(self._file, {**self._identity, "run_id": run_id})
        StageLog(self.client, self.uri, run_id).params(config.model_dump(mode="json"))
        return run_id


class SweepLog:
    """The MLflow run of a sweep, and below it one run a trial, each once whatever is resumed."""

    def __init__(self, tracker: Tracker, kind: str, file: Path) -> None:
        self._tracker, self._client, self._uri = tracker, tracker.client, tracker.uri
        self._kind = kind
        with _store(self._uri):
            self.run_id = self._known(file) or self._started(file)
            runs = self._client.search_runs(
                [tracker.experiment], f"tags.`{_PARENT}` = '{self.run_id}'", max_results=50000
            )
            self._logged = {run.data.tags["trial"] for run in runs if run.info.status == "FINISHED"}
            for run in runs:
                if run.info.status != "FINISHED":  # cut off in the writing
                    self._client.delete_run(run.info.run_id)

    def record(self, path: Path) -> None:
        """Log a concluded trial from its file, unless that was done."""
        if path.stem in self._logged or not path.is_file():
            return
        from mlflow.entities import Metric, Param

        result = json.loads(path.read_text(encoding="utf-8"))
        with _store(self._uri):
            tags = {_PARENT: self.run_id, "trial": path.stem}
            run = self._client.create_run(self._tracker.experiment, tags=tags, run_name=path.stem)
            now = int(time.time() * 1000)
            metrics = [
                Metric(_key(name), float(value), now, int(entry["step"]))
                for entry in result["evaluations"]
                for name, value in entry.items()
                if name not in ("step", "total_steps")
            ]
            for name, value in (result["best"] or {}).items():
                metrics.append(Metric(_key(f"best.{name}"), float(value), now, 0))
            metrics.append(Metric("seconds", float(result["seconds"]), now, 0))
            parameters = flatten(result["trial"]).items()
            params = [Param(_key(name), str(value)) for name, value in parameters]
            self._client.log_batch(run.info.run_id, params=params)
            for start in range(0, len(metrics), 500):
                self._client.log_batch(run.info.run_id, metrics=metrics[start : start + 500])
            if result["error"]:
                self._client.set_tag(run.info.run_id, "error", result["error"])
            self._client.set_terminated(run.info.run_id, "FINISHED")
        self._logged.add(path.stem)

    def conclude(self, summary: dict[str, Any], out: Path, register: str) -> None:
        """The best setting, its figures, what was written of the sweep; and the best student as a
        version of the registered model `register`, with the alias `best`, if it has a name.
        """
        log = StageLog(self._client, self._uri, self.run_id)
        best = summary["best"]
        log.metrics({"best": {"mean": best["mean"], "std": best["std"]}})
        tested = [entry["test_macro_f1"] for entry in summary["test"]]
        log.metrics({"best": {"test_macro_f1": sum(tested) / len(tested)}})
        for name in ("summary.json", "results.csv", "report.html"):
            log.artifacts(out / name, "")
        log.artifacts(out / "student", "student")
        with _store(self._uri):
            self._client.set_tag(self.run_id, "best", json.dumps(best["point"]))
            self._client.set_terminated(self.run_id, "FINISHED")
            if register:
                self._register(register)

    def _register(self, name: str) -> None:
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        source = f"{self._client.get_run(self.run_id).info.artifact_uri}/student"
        version = self._client.create_model_version(name, source, self.run_id)
        self._client.set_registered_model_alias(name, "best", version.version)

    def _known(self, file: Path) -> str | None:
        if not file.is_file():
            return None
        from mlflow.exceptions import MlflowException

        known = json.loads(file.read_text(encoding="utf-8"))
        run_id = str(known["run_id"])
        if known.get("experiment") != self._tracker.experiment:
            return None
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException:  # of another store
            return None
        return run_id

    def _started(self, file: Path) -> str:
        tags = {_PARENT: self._tracker.run_id, "sweep": self._kind}
        run = self._client.create_run(
            self._tracker.experiment, tags=tags, run_name=f"sweep {self._kind}"
        )
        known = {"run_id": run.info.run_id, "experiment": self._tracker.experiment}
        write_json(file, known)
        return str(run.info.run_id)


def _make_store(file: Path) -> None:
    """Make an empty store aside, then rename: one that is cut off in the making stays unusable."""
    from mlflow import MlflowClient

    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    for left in file.parent.glob(f".{file.name}-*"):
        left.unlink()
    # a name of its own each time: MLflow keeps connections by name, to removed files as well
    aside = file.with_name(f".{file.name}-{time.time_ns()}")
    MlflowClient(tracking_uri=f"sqlite:///{aside}").search_experiments(max_results=1)
    aside.rename(file)


@contextmanager
def _store(uri: str) -> Iterator[None]:
    """Say in a sentence what a store that cannot be used answers."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TrackingError(
            f"the MLflow store {uri} cannot be used ({reason}); set tracking.uri to another"
        ) from None


def _key(name: str) -> str:
    """A name that MLflow takes, different for different names: class names may be anything."""
    key = _ILLEGAL.sub(lambda found: f"-{ord(found[0]):x}-", name)
    if len(key) > _LONGEST_KEY:
        key = key[: _LONGEST_KEY - 9] + "-" + fingerprint(name)[:8]
    return key


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists under dotted names."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)  # type: ignore[assignment]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, child in items:
        flat |= flatten(child, f"{prefix}.{key}" if prefix else str(key))
    return flat
