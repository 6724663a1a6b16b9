"""What the trials of a sweep map: rows of the pool, selected once and tokenised once."""

import dataclasses
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.ledger import SCORED
from sentisynth.data.logits import logits_of
from sentisynth.data.manifest import read_manifest, read_receipts
from sentisynth.data.select import TRAIN, select, split_synthetic, synthetic_rows
from sentisynth.errors import QuotaError, SweepError
from sentisynth.evaluation.metrics import distinct_n, mean_entropy
from sentisynth.flows.parts import plan_parts
from sentisynth.flows.session import Session
from sentisynth.flows.synthesize import fill_pool
from sentisynth.models.classifier import starts_from_teacher
from sentisynth.models.loading import load_tokenizer, resolve_model
from sentisynth.seeding import fingerprint
from sentisynth.training.jobs import read_splits
from sentisynth.training.rows import Rows
from sentisynth.training.tasks import classification_rows
from sentisynth.training.trials import (
    REAL,
    ROWS,
    SELECTIONS,
    UNVERIFIED,
    VALIDATION,
    Trial,
    selection_name,
)


def selected_rows(
    session: Session, trials: Sequence[Trial]
) -> tuple[dict[str, pa.Table], dict[str, str]]:
    """Pool rows of each selection that the trials need; and why there are none of some.

    The pool is extended, once, if a trial asks for more accepted rows than it has; or filled, if an
    extension was killed.
    """
    directory = session.directory
    wanted = {(t.arm != UNVERIFIED, t.tau, t.n_per_class) for t in trials if t.n_per_class}
    if not wanted:
        return {}, {}
    directory.require("generator", "generator …")
    found: dict[str, pa.Table] = {}
    short: dict[str, str] = {}
    if directory.read_stamp("pool") is not None and read_manifest(directory.pool) is None:
        fill_pool(session)
    for is_extended in (False, True):
        short = {}
        for verified, tau, n in sorted(wanted):
            name = selection_name(verified, tau, n)
            try:
                found[name] = _selected(session, verified, tau, n)
            except QuotaError as error:
                short[name] = str(error)
        if not short or is_extended:
            break
        _extend(session, {(tau, n) for _, tau, n in wanted})
    return found, short


def _extend(session: Session, wanted: set[tuple[float, int]]) -> None:
    """Make a pool that holds n rows a class at τ, for each of these or as many as can be."""
    try:
        _fill(session, max(tau for tau, _ in wanted), max(n for _, n in wanted))
    except QuotaError as error:
        session.console.note(f"   {error}")
        for tau, n in sorted(wanted):  # nearly all that these need was made by then
            with suppress(QuotaError):
                _fill(session, tau, n)
        fill_pool(session)


def _fill(session: Session, tau: float, n_per_class: int) -> None:
    changed = {"tau": tau, "n_per_class": n_per_class}
    synthesis = session.config.synthesis.model_copy(update=changed)
    config = session.config.model_copy(update={"synthesis": synthesis})
    fill_pool(dataclasses.replace(session, config=config))


def write_shared(
    session: Session, selections: dict[str, pa.Table], shared: Path, teacher: Path
) -> dict[str, dict[str, float]]:
    """Write what the trials map; returns the diversity of each selection."""
    config, directory = session.config, session.directory
    real = read_splits(directory.stage("corpus"))
    logits = logits_of(pq.read_table(teacher / "predictions" / "seed.parquet"), schema.LOGITS)
    tokenizer = _tokenizer(config, teacher)
    n_real = real["seed"].num_rows
    tables = [_labelled(real["seed"][schema.TEXT], real["seed"][schema.LABELS], logits)]
    place: dict[str, int] = {}
    for chosen in selections.values():
        ids = chosen[schema.CANDIDATE_ID].to_pylist()
        new = chosen.filter(pa.array([candidate not in place for candidate in ids]))
        for candidate in new[schema.CANDIDATE_ID].to_pylist():
            place[candidate] = n_real + len(place)
        tables.append(_labelled(new[schema.TEXT], new[schema.LABEL], logits_of(new)))
    table = pa.concat_tables(table for table in tables if table.num_rows)
    shared.mkdir(parents=True, exist_ok=True)
    rows = classification_rows(table, tokenizer, config.student.max_length, soft=True)
    rows.save(shared / ROWS)
    classification_rows(real["validation"], tokenizer, config.student.max_length).save(
        shared / VALIDATION
    )
    positions = {REAL: np.arange(n_real)}
    diversity: dict[str, dict[str, float]] = {}
    for name, chosen in selections.items():
        synthetic = synthetic_rows(chosen, beta=1.0, temperature=config.distil.temperature)
        train = split_synthetic(synthetic, config.seed)[TRAIN]
        positions[name] = np.array([place[c] for c in train[schema.CANDIDATE_ID].to_pylist()])
        texts = train[schema.TEXT].to_pylist()
        diversity[name] = {
            "distinct_1": distinct_n(texts, 1),
            "distinct_2": distinct_n(texts, 2),
            "soft_label_entropy": mean_entropy(logits_of(train, schema.SOFT_LABELS)),
        }
    arrays: dict[str, Any] = positions
    np.savez(shared / SELECTIONS, **arrays)
    return diversity


def selection_digests(shared: Path) -> dict[str, str]:
    """sha256 of the real rows with the rows of each selection: of what they hold, wherever they lie
    in the file that the trials map.
    """
    rows = Rows.map(shared / ROWS)
    with np.load(shared / SELECTIONS, allow_pickle=False) as selections:
        real = selections[REAL]
        return {
            name: _digest(rows.take(real if name == REAL else np.concatenate((real, chosen))))
            for name, chosen in selections.items()
        }


def _digest(rows: Rows) -> str:
    content = (rows.ids, rows.starts, rows.labels, rows.soft_labels)
    return hashlib.sha256(b"".join(np.asarray(values).tobytes() for values in content)).hexdigest()


def _labelled(texts: Any, labels: Any, logits: np.ndarray) -> pa.Table:
    """Rows whose soft labels are the teacher's raw logits: trials apply their own T."""
    return pa.table(
        {
            schema.TEXT: texts.combine_chunks(),
            schema.LABELS: labels.combine_chunks().cast(pa.int32()),
            schema.SOFT_LABELS: pa.array(list(logits.astype(np.float32)), pa.list_(pa.float32())),
            schema.WEIGHTS: np.ones(len(texts), np.float32),
        }
    )


def _tokenizer(config: RunConfig, teacher: Path) -> Any:
    start = config.student.model
    return load_tokenizer(teacher if starts_from_teacher(start) else resolve_model(start))


def _selected(session: Session, verified: bool, tau: float, n: int) -> pa.Table:
    config, directory = session.config, session.directory
    manifest = read_manifest(directory.pool)
    if manifest is None:
        raise SweepError(
            f"the pool in {directory.path} is not finished; run `sentisynth synthesize …` first"
        )
    if manifest["plan"] != fingerprint(plan_parts(session)):
        raise SweepError(
            f"the pool in {directory.path} was made under other settings than these; give those of "
            f"its config.yaml, or choose another directory with --out"
        )
    near = config.synthesis.screens.near_duplicates
    rows, _ = select(
        (
            read_receipts(directory.pool, manifest, label, near)
            for label in range(len(config.data.labels))
        ),
        tau=tau,
        n_per_class=n,
        near_duplicates=near,
        verdicts=(schema.ACCEPTED,) if verified else SCORED,
    )
    return rows
