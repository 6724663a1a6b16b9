"""From facts to a dataset: τ, quota, T, β and the split, applied by pure functions."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from sentisynth import schema
from sentisynth.data.ledger import Ledger, Tally
from sentisynth.data.logits import logits_of, softmax
from sentisynth.data.receipts import Receipt
from sentisynth.errors import QuotaError
from sentisynth.seeding import derive_seed

TRAIN, VALIDATION, TEST = "train", "synthetic_validation", "synthetic_test"
HELD_OUT = 0.05  # of each label, for each of the two synthetic held-out parts


def select(
    units_by_label: Iterable[Iterable[tuple[pa.Table, Receipt]]],
    *,
    tau: float,
    n_per_class: int,
    near_duplicates: float,
    verdicts: Sequence[str] = (schema.ACCEPTED,),
) -> tuple[pa.Table, list[Ledger]]:
    """The first `n_per_class` accepted candidates of each label in index order, exactly; or those
    with one of the `verdicts`.

    `units_by_label` holds, for each label, its units in index order: `schema.POOL` tables and their
    receipts.
    Returns pool rows, label after label, and each label's ledger over the units that were read.
    Raises QuotaError if a label has too few.
    """
    chosen, ledgers = [], []
    for label, units in enumerate(units_by_label):
        tally = Tally(tau, near_duplicates)
        missing = n_per_class
        for table, receipt in units:
            accepted = receipt.rows[np.isin(tally.add(receipt), verdicts)][:missing]
            chosen.append(table.take(accepted))
            missing -= len(accepted)
            if missing == 0:
                break
        if missing:
            raise QuotaError(
                f"the pool holds {n_per_class - missing} accepted rows of label {label} at "
                f"τ={tau:g}, not {n_per_class}; lower n_per_class or τ, or extend the pool"
            )
        ledgers.append(tally.ledger)
    return pa.concat_tables(chosen).combine_chunks(), ledgers


def synthetic_rows(pool_rows: pa.Table, *, beta: float, temperature: float) -> pa.Table:
    """Selected pool rows as `schema.DATASET` rows: soft labels softmax(z / T), weight β."""
    return _dataset_rows(
        pool_rows[schema.TEXT],
        pool_rows[schema.LABEL],
        logits_of(pool_rows),
        temperature=temperature,
        weight=beta,
        candidate_ids=pool_rows[schema.CANDIDATE_ID],
    )


def real_rows(corpus: pa.Table, teacher_logits_NK: np.ndarray, *, temperature: float) -> pa.Table:
    """Real rows as `schema.DATASET` rows: weight 1, no candidate id."""
    return _dataset_rows(
        corpus[schema.TEXT],
        corpus[schema.LABELS],
        teacher_logits_NK,
        temperature=temperature,
        weight=1.0,
        candidate_ids=None,
    )


def split_synthetic(synthetic: pa.Table, seed: int) -> dict[str, pa.Table]:
    """90/5/5 parts of the synthetic rows, stratified by label, rows in their given order."""
    labels = synthetic[schema.LABELS].to_numpy()
    part = np.zeros(len(labels), dtype=np.int8)
    random = np.random.default_rng(derive_seed(seed, "synthetic split"))
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        n_held = round(HELD_OUT * len(rows))
        part[rows[:n_held]], part[rows[n_held : 2 * n_held]] = 1, 2
    return {
        name: synthetic.filter(pa.array(part == i))
        for i, name in enumerate((TRAIN, VALIDATION, TEST))
    }


def learned_from(n_per_class: int) -> int:
    """Synthetic rows of a class in the first of the parts of `split_synthetic`."""
    return n_per_class - 2 * round(HELD_OUT * n_per_class)


def _dataset_rows(
    texts: pa.ChunkedArray,
    labels: pa.ChunkedArray,
    logits_NK: np.ndarray,
    *,
    temperature: float,
    weight: float,
    candidate_ids: pa.ChunkedArray | None,
) -> pa.Table:
    n = len(texts)
    return pa.table(
        {
            schema.TEXT: texts,
            schema.LABELS: labels,
            schema.SOFT_LABELS: list(softmax(logits_NK, temperature).astype(np.float32)),
            schema.WEIGHTS: np.full(n, weight, dtype=np.float32),
            schema.IS_SYNTH: np.full(n, candidate_ids is not None),
            schema.CANDIDATE_ID: pa.nulls(n, pa.string())
            if candidate_ids is None
            else candidate_ids,
        },
        schema=schema.DATASET,
    )
