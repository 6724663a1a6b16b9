"""A sweep in MLflow: a run of its own, and below it one run a trial, each once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentisynth.data.files import sha256_file, write_json
from sentisynth.errors import TrackingError
from sentisynth.runtime.tracking import PARENT, StageLog, Tracker, store
from sentisynth.training.trials import Trial, read_result

_FINISHED = "FINISHED"
_CUT, _ERROR = "cut", "error"
_OF_STEPS = ("step", "total_steps")


class SweepLog:
    """The MLflow run of a sweep; whatever is resumed, a trial is recorded once.

    `dims` are the fields of a trial that the sweep varies, `digests` the sha256 of the rows of each
    selection (`Trial.selection`).
    """

    def __init__(
        self,
        tracker: Tracker,
        kind: str,
        file: Path,
        dims: Sequence[str],
        digests: Mapping[str, str],
    ) -> None:
        self._dims, self._digests = dims, digests
        self._tracker, self._client, self._uri = tracker, tracker.client, tracker.uri
        self._kind = kind
        with store(self._uri):
            self.run_id = self._known(file) or self._started(file)
            runs = self._client.search_runs(
                [tracker.experiment], f"tags.`{PARENT}` = '{self.run_id}'", max_results=50000
            )
            self._logged = {
                (run.data.tags["trial"], _CUT in run.data.tags, run.data.tags.get(_ERROR, ""))
                for run in runs
                if run.info.status == _FINISHED
            }
            for run in runs:
                if run.info.status != _FINISHED:  # cut off in the writing
                    self._client.delete_run(run.info.run_id)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The sweep's run, ended with what happened in the block."""
        with self._tracker.ending(StageLog(self._tracker.outbox, self.run_id)):
            yield

    def record(self, path: Path) -> None:
        """Log a concluded trial from its file, unless that was done."""
        if not path.is_file():
            return
        result = read_result(path)
        # one that was cut may be trained to its end later, one that failed is tried again
        what = (path.stem, result["cut"], result["error"])
        if what in self._logged:
            return
        trial = Trial(**result["trial"])
        values = {**result["trial"], **trial.settings}
        name = ", ".join(f"{d.rsplit('.', 1)[-1]}={values.get(d)}" for d in (*self._dims, "seed"))
        log = self._tracker.child(name, self.run_id, {"trial": path.stem})
        log.params({**result["trial"], "fingerprint": path.stem})
        log.params({"dataset": self._digests.get(trial.selection, "")})
        log.curve(
            (int(entry["step"]), {k: v for k, v in entry.items() if k not in _OF_STEPS})
            for entry in result["evaluations"]
        )
        log.metrics({"best": result["best"] or {}, "seconds": result["seconds"]})
        if result["error"]:
            log.tag(_ERROR, result["error"])
        if result["cut"]:
            log.tag(_CUT, "true")
        log.end(_FINISHED)
        self._logged.add(what)

    def conclude(self, summary: dict[str, Any], out: Path, register: str) -> None:
        """The best setting, its figures, what was written of the sweep; and the best student as a
        version of the registered model `register`, with the alias `best`, if it has a name.
        """
        log = StageLog(self._tracker.outbox, self.run_id)
        best = summary["best"]
        tested = [entry["test_macro_f1"] for entry in summary["test"]]
        figures = {"mean": best["mean"], "std": best["std"]}
        log.metrics({"best": {**figures, "test_macro_f1": sum(tested) / len(tested)}})
        for name in ("summary.json", "results.csv", "report.html"):
            log.artifacts(out / name, "")
        # a later best student is another one: a version that is registered keeps its weights
        place = f"student-{sha256_file(out / 'student' / 'model.safetensors')[:12]}"
        log.artifacts(out / "student", place)
        log.tag("best", json.dumps(best["point"]))
        if register:
            with store(self._uri):
                self._register(register, place)

    def _register(self, name: str, place: str) -> None:
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        source = f"{self._client.get_run(self.run_id).info.artifact_uri}/{place}"
        known = self._client.search_model_versions(f"name = '{name}'")
        version = next((v for v in known if v.source == source), None)
        if version is None:
            version = self._client.create_model_version(name, source, self.run_id)
        self._client.set_registered_model_alias(name, "best", version.version)

    def _known(self, file: Path) -> str | None:
        if not file.is_file():
            return None
        known = json.loads(file.read_text(encoding="utf-8"))
        run_id = str(known["run_id"])
        if known.get("experiment") != self._tracker.experiment:
            return None
        try:
            with store(self._uri):
                self._client.update_run(run_id, status="RUNNING")
        except TrackingError:  # of another store
            return None
        return run_id

    def _started(self, file: Path) -> str:
        tags = {PARENT: self._tracker.run_id, "sweep": self._kind}
        run = self._client.create_run(
            self._tracker.experiment, tags=tags, run_name=f"sweep {self._kind}"
        )
        known = {"run_id": run.info.run_id, "experiment": self._tracker.experiment}
        write_json(file, known)
        return str(run.info.run_id)
