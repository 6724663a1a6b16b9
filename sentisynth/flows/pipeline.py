"""The whole method. Read this first.

seed rows ─► teacher, generator ─► [plan ─► generate ─► screen ─► verify ─► write] ─► pool
          ─► select(τ, β, T, n) ─► dataset ─► student ─► evaluation on real rows
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.files import table_digest, write_json, write_table
from sentisynth.data.splits import load_corpus
from sentisynth.data.text import is_printable
from sentisynth.evaluation.evaluate import evaluate_run
from sentisynth.flows.console import Console
from sentisynth.flows.dataset import build_dataset
from sentisynth.flows.made import kept_otherwise, refuse_other_lengths
from sentisynth.flows.results import show_results
from sentisynth.flows.session import Session, workplace
from sentisynth.flows.starts import check_generation, check_starts
from sentisynth.flows.synthesize import synthesize
from sentisynth.flows.training import (
    distil_students,
    shared_workers,
    train_generator,
    train_teacher,
)
from sentisynth.models.loading import load_tokenizer, read_config, resolve_model
from sentisynth.runtime.tracking import StageLog
from sentisynth.training.jobs import ARMS

_FEW = 0.02  # of the seed rows


def run(session: Session) -> None:
    """Seed rows to report. A stage that was done before is not done again."""
    check_generation(session)
    prepare_corpus(session)  #    real rows: seed, validation, test
    with shared_workers(session) as workers:
        train_teacher(session, workers)  #    A  a classifier from the seed rows
        train_generator(session, workers)  #  B  a language model with a control token a class
    synthesize(session)  #        C  candidates, screened and scored, into the pool
    build_dataset(session)  #     D  the first n accepted of each class, soft labels, weights
    distil_students(session)  #   E  the student, with and without the synthetic rows
    evaluate(session)  #             on real validation and test rows


def prepare_corpus(session: Session, *models: str) -> None:
    """Read, check and split the real rows. Rows that finished `models` did not learn from are
    refused before anything is replaced, told to overwrite or not.
    """
    config, corpus = session.config, session.corpus
    digests = {name: table_digest(table) for name, table in corpus.splits().items()}
    settings = config.data.model_dump(mode="json", include={"labels", "n_seed", "lowercase"})
    parts = {"code": 1, "seed": config.seed, **settings, "rows": digests}
    for name in models:
        session.directory.refuse_other_rows(name, parts)

    def build(out: Path, log: StageLog) -> None:
        for name, table in corpus.splits().items():
            write_table(out / f"{name}.parquet", table)
            path = session.directory.stage("corpus") / f"{name}.parquet"
            log.dataset(name, path, digests[name], table.num_rows)
        log.metrics({"dropped": corpus.dropped, "unused": corpus.unused})
        session.console.note(f"   {corpus.told}")
        _tell_charset(session, corpus.seed[schema.TEXT].to_pylist())

    session.do("corpus", "   real rows: seed, validation, test", parts, build)


def _tell_charset(session: Session, texts: list[str]) -> None:
    """Candidates are like the rows that they are learned from: what rejects these wastes those."""
    charset = session.config.synthesis.screens.charset
    share = sum(not is_printable(text, charset) for text in texts) / len(texts)
    if share > _FEW:
        remedy = "any" if charset == "latin" else "latin or any"
        session.console.note(
            f"   {share:.0%} of the rows to learn from have characters that candidates must not "
            f"have: synthesis.screens.charset is {charset}; set {remedy}"
        )


def evaluate(session: Session) -> None:
    """metrics.json, report.html and the table on the terminal, from what is there."""
    arms = {"teacher": "teacher", **{arm.name: arm.title for arm in ARMS}}
    directory = session.directory
    metrics = evaluate_run(session.config, directory, arms, ("student_real", "student"))
    write_json(directory.path / "metrics.json", metrics)
    session.tracker.log.metrics({k: v for k, v in metrics.items() if k not in ("labels", "arms")})
    session.tracker.log.metrics({arm["name"]: arm for arm in metrics["arms"]})
    show_results(session, metrics)


def corpus_of_teacher(session: Session) -> None:
    """`prepare_corpus`, of the rows that the teacher learned from."""
    _corpus_of(session, "teacher")


def _corpus_of_both(session: Session) -> None:
    _corpus_of(session, "teacher", "generator")


def _corpus_of(session: Session, *models: str) -> None:
    refuse_other_lengths(session.config, session.directory)
    prepare_corpus(session, *models)
    for told in kept_otherwise(session.config, models, session.directory):
        session.console.note(f"   {told}")


STAGES: dict[str, tuple[Callable[[Session], None], ...]] = {
    "run": (run,),
    "teacher": (prepare_corpus, train_teacher),
    "generator": (prepare_corpus, train_generator),
    "synthesize": (_corpus_of_both, synthesize, build_dataset),
    "distil": (corpus_of_teacher, build_dataset, distil_students),
    "evaluate": (prepare_corpus, evaluate),
}


_STARTS_FROM = {
    "run": ("teacher", "generator", "student"),
    "teacher": ("teacher",),
    "generator": ("generator",),
    "distil": ("student",),
}


_MAKE_NOTHING = ("evaluate", "sweep")


def _start(reference: str) -> Any:
    """The configuration of a starting model, all of which is here, and whose tokenizer loads."""
    path = resolve_model(reference)
    load_tokenizer(path)
    return read_config(path)


@contextmanager
def opened(
    config: RunConfig,
    out: Path,
    console: Console,
    command: str = "run",
    overwrite: bool = False,
) -> Iterator[Session]:
    """A locked run directory, a Ray session and an MLflow run, for the stages of one command.

    Data and starting models are read before anything is made: a mistake in them costs nothing.
    """
    corpus = load_corpus(config.data, config.seed)
    check_starts(config, _STARTS_FROM.get(command, ()), _start)
    options = {"overwrite": overwrite, "makes_nothing": command in _MAKE_NOTHING}
    with workplace(config, out, console, **options) as place:
        yield Session(
            config=config,
            corpus=corpus,
            directory=place.directory,
            tracker=place.tracker,
            console=place.console,
            cluster=place.cluster,
        )
