"""Stages C and D: fill the pool until each label has its quota, then select the dataset."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.files import sha256_file, write_json, write_table, write_text
from sentisynth.data.logits import logits_of
from sentisynth.data.manifest import MANIFEST, read_manifest, read_receipts
from sentisynth.data.pool import PoolReader
from sentisynth.data.select import real_rows, select, split_synthetic, synthetic_rows
from sentisynth.data.storage import is_remote
from sentisynth.data.units import Unit
from sentisynth.errors import QuotaError, RunDirectoryError, SentisynthError
from sentisynth.flows.progress import StreamProgress
from sentisynth.flows.session import Session
from sentisynth.flows.training import control_tokens
from sentisynth.generation.engine import check_generator, engine_of
from sentisynth.models.classifier import check_verifier
from sentisynth.models.loading import autocast_dtype, model_digest
from sentisynth.runtime.ray_cluster import cluster_resources
from sentisynth.runtime.stream import UnitStream, stream_pools
from sentisynth.runtime.tracking import StageLog
from sentisynth.seeding import fingerprint
from sentisynth.training.jobs import read_splits

_CODE_VERSION = 2  # raise it when the same plan would give other bytes
_LOG_EVERY_S = 10.0


def synthesize(session: Session) -> None:
    """Stage C: generate and verify until each label has `n_per_class` accepted rows.

    Finished units are kept whatever happens; the same command does the rest. Raises QuotaError,
    with the counts and the likely cause, if `max_candidates_per_class` does not suffice.
    """
    config, directory = session.config, session.directory
    parts = plan_parts(session)
    plan, pool = fingerprint(parts), directory.pool
    check_generator(directory.stage("generator"), config)
    check_verifier(directory.stage("teacher"), len(config.data.labels))
    title = f"C  synthesis: {config.synthesis.n_per_class:,} verified rows a class"
    known = directory.readable_stamp("pool") is not None  # else the units say what they are of
    if not known or not directory.is_done("pool", parts):  # refuses a pool of another plan
        directory.stamp(pool, parts, is_done=False)
    directory.is_done("dataset", dataset_parts(session))  # refuses before hours of work
    reader, started = PoolReader(pool, config, plan), time.monotonic()
    done = reader.recover()
    if done or reader.n_damaged:
        _tell_recovered(session, reader, len(done), time.monotonic() - started)
    if reader.is_published:
        session.console.skipped(title)
        return
    with session.stage("pool", title) as log:
        log.params(parts)
        if not reader.all_full:
            (pool / MANIFEST).unlink(missing_ok=True)
            _fill(session, reader, plan, done, log)
        manifest = reader.publish()
        log.metrics({"ledger": manifest["ledger"]})
        if not is_remote(pool):
            log.artifacts(pool / MANIFEST, "pool")


def _tell_recovered(session: Session, reader: PoolReader, n_units: int, seconds: float) -> None:
    told = f"   {n_units:,} units are in the pool"
    if reader.n_damaged:
        told += f", {reader.n_damaged} were damaged and are made again"
    session.console.event(
        "recovered", told, units=n_units, damaged=reader.n_damaged, seconds=seconds
    )


def plan_parts(session: Session) -> dict[str, Any]:
    """What decides the bytes of a unit. τ and the quota do not: they are decided afterwards."""
    config, directory = session.config, session.directory
    synthesis = config.synthesis
    teacher = directory.require("teacher", f"teacher {config.name}")
    generator = directory.require("generator", f"generator {config.name}")
    gpus = cluster_resources().gpus
    pools = (synthesis.generate_pool, synthesis.verify_pool)
    devices = ["cuda" if (p.gpus is None and gpus) or p.gpus else "cpu" for p in pools]
    return {
        "code": _CODE_VERSION,
        "seed": config.seed,
        "corpus": fingerprint(directory.read_stamp("corpus")),
        "teacher": model_digest(teacher),
        "generator": model_digest(generator),
        "control_tokens": control_tokens(config),
        "prompts": [list(config.prompts(label)) for label in range(len(config.data.labels))],
        "teacher_max_length": config.teacher.max_length,
        "lowercase": config.data.lowercase,
        "synthesis": {
            "unit_size": synthesis.unit_size,
            "engine": engine_of(generator, synthesis.engine),
            "precision": [_precision(synthesis.precision, device) for device in devices],
            "threads": [pool.threads for pool in pools],
            "devices": devices,
            "sampling": synthesis.sampling.model_dump(mode="json"),
            "screens": synthesis.screens.model_dump(mode="json"),
        },
    }


def _precision(precision: str, device: str) -> str:
    """What `auto` comes to on a CPU like the driver's; GPUs may not be the driver's to ask."""
    if precision != "auto" or device == "cuda":
        return precision
    return "fp32" if autocast_dtype("auto", torch.device("cpu")) is None else "bf16"


def _fill(session: Session, reader: PoolReader, plan: str, done: set[Unit], log: StageLog) -> None:
    config, directory = session.config, session.directory
    splits = read_splits(directory.require("corpus", f"synthesize {config.name}"))
    pools = stream_pools(
        config,
        generator=directory.shared("generator"),
        teacher=directory.shared("teacher"),
        pool=directory.pool,
        plan=plan,
        evaluation_texts=[
            text
            for name in ("validation", "test")
            for text in splits[name][schema.TEXT].to_pylist()
        ],
        seed_texts=splits["seed"][schema.TEXT].to_pylist(),
    )
    stream = UnitStream(
        pools,
        n_labels=len(config.data.labels),
        size=config.synthesis.unit_size,
        done=done,
        show_ray_progress=session.console.shows_ray,
    )
    progress = StreamProgress(reader, stream, config)
    logged = time.monotonic()
    stream.want(reader.horizons())

    def tell() -> None:
        session.console.progress(progress.line(), progress.figures())

    tell()
    with _kept_at_the_end(reader, log, progress, tell), stream:
        for finished in stream:
            if finished is not None:
                progress.finished_unit(finished)
                reader.journal.add(finished.receipt)
                reader.offer(finished.receipt)
                if reader.all_full:
                    return
                short = reader.exhausted()
                if short is not None:
                    raise QuotaError(_why_hopeless(config, reader, short))
                stream.want(reader.horizons())
            tell()
            if time.monotonic() - logged > _LOG_EVERY_S:
                logged = time.monotonic()
                log.metrics({"stream": progress.figures()}, step=progress.units)


@contextmanager
def _kept_at_the_end(
    reader: PoolReader, log: StageLog, progress: StreamProgress, tell: Callable[[], None]
) -> Iterator[None]:
    """Write the journal and the last figures, whatever ends the block; its error comes first."""

    def keep() -> None:
        tell()
        reader.journal.flush()
        log.metrics({"stream": progress.figures()}, step=progress.units)

    try:
        yield
    except BaseException:
        with suppress(SentisynthError):
            keep()
        raise
    keep()


def _why_hopeless(config: RunConfig, reader: PoolReader, label: int) -> str:
    """One sentence on the label that fell short: how far, and what rejected most."""
    counts = reader.tallies[label].ledger.counts
    accepted, generated = counts[schema.ACCEPTED], counts.total()
    rejected = [(n, verdict) for verdict, n in counts.items() if verdict != schema.ACCEPTED]
    n, cause = max(rejected, default=(0, "nothing"))
    return (
        f"class {config.data.labels[label]} has {accepted} accepted rows of "
        f"{config.synthesis.n_per_class} after {generated} candidates "
        f"(synthesis.max_candidates_per_class={config.synthesis.max_candidates_per_class}); "
        f"the commonest reason is {cause} ({n}): raise the maximum, lower synthesis.tau or "
        f"synthesis.n_per_class, or train a better generator; what was made is kept"
    )


def build_dataset(session: Session) -> None:
    """Stage D: apply τ, the quota, T, β and the split to the pool."""
    config, directory = session.config, session.directory
    synthesis, distil = config.synthesis, config.distil
    title = f"D  dataset: τ {synthesis.tau:g}, β {distil.beta:g}, T {distil.temperature:g}"

    def build(out: Path, log: StageLog) -> None:
        manifest = read_manifest(directory.pool)
        if manifest is None:
            raise RunDirectoryError(
                f"the pool in {directory.path} is not finished; run `sentisynth synthesize "
                f"{config.name}` first"
            )
        labels, near = range(len(config.data.labels)), synthesis.screens.near_duplicates
        chosen, ledgers = select(
            (read_receipts(directory.pool, manifest, label, near) for label in labels),
            tau=synthesis.tau,
            n_per_class=synthesis.n_per_class,
            near_duplicates=near,
        )
        tables = split_synthetic(
            synthetic_rows(chosen, beta=distil.beta, temperature=distil.temperature), config.seed
        )
        corpus = read_splits(directory.stage("corpus"))
        real = {
            name: real_rows(table, _teacher_logits(session, name), temperature=distil.temperature)
            for name, table in corpus.items()
        }
        tables["train"] = pa.concat_tables([real["seed"], tables["train"]])
        tables |= {name: real[name] for name in ("validation", "test")}
        for name, table in tables.items():
            path = out / f"{name}.parquet"
            write_table(path, table)
            log.dataset(name, directory.dataset / path.name, sha256_file(path), table.num_rows)
        log.metrics({name: {"rows": table.num_rows} for name, table in tables.items()})
        write_text(out / "README.md", _card(session, tables))
        names = config.data.labels
        write_json(
            out / "ledger.json",
            {name: ledger.as_dict() for name, ledger in zip(names, ledgers, strict=True)},
        )

    session.do("dataset", title, dataset_parts(session), build)


def dataset_parts(session: Session) -> dict[str, Any]:
    """What decides the dataset: the pool's plan, and what is decided about the pool."""
    config = session.config
    return {
        "code": 1,
        "plan": fingerprint(plan_parts(session)),
        "tau": config.synthesis.tau,
        "n_per_class": config.synthesis.n_per_class,
        "beta": config.distil.beta,
        "temperature": config.distil.temperature,
    }


