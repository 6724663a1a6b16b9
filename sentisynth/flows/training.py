"""Stages A, B and E: the three trainings of a run, on Ray Train."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from sentisynth.config.types import RunConfig, TrainConfig
from sentisynth.data.files import read_json, write_text
from sentisynth.flows.cards import model_card
from sentisynth.flows.console import training_line
from sentisynth.flows.session import Session
from sentisynth.models.classifier import starts_from_teacher
from sentisynth.models.loading import model_digest, resolve_model
from sentisynth.runtime.tracking import StageLog
from sentisynth.runtime.train import run_training
from sentisynth.seeding import fingerprint
from sentisynth.training.checkpoint import read_progress
from sentisynth.training.jobs import ARMS, Arm, adapt, distil, teach

_NOT_THE_RESULT = {"gpus_per_worker", "checkpoint_every", "max_restarts"}
_CODE_VERSION = 2  # raise it when the same parts would give another model


def train_teacher(session: Session) -> None:
    """Stage A."""
    config = session.config
    corpus = session.directory.require("corpus", f"teacher {config.name}")
    parts = {**_parts(session, "teacher", config.teacher.model), "labels": list(config.data.labels)}
    title = f"A  teacher: {_short(config.teacher.model)} on {config.data.n_seed:,} labelled rows"
    job = partial(teach, config, corpus)
    _train(session, "teacher", title, parts, job, config.teacher.train)


def train_generator(session: Session) -> None:
    """Stage B."""
    config = session.config
    corpus = session.directory.require("corpus", f"generator {config.name}")
    parts = _parts(session, "generator", config.generator.model)
    parts["control_tokens"] = control_tokens(config)
    del parts["generator"]["prompts"]  # they are used in synthesis alone
    title = f"B  generator: {_short(config.generator.model)}, a control token a class"
    job = partial(adapt, config, corpus)
    _train(session, "generator", title, parts, job, config.generator.train)


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
    if starts_from_teacher(config.student.model):
        parts["teacher"] = model_digest(teacher)
    if arm.soft:
        parts["alpha"] = config.distil.alpha
        parts["temperature"] = config.distil.temperature
    job = partial(distil, config, arm, corpus, dataset, teacher)
    title = f"E  {arm.title}"
    _train(session, arm.name, title, parts, job, config.student.train)


def _parts(session: Session, section: str, model: str) -> dict[str, Any]:
    """What decides a training's result: code, seed, real rows, settings, starting weights."""
    settings = getattr(session.config, section)
    values = settings.model_dump(mode="json", exclude={"model": True, "train": _NOT_THE_RESULT})
    return {
        "code": _CODE_VERSION,
        "seed": session.config.seed,
        "corpus": fingerprint(session.directory.read_stamp("corpus")),
        section: values,
        "model": model if starts_from_teacher(model) else model_digest(resolve_model(model)),
    }


def _train(
    session: Session, name: str, title: str, parts: dict[str, Any], job: Any, train: TrainConfig
) -> None:
    """Run `job(out=…, work=…, report=…)` on Ray Train, unless that was done; follow it.

    Checkpoints lie in a directory of the run that is removed with the training's end.
    """
    place = f".training/{name}"

    def build(out: Path, log: StageLog) -> None:
        work = session.directory.begin(place, parts)

        def follow(entry: dict[str, Any]) -> None:
            session.console.progress(training_line(entry))
            log.metrics(entry, step=int(entry["step"]))

        def restarted(times: int, reason: str) -> None:
            session.console.event(
                "restart", f"   {reason}; going on from the last checkpoint", times=times
            )

        begun = read_progress(work)
        if begun.step:
            session.console.note(f"   going on from the checkpoint at step {begun.step}")
        run_training(
            lambda report: job(out=out, work=work, report=report), train, work, follow, restarted
        )
        write_text(out / "README.md", model_card(session.config, name, out))
        log.metrics(
            {k: v for k, v in read_json(out / "metrics.json").items() if k != "evaluations"}
        )

    session.do(name, title, parts, build)
    shutil.rmtree(session.directory.path / place, ignore_errors=True)


def _short(reference: str) -> str:
    return reference.removeprefix("package:").rstrip("/").rsplit("/", 1)[-1]
