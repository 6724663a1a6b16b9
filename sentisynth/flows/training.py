"""Stages A, B and E: the three trainings of a run, on Ray Train."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from sentisynth.config.load import parse_config
from sentisynth.config.types import RunConfig, TrainConfig
from sentisynth.data.files import read_json, write_json, write_text
from sentisynth.data.storage import download_files, remove_tree
from sentisynth.flows.cards import model_card
from sentisynth.flows.console import training_line
from sentisynth.flows.made import START, with_models
from sentisynth.flows.session import Session, Workplace
from sentisynth.models.classifier import starts_from_teacher
from sentisynth.models.loading import model_digest, resolve_model
from sentisynth.runtime.recovery import run_training
from sentisynth.runtime.tracking import StageLog
from sentisynth.runtime.train import KeptGroup, kept_group
from sentisynth.seeding import fingerprint
from sentisynth.training.checkpoint import read_progress
from sentisynth.training.jobs import ARMS, Arm, adapt, distil, teach
from sentisynth.training.remote import Job, run_from_store, run_here

_NOT_THE_RESULT = {"gpus_per_worker", "checkpoint_every", "max_restarts"}
_SHARED_OUT = {
    *("micro_batch_size", "gradient_checkpointing", "workers"),
    *("engine", "zero_stage", "offload", "deepspeed"),
}
_FEW = 0.02  # of the texts that a model learns from
CODE_VERSION = 2  # raise it when the same parts would give another model


def shared_workers(place: Workplace) -> AbstractContextManager[KeptGroup]:
    """Workers for the trainings of the block, started with the first of them."""
    return kept_group(place.directory.path / ".training" / "ray")


def train_teacher(session: Session, workers: KeptGroup | None = None) -> None:
    """Stage A."""
    config = session.config
    session.directory.require("corpus", "teacher …")
    parts = {**_parts(session, "teacher", config.teacher.model), "labels": list(config.data.labels)}
    title = f"A  teacher: {_short(config.teacher.model)} on {config.data.n_seed:,} labelled rows"
    _train(session, "teacher", title, parts, partial(teach, config), ["corpus"], workers)


def train_generator(session: Session, workers: KeptGroup | None = None) -> None:
    """Stage B."""
    config = session.config
    session.directory.require("corpus", "generator …")
    parts = _parts(session, "generator", config.generator.model)
    parts["control_tokens"] = control_tokens(config)
    del parts["generator"]["prompts"]  # they are used in synthesis alone
    title = f"B  generator: {_short(config.generator.model)}, a control token a class"
    _train(session, "generator", title, parts, partial(adapt, config), ["corpus"], workers)


def distil_students(session: Session) -> None:
    """Stage E: the student on real rows alone, twice, and on real and synthetic rows."""
    with shared_workers(session) as workers:
        for arm in ARMS:
            _distil(session, arm, workers)


def control_tokens(config: RunConfig) -> list[str]:
    """The control token of each class, in the order of the labels."""
    return [config.control_token(label) for label in range(len(config.data.labels))]


def _distil(session: Session, arm: Arm, workers: KeptGroup) -> None:
    config, directory = session.config, session.directory
    directory.require("corpus", "distil …")
    teacher = directory.require_trained("teacher")
    directory.require("dataset", "synthesize …")
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
    inputs = ["corpus", "dataset", "teacher"]
    job = partial(distil, config, arm)
    _train(session, arm.name, f"E  {arm.title}", parts, job, inputs, workers)


def _parts(session: Session, section: str, model: str) -> dict[str, Any]:
    """What decides a training's result: code, seed, real rows, settings, starting weights."""
    settings = getattr(session.config, section)
    values = settings.model_dump(mode="json", exclude={"model": True, "train": _NOT_THE_RESULT})
    return {
        "code": CODE_VERSION,
        "seed": session.config.seed,
        "corpus": fingerprint(session.directory.read_stamp("corpus")),
        section: values,
        "model": model if starts_from_teacher(model) else model_digest(resolve_model(model)),
    }