def _teacher_logits(session: Session, split: str) -> Any:
    path = session.directory.stage("teacher") / "predictions" / f"{split}.parquet"
    return logits_of(pq.read_table(path), schema.LOGITS)


def _card(session: Session, tables: dict[str, pa.Table]) -> str:
    config = session.config
    rows = "\n".join(f"| `{name}.parquet` | {table.num_rows:,} |" for name, table in tables.items())
    return (
        f"# {config.name}: dataset\n\n"
        f"Real rows of `{config.data.source}` and rows made by a generator and verified by a "
        f"teacher (sentisynth, seed {config.seed}). Classes: {', '.join(config.data.labels)}.\n\n"
        f"| file | rows |\n| --- | --- |\n{rows}\n\n"
        f"`train` joins {config.data.n_seed:,} real rows with 90 % of the synthetic ones. "
        f"`validation` and `test` are real rows only. The other two hold 5 % of the synthetic rows "
        f"each: they measure drift of the generator and are never used to judge a student.\n\n"
        f"Columns: `text`; `labels` (the class's position); `soft_labels`, the teacher's "
        f"softmax(logits / {config.distil.temperature:g}); `weights`, 1 for real and "
        f"{config.distil.beta:g} for synthetic rows; `is_synth`; `candidate_id`, the row of the "
        f"pool. A synthetic row was accepted at τ = {config.synthesis.tau:g}.\n"
    )
