"""MLflow: one parent run a pipeline, one child run a stage. The one user of MLflow."""

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentisynth.config.outside import without_secrets
from sentisynth.config.types import NamedConfig
from sentisynth.data.files import write_json
from sentisynth.errors import RunDirectoryError, TrackingError
from sentisynth.runtime.outbox import Outbox
from sentisynth.seeding import fingerprint

PARENT = "mlflow.parentRunId"
_KEY = "sentisynth_key"
_ILLEGAL = re.compile(r"[^a-zA-Z0-9_\-. ]")
_LONGEST_KEY, _LONGEST_VALUE = 240, 6000
_NEVER = (400, 404, 409, 413)  # what a store answers to what it will not take later either


class StageLog:
    """The MLflow run of one stage. What the store does not take now is kept and sent later."""

    def __init__(self, outbox: Outbox, key: str) -> None:
        self._outbox, self._key = outbox, key

    def metrics(self, figures: dict[str, Any], step: int = 0) -> None:
        """Numbers of a nested mapping under dotted names; what is no number is left out."""
        self.curve([(step, figures)])

    def curve(self, points: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """Numbers of many steps at once."""
        now = int(time.time() * 1000)
        rows = [
            [_key(name), float(value), now, step]
            for step, figures in points
            for name, value in flatten(figures).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        for start in range(0, len(rows), 500):
            self._put("metrics", rows=rows[start : start + 500])

    def params(self, values: dict[str, Any]) -> None:
        """A nested mapping under dotted names."""
        rows = [[_key(n), str(value)[:_LONGEST_VALUE]] for n, value in flatten(values).items()]
        for start in range(0, len(rows), 100):
            self._put("params", rows=rows[start : start + 100])

    def dataset(self, name: str, path: Path, digest: str, n_rows: int) -> None:
        """A data file that went in, with its sha256."""
        self._put("dataset", name=name, path=str(path), digest=digest, n_rows=n_rows)

    def artifacts(self, path: Path, name: str) -> None:
        """A directory or a file that came out."""
        self._put("artifacts", path=str(path), name=name)

    def tag(self, name: str, value: str) -> None:
        """A text that can be searched for."""
        self._put("tag", name=name, value=value)

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self._put("end", status=status, time=int(time.time() * 1000))

    def _put(self, what: str, **values: Any) -> None:
        self._outbox.put({"what": what, "run": self._key, **values})


class Tracker:
    """The parent run of a run directory. The same configuration goes on with the same MLflow run,
    another one (after --overwrite) starts a new one.

    Raises TrackingError if the store does not answer at the start; later it may be away.
    """

    def __init__(self, config: NamedConfig, directory: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
        from mlflow import MlflowClient

        for name in ("mlflow", "mlflow.store.db.utils", "alembic"):  # what they say is raised, too
            logging.getLogger(name).setLevel(logging.CRITICAL)

        own = self._own = directory / "mlflow"
        given = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        self.is_in_run = not given
        """Whether the store lies in the run directory, or in its mirror on this machine."""
        self._artifacts = None if given else (own / "artifacts").as_uri()
        uri = given or f"sqlite:///{own / 'mlflow.db'}"
        self.uri = without_secrets(uri)
        with store(self.uri):
            if self._artifacts:
                _make_store(own / "mlflow.db")
            self.client = MlflowClient(tracking_uri=uri)
            self.experiment = self._experiment_id(config.tracking.experiment)
        self._file = directory / "mlflow.json"
        self._identity = {
            "uri": self.uri,
            "experiment": config.tracking.experiment,
            "config": fingerprint(config.model_dump(mode="json")),
        }
        self._ids: dict[str, str] = {}
        # what one store did not take is not another's
        store_name = fingerprint([self.uri, config.tracking.experiment])[:8]
        self.outbox = Outbox(directory / f"mlflow-pending-{store_name}.jsonl", self._send)
        continued = self._continued()
        self.run_id = continued or self._started(config)
        self.log = StageLog(self.outbox, self.run_id)
        self.outbox.flush()
        if continued is None:
            self.log.params(config.model_dump(mode="json"))

    @contextmanager
    def stage(self, name: str) -> Iterator[StageLog]:
        """A child run, ended with what happened in the block."""
        log = self.child(name, self.run_id, {"stage": name})
        with self.ending(log):
            yield log

    def child(self, name: str, parent: str, tags: dict[str, str]) -> StageLog:
        """A new run below another one."""
        key = f"{name}-{time.time_ns()}"
        tags = {PARENT: parent, _KEY: key, **tags}
        self.outbox.put(
            {"what": "start", "run": key, "tags": tags, "name": name, "time": time.time()}
        )
        return StageLog(self.outbox, key)

    @contextmanager
    def parent(self) -> Iterator[None]:
        """The parent run, ended with what happened in the block."""
        with self.ending(self.log):
            yield
        self.outbox.flush()

    @contextmanager
    def ending(self, log: StageLog) -> Iterator[None]:
        """End a run with what happened in the block."""
        try:
            yield
        except BaseException as error:
            log.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        log.end("FINISHED")

    def _send(self, entry: dict[str, Any]) -> None:
        """Do what an entry of the outbox says. What the store will never take is left out."""
        from mlflow.exceptions import MlflowException

        with store(self.uri):
            try:
                self._do(entry)
            except MlflowException as error:
                if error.get_http_status_code() not in _NEVER:
                    raise

    def _do(self, entry: dict[str, Any]) -> None:
        from mlflow.entities import Metric, Param

        what = entry["what"]
        if what == "start":
            if entry.get("again") and self._run_of(entry["run"]) is not None:
                return  # it was made, and the process ended before it was noted
            started = int(entry["time"] * 1000)
            run = self.client.create_run(
                self.experiment, started, tags=entry["tags"], run_name=entry["name"]
            )
            self._ids[entry["run"]] = run.info.run_id
            return
        run_id = self._ids.get(entry["run"]) or self._run_of(entry["run"])
        if run_id is None:
            return  # the store did not take its start, and this run is none of its
        if what == "metrics":
            metrics = [Metric(*row) for row in entry["rows"]]
            self.client.log_batch(run_id, metrics=metrics)
        elif what == "params":
            self.client.log_batch(run_id, params=[Param(*row) for row in entry["rows"]])
        elif what == "dataset":
            self.client.log_inputs(run_id, datasets=[_dataset(entry)])
        elif what == "artifacts":
            self._send_artifacts(run_id, Path(entry["path"]), entry["name"])
        elif what == "tag":
            self.client.set_tag(run_id, entry["name"], entry["value"])
        elif what == "end":
            self.client.set_terminated(run_id, entry["status"], entry["time"])

    def _send_artifacts(self, run_id: str, path: Path, name: str) -> None:
        """What lies in the run directory; a path that leads elsewhere is not ours to send, nor does
        a store of our own that is a stranger's lead us elsewhere.
        """
        if not path.resolve().is_relative_to(self._file.parent.resolve()):
            return
        if self._artifacts:
            place = self.client.get_run(run_id).info.artifact_uri
            if place != f"{self._artifacts}/{run_id}/artifacts":
                raise self._strange(place)
        try:
            if path.is_dir():
                self.client.log_artifacts(run_id, str(path), name)
            elif path.is_file():
                self.client.log_artifact(run_id, str(path))
        except Exception as error:  # noqa: BLE001  each kind of store has classes of its own
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status not in _NEVER:
                raise OSError(str(error)) from None

    def _run_of(self, key: str) -> str | None:
        """The run of a child that another process began, if there is one; another run's key is its
        own id.
        """
        if "-" not in key:
            return key
        found = self.client.search_runs([self.experiment], f"tags.{_KEY} = '{key}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _strange(self, place: str) -> TrackingError:
        return TrackingError(
            f"the MLflow store of this run keeps artifacts in {place}, not in its own directory; "
            f"remove {self._own}, or set tracking.uri"
        )

    def _experiment_id(self, name: str) -> str:
        artifacts = self._artifacts
        found = self.client.get_experiment_by_name(name)
        if found and artifacts and found.artifact_location != artifacts:
            # a run directory that was copied or moved, or is a stranger's: files stay in it
            name = f"{name} {fingerprint(artifacts)[:8]}"
            found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name, artifact_location=artifacts))
        if artifacts and found.artifact_location != artifacts:
            raise self._strange(found.artifact_location)
        return str(found.experiment_id)

    def _continued(self) -> str | None:
        if not self._file.is_file():
            return None
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
            run_id = str(known.pop("run_id"))
        except (ValueError, KeyError, AttributeError, RecursionError):
            raise RunDirectoryError(f"{self._file} is damaged; remove it") from None
        if known != self._identity:
            return None
        from mlflow.exceptions import MlflowException

        try:
            self.client.update_run(run_id, status="RUNNING")
        except MlflowException:  # the store was removed: a new run
            return None
        return run_id

    def _started(self, config: NamedConfig) -> str:
        with store(self.uri):
            run = self.client.create_run(self.experiment, run_name=config.name)
        run_id = str(run.info.run_id)
        write_json(self._file, {**self._identity, "run_id": run_id})
        return run_id


def _dataset(entry: dict[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput

    return DatasetInput(
        Dataset(
            name=entry["name"],
            digest=entry["digest"][:36],
            source_type="local",
            source=json.dumps({"uri": entry["path"]}),
            profile=json.dumps({"num_rows": entry["n_rows"], "sha256": entry["digest"]}),
        )
    )


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
def store(uri: str) -> Iterator[None]:
    """Say in a sentence what a store that cannot be used answers."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        reason = without_secrets(" ".join(str(error).split()))[:300]
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