def _train(
    session: Session,
    name: str,
    title: str,
    parts: dict[str, Any],
    job: Job,
    inputs: Sequence[str],
    workers: KeptGroup | None = None,
) -> None:
    section = name if name in ("teacher", "generator") else "student"
    settings = getattr(session.config, section)
    train: TrainConfig = settings.train
    card = partial(model_card, _config_of_card(session, section), name)
    # a file that others get names no folder of this machine
    notes = {} if os.path.isabs(settings.model) else {START: settings.model}
    train_on_ray(session, name, title, parts, train, job, inputs, card, workers, notes)


def _config_of_card(session: Session, section: str) -> RunConfig:
    """Of a student, with the teacher and the generator that are there."""
    if section != "student":
        return session.config
    values = session.config.model_dump(mode="json")
    return parse_config(with_models(values, ("teacher", "generator"), session.directory))


def train_on_ray(
    place: Workplace,
    name: str,
    title: str,
    parts: dict[str, Any],
    train: TrainConfig,
    job: Job,
    inputs: Sequence[str],
    card: Callable[[Path], str],
    workers: KeptGroup | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Run `job(*inputs, out=…, work=…, report=…)` on Ray Train, unless that was done; follow it.

    Inputs are finished stages; `card` writes the card of the model in a directory; `notes` join
    the figures of its metrics.json. Checkpoints lie in a directory of the run that is removed with
    the training's end. `workers` may be shared with other trainings.
    """
    directory, work_name, goal = place.directory, f".training/{name}", _goal(parts)

    def build(out: Path, log: StageLog) -> None:
        def follow(entry: dict[str, Any]) -> None:
            stays = "epoch" in entry  # an evaluation; between them the loss alone is told
            place.console.progress(training_line(entry), entry, stays=stays)
            log.metrics(entry, step=int(entry["step"]))

        def restarted(times: int, reason: str) -> None:
            place.console.event(
                "restart", f"   {reason}; going on from the last checkpoint", times=times
            )

        work, made, run = directory.begin(work_name, goal), out, partial(run_here, job)
        paths = [directory.stage(i) for i in inputs]
        if directory.uri is not None and os.environ.get("RAY_ADDRESS"):
            work = directory.uri / f"{work_name}-{fingerprint(goal)[:12]}"
            made, run = work.with_name(f"{work.name}.out"), partial(run_from_store, job)
            paths = [directory.shared(i) for i in inputs]
        begun = read_progress(work)
        if begun.step:
            place.console.note(f"   going on from the checkpoint at step {begun.step}")
        place.gather()
        run_training(
            partial(run, paths, made, work),
            train,
            work,
            follow,
            restarted,
            workers,
            wait_s=place.cluster.wait_s,
            on_wait=lambda what: place.console.note(f"   waiting for nodes: {what}"),
        )
        if made is not out:
            download_files(made, out)
            there.extend((made, work))
        figures = {**read_json(out / "metrics.json"), **(notes or {})}
        write_json(out / "metrics.json", figures)
        write_text(out / "README.md", card(out))
        _tell_cut(place, name, figures)
        log.metrics({k: v for k, v in figures.items() if k != "evaluations"})

    there: list[Path] = []  # in a store, and needed until the stage is there, too
    place.do(name, title, parts, build)
    for path in there:
        remove_tree(path)
    shutil.rmtree(directory.path / work_name, ignore_errors=True)


def _tell_cut(place: Workplace, name: str, figures: Mapping[str, Any]) -> None:
    """That many texts were too long; of the three students once."""
    n, cut = figures.get("rows", 0), figures.get("rows_of_max_length", 0)
    if name in ("teacher", "generator", "student") and cut > _FEW * n:
        place.console.note(
            f"   {cut:,} of {n:,} texts have {figures['max_length']} tokens or more, and are cut "
            f"there; {name}.max_length says so"
        )


def _goal(parts: dict[str, Any]) -> dict[str, Any]:
    """Parts without what says how a step is shared out: a checkpoint may be gone on with by other
    engines, more workers, or in smaller pieces where memory did not suffice.
    """
    goal = {k: _goal(v) if isinstance(v, dict) else v for k, v in parts.items()}
    if "train" in goal:
        goal["train"] = {k: v for k, v in goal["train"].items() if k not in _SHARED_OUT}
    return goal


def _short(reference: str) -> str:
    return reference.removeprefix("package:").rstrip("/").rsplit("/", 1)[-1]
