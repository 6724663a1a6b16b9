"""Stage C: fill the pool until each label has its quota."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.manifest import MANIFEST
from sentisynth.data.pool import PoolReader
from sentisynth.data.storage import answering, is_remote
from sentisynth.data.units import Unit
from sentisynth.errors import QuotaError, SentisynthError
from sentisynth.flows.parts import (
    dataset_parts,
    plan_parts,
    refuse_other_devices,
    refuse_other_machines,
)
from sentisynth.flows.progress import StreamProgress
from sentisynth.flows.real_texts import real_texts
from sentisynth.flows.session import Session
from sentisynth.generation.engine import check_generator
from sentisynth.models.classifier import check_verifier
from sentisynth.runtime.nodes import check_storage, wait_for_room
from sentisynth.runtime.placement import Placement, balanced
from sentisynth.runtime.pools import stream_pools
from sentisynth.runtime.ray_cluster import cluster_resources
from sentisynth.runtime.stream import Finished, UnitStream
from sentisynth.runtime.tracking import StageLog
from sentisynth.runtime.watch import ClusterChangedError, UnbalancedError
from sentisynth.seeding import fingerprint

_LOG_EVERY_S = 10.0
_MEASURED_S = 60.0  # of a stream, until its stages' pace is known
_TRAIN = "train a better generator, from more seed rows or another start"
_ANEW = "(with --overwrite, which makes the pool anew)"
_VARY = f"raise synthesis.sampling.temperature {_ANEW}"
_REMEDIES = {
    schema.BELOW_TAU: f"lower synthesis.tau, {_TRAIN}",
    schema.CHARSET: f"set synthesis.screens.charset=latin or any {_ANEW}",
    schema.TOO_SHORT: f"lower synthesis.screens.min_tokens {_ANEW}",
    schema.REPETITION: f"raise synthesis.sampling.repetition_penalty {_ANEW}",
    **dict.fromkeys((schema.DUPLICATE, schema.SEED_COPY, schema.LEAK), _VARY),
}
_COUNTING_S, _IDLE_COUNTING_S = 1.0, 10.0  # where no unit has finished; where none is at work


def synthesize(session: Session) -> None:
    """Stage C: generate and verify until each label has `n_per_class` accepted rows.

    Finished units are kept whatever happens; the same command does the rest. Raises QuotaError,
    with the counts and the likely cause, if `max_candidates_per_class` does not suffice.
    """
    # before hours of work
    session.directory.refuse_others("dataset", dataset_parts(session))
    fill_pool(session)


def fill_pool(session: Session) -> None:
    """`synthesize`, for whoever wants a larger pool and no other dataset."""
    directory, parts = session.directory, plan_parts(session)
    config = _with_unit_size(session.config, parts["synthesis"]["unit_size"])
    plan, pool = fingerprint(parts), directory.pool
    directory.refuse_damaged("teacher", "generator")
    title = f"C  synthesis: {config.synthesis.n_per_class:,} verified rows a class"
    stamped = directory.readable_stamp("pool") is not None and directory.is_done("pool", parts)
    started = time.monotonic()
    with _answering(pool):
        reader = PoolReader(pool, config, plan)
        done = reader.recover()  # where the stamp is gone, the units say what they are of
    if not reader.is_published:
        check_generator(directory.stage("generator"), config)
        check_verifier(directory.stage("teacher"), len(config.data.labels))
    if not stamped:
        directory.stamp(pool, parts, is_done=False)
    if done or reader.n_damaged:
        _tell_recovered(session, reader, len(done), time.monotonic() - started)
    if reader.is_published:
        with _answering(pool):
            reader.tidy()
        session.console.skipped(title)
        return
    with session.stage("pool", title) as log:
        log.params(parts)
        if not reader.all_full:
            refuse_other_machines(session, parts)
            _refuse_hopeless(config, reader)  # known from what earlier runs made
            _tell_engine(session, parts["synthesis"], is_begun=bool(done))
            with _answering(pool):
                reader.withdraw()
            _fill(session, config, reader, parts, done, log)
        with _answering(pool):
            manifest = reader.publish()
        log.metrics({"ledger": manifest["ledger"]})
        if not is_remote(pool):
            log.artifacts(pool / MANIFEST, "pool")


def _answering(pool: Path) -> AbstractContextManager[None]:
    """What a store answers is said in a sentence; a local disk's errors are told as such."""
    return answering(pool) if is_remote(pool) else nullcontext()


def _tell_engine(session: Session, decided: dict[str, Any], *, is_begun: bool) -> None:
    why = f"synthesis.engine={session.config.synthesis.engine}"
    if session.config.synthesis.engine == "auto":
        is_ours = decided["engine"] == "batch"
        why = "ours, since this is a GPT-2 model" if is_ours else "any other causal model"
    pairs = zip(decided["precision"], decided["devices"], strict=True)
    generation, verification = (f"{precision} on {device}" for precision, device in pairs)
    both = f"generation in {generation}, verification in {verification}"
    if generation == verification:
        both = f"generation and verification in {generation}"
    told = f"   engine {decided['engine']} ({why}), units of {decided['unit_size']}, {both}"
    session.console.event("engine", told, **decided)
    is_auto = session.config.synthesis.precision == "auto" and decided["engine"] == "batch"
    is_exact = is_auto and decided["precision"][0] == "fp32"
    if is_exact and not is_begun and session.devices[0].has_kernels:
        session.console.note(
            "   synthesis.precision=int8 would generate faster on this CPU, with rounded products"
        )


