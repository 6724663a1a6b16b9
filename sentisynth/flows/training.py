"""Stages A, B and E: the three trainings of a run, on Ray Train."""

from functools import partial
from pathlib import Path
from typing import Any

from sentisynth.config.types import RunConfig, TrainConfig
from sentisynth.data.files import read_json
from sentisynth.flows.console import training_line
from sentisynth.flows.session import Session
from sentisynth.models.classifier import FRESH
from sentisynth.models.loading import model_digest, resolve_model
from sentisynth.runtime.tracking import StageLog
from sentisynth.runtime.train import run_training
from sentisynth.seeding import fingerprint
from sentisynth.training.jobs import ARMS, Arm, Report, adapt, distil, teach

_CODE_VERSION = 1  # raise it when the same parts would give another model


def train_teacher(session: Session) -> None:
    """Stage A."""
    config = session.config
    corpus = session.directory.require("corpus", f"teacher {config.name}")
    parts = {**_parts(session, "teacher", config.teacher.model), "labels": list(config.data.labels)}
    title = f"A  teacher: {_short(config.teacher.model)} on {config.data.n_seed:,} labelled rows"
    job = partial(teach, config, corpus)
    session.do("teacher", title, parts, _build(session, job, config.teacher.train))


def train_generator(session: Session) -> None:
    """Stage B."""
    config = session.config
    corpus = session.directory.require("corpus", f"generator {config.name}")
    parts = _parts(session, "generator", config.generator.model)
    parts["control_tokens"] = control_tokens(config)
    del parts["generator"]["prompts"]  # they are used in synthesis alone
    title = f"B  generator: {_short(config.generator.model)}, a control token a class"
    job = partial(adapt, config, corpus)
    session.do("generator", title, parts, _build(session, job, config.generator.train))


def distil_students(session: Session) -> None:
    """Stage E: the student on real rows alone, twice, and on real and synthetic rows."""
    for arm in ARMS:
        _distil(session, arm)


def control_tokens(config: RunConfig) -> list[str]:
    """The control token of each class, in the order of the labels."""
    return [config.control_token(label) for label in range(len(config.data.labels))]


def _distil(session: Session, arm: Arm) -> None:
    config, directory = session.config, session.directory
    corpus = directory.require("corpus", f"distil {config.name}")
    teacher = directory.require("teacher", f"teacher {config.name}")
    dataset = directory.require("dataset", f"synthesize {config.name}")
    parts = {
        **_parts(session, "student", config.student.model),
        "dataset": fingerprint(directory.read_stamp("dataset")),
        "arm": arm.name,
    }
    if config.student.model.startswith(FRESH):
        parts["tokenizer"] = model_digest(teacher)
    if arm.soft:
        parts["alpha"] = config.distil.alpha
        parts["temperature"] = config.distil.temperature
    job = partial(distil, config, arm, corpus, dataset, teacher)
    title = f"E  {arm.title}"
    session.do(arm.name, title, parts, _build(session, job, config.student.train))


def _parts(session: Session, section: str, model: str) -> dict[str, Any]:
    """What decides a training's result: code, seed, real rows, settings, starting weights."""
    values = getattr(session.config, section).model_dump(mode="json", exclude={"model"})
    fresh = model.startswith(FRESH)
    return {
        "code": _CODE_VERSION,
        "seed": session.config.seed,
        "corpus": fingerprint(session.directory.read_stamp("corpus")),
        section: values,
        "model": model if fresh else model_digest(resolve_model(model)),
    }


def _build(session: Session, job: Any, train: TrainConfig) -> Any:
    """A builder that runs `job(out=…, report=…)` on Ray Train, and follows it."""

    def build(out: Path, log: StageLog) -> None:
        def follow(entry: dict[str, Any]) -> None:
            session.console.progress(training_line(entry))
            log.metrics(entry, step=int(entry["step"]))

        def work(report: Report) -> None:
            job(out=out, report=report)

        storage = session.directory.path / ".ray_train"
        run_training(work, train, storage, follow)
        log.metrics(
            {k: v for k, v in read_json(out / "metrics.json").items() if k != "evaluations"}
        )

    return build


def _short(reference: str) -> str:
    return reference.removeprefix("package:").rstrip("/").rsplit("/", 1)[-1]