def _tell_recovered(session: Session, reader: PoolReader, n_units: int, seconds: float) -> None:
    told = f"   {n_units:,} units are in the pool"
    if reader.n_damaged:
        told += f", {reader.n_damaged} were damaged and are made again"
    session.console.event(
        "recovered", told, units=n_units, damaged=reader.n_damaged, seconds=seconds
    )


def _with_unit_size(config: RunConfig, size: int) -> RunConfig:
    synthesis = config.synthesis.model_copy(update={"unit_size": size})
    return config.model_copy(update={"synthesis": synthesis})


def _fill(
    session: Session,
    config: RunConfig,
    reader: PoolReader,
    parts: dict[str, Any],
    done: set[Unit],
    log: StageLog,
) -> None:
    directory, decided = session.directory, parts["synthesis"]
    held_out, seed_texts = real_texts(config, directory)
    done, placement = set(done), session.placement
    while not reader.all_full:
        _refuse_hopeless(config, reader)
        pools = stream_pools(
            config,
            placement,
            generator=directory.shared("generator"),
            teacher=directory.shared("teacher"),
            pool=directory.pool,
            plan=fingerprint(parts),
            arithmetic=list(zip(decided["devices"], decided["precision"], strict=True)),
            evaluation_texts=held_out,
            seed_texts=seed_texts,
        )
        stream = UnitStream(
            pools,
            n_labels=len(config.data.labels),
            size=config.synthesis.unit_size,
            done=done,
            show_ray_progress=session.console.shows_ray,
        )
        try:
            _run(session, config, placement, reader, stream, log, done)
        except UnbalancedError as change:
            session.console.event("balance", f"   {change}")
            placement = change.placement
        except ClusterChangedError as change:
            session.console.event("cluster", f"   {change}; going on with the nodes that are there")
            placement = wait_for_room(config, placement, session.console.note)
            check_storage(directory.pool)
            refuse_other_devices(session, parts, session.devices_of(placement))
        for finished in stream.rest():  # while it ended
            _count(reader, finished, done)


def _run(
    session: Session,
    config: RunConfig,
    placement: Placement,
    reader: PoolReader,
    stream: UnitStream,
    log: StageLog,
    done: set[Unit],
) -> None:
    """The stream until the quota is full; what it finishes joins `done`.

    Raises UnbalancedError after the first minute, where other sizes of the pools fit their pace.
    """
    progress = StreamProgress(reader, stream, config)
    logged, is_measured = time.monotonic(), False
    stream.want(reader.horizons())

    def tell() -> None:
        session.console.progress(progress.line(), progress.figures())

    tell()
    with _kept_at_the_end(reader, log, progress, tell), stream:
        for finished in stream:
            if finished is not None:
                progress.finished_unit(finished)
                _count(reader, finished, done)
            elif reader.is_behind:
                reader.count(_COUNTING_S if stream.in_flight else _IDLE_COUNTING_S)
            if reader.all_full:
                return
            _refuse_hopeless(config, reader)
            stream.want(reader.horizons())
            if finished is not None and not is_measured and (seconds := progress.pace(_MEASURED_S)):
                is_measured = True
                better = balanced(config.synthesis, placement, cluster_resources(), seconds)
                if better is not None:
                    raise UnbalancedError(better)
            tell()
            if time.monotonic() - logged > _LOG_EVERY_S:
                logged = time.monotonic()
                log.metrics({"stream": progress.figures()}, step=progress.units)


def _count(reader: PoolReader, finished: Finished, done: set[Unit]) -> None:
    done.add(finished.receipt.unit)
    reader.journal.add(finished.receipt)
    reader.offer(finished.receipt)


@contextmanager
def _kept_at_the_end(
    reader: PoolReader, log: StageLog, progress: StreamProgress, tell: Callable[[], None]
) -> Iterator[None]:
    """Write the journal and the last figures, whatever ends the block; its error comes first."""
    try:
        yield
    except BaseException:
        with suppress(SentisynthError):
            tell()
            reader.journal.flush()
        raise
    tell()
    reader.journal.flush()
    log.metrics({"stream": progress.figures()}, step=progress.units)


def _refuse_hopeless(config: RunConfig, reader: PoolReader) -> None:
    """Raise QuotaError where a label fell short: how far, and what rejected most."""
    label = reader.exhausted()
    if label is None:
        return
    counts = reader.tallies[label].ledger.counts
    accepted, generated = counts[schema.ACCEPTED], counts.total()
    rejected = [(n, verdict) for verdict, n in counts.items() if verdict != schema.ACCEPTED]
    n, cause = max(rejected, default=(0, "nothing"))
    raise QuotaError(
        f"class {config.data.labels[label]} has {accepted} accepted rows of "
        f"{config.synthesis.n_per_class} after {generated} candidates "
        f"(synthesis.max_candidates_per_class={config.synthesis.max_candidates_per_class}); "
        f"the commonest reason is {cause} ({n}): {_REMEDIES.get(cause, _TRAIN)}, lower "
        f"synthesis.n_per_class, or raise the maximum; what was made is kept"
    )
