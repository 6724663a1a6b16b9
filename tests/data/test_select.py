from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from sentisynth import schema
from sentisynth.data.receipts import Receipt
from sentisynth.data.select import real_rows, select, split_synthetic, synthetic_rows
from sentisynth.data.units import Unit
from sentisynth.errors import QuotaError


def unit(label: int, number: int, logits: np.ndarray) -> pa.Table:
    """Scored candidates of one unit, all with different texts."""
    n = len(logits)
    return pa.table(
        {
            schema.CANDIDATE_ID: [schema.candidate_id(label, number * n + i) for i in range(n)],
            schema.LABEL: [label] * n,
            schema.TEXT: [f"label {label} number {number} row {i}" for i in range(n)],
            schema.PROMPT: [""] * n,
            schema.N_TOKENS: [9] * n,
            schema.REJECT_REASON: pa.nulls(n, pa.string()),
            schema.TEACHER_LOGITS: list(logits.astype(np.float32)),
        },
        schema=schema.POOL,
    )


Units = list[tuple[pa.Table, Receipt]]


def with_receipts(tables: list[pa.Table], label: int) -> Units:
    """The units of a label in index order, as a pool gives them."""
    return [
        (table, Receipt.of(table, Unit(label, number, table.num_rows), "", 1.0))
        for number, table in enumerate(tables)
    ]


@pytest.fixture
def pool() -> list[Units]:
    """Three classes, four units of 25 random rows each."""
    random = np.random.default_rng(0)
    tables = [[unit(k, u, random.normal(0, 2, (25, 3))) for u in range(4)] for k in range(3)]
    return [with_receipts(of_class, label) for label, of_class in enumerate(tables)]


def expected(units: Units, label: int, tau: float, n: int) -> list[str]:
    """An independent reading of the contract: index order, arg max, softmax, first n."""
    found = []
    for row in pa.concat_tables(table for table, _ in units).to_pylist():
        z = np.array(row["teacher_logits"], dtype=np.float64)
        p = np.exp(z) / np.exp(z).sum()
        if p.argmax() == label and p.max() >= tau:
            found.append(row["candidate_id"])
    return found[:n]


def test_exactly_the_first_n_accepted_of_each_label(pool: list[Units]) -> None:
    rows, ledgers = select(pool, tau=0.6, n_per_class=12, near_duplicates=1.0)
    wanted = [cid for k in range(3) for cid in expected(pool[k], k, 0.6, 12)]
    assert rows[schema.CANDIDATE_ID].to_pylist() == wanted
    assert len(wanted) == 36
    assert all(ledger.accepted >= 12 for ledger in ledgers)


def test_a_smaller_n_is_the_beginning_of_a_larger_one(pool: list[Units]) -> None:
    few, _ = select(pool, tau=0.6, n_per_class=5, near_duplicates=1.0)
    many, _ = select(pool, tau=0.6, n_per_class=12, near_duplicates=1.0)
    assert set(few[schema.CANDIDATE_ID].to_pylist()) < set(many[schema.CANDIDATE_ID].to_pylist())


def test_a_pool_that_is_too_small_says_how_many_it_has(pool: list[Units]) -> None:
    with pytest.raises(QuotaError, match="accepted rows of label 0 at τ=0.999, not 50"):
        select(pool, tau=0.999, n_per_class=50, near_duplicates=1.0)


def test_units_beyond_the_quota_are_not_read(pool: list[Units]) -> None:
    def read(units: Units, most: int) -> Iterator[tuple[pa.Table, Receipt]]:
        for number, pair in enumerate(units):
            assert number < most
            yield pair

    _, ledgers = select(
        [read(units, 2) for units in pool], tau=0.5, n_per_class=9, near_duplicates=1
    )
    assert all(ledger.generated <= 50 for ledger in ledgers)


def test_rows_without_logits_are_passed_over(pool: list[Units]) -> None:
    table = pool[0][0][0].to_pylist()
    for row in table[::2]:
        row |= {"reject_reason": "empty", "teacher_logits": None}
    units = with_receipts([pa.Table.from_pylist(table, schema.POOL)], 0)
    few = select([units], tau=0.0, n_per_class=3, near_duplicates=1.0)[0]
    left = [row for row in table if row["reject_reason"] is None]
    right = [row for row in left if np.argmax(row["teacher_logits"]) == 0]
    assert few.to_pylist() == right[:3]


def test_soft_labels_are_the_softmax_of_logits_over_t(pool: list[Units]) -> None:
    chosen, _ = select(pool, tau=0.5, n_per_class=10, near_duplicates=1.0)
    for temperature in (1.0, 2.0, 5.0):
        rows = synthetic_rows(chosen, beta=0.3, temperature=temperature)
        z = np.array(chosen[schema.TEACHER_LOGITS].to_pylist()) / temperature
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        assert np.allclose(np.array(rows[schema.SOFT_LABELS].to_pylist()), p, atol=1e-6)
    assert set(rows[schema.WEIGHTS].to_pylist()) == {np.float32(0.3)}
    assert all(rows[schema.IS_SYNTH].to_pylist())


def test_real_rows_weigh_one_and_have_no_candidate() -> None:
    corpus = pa.table({"text": ["a", "b"], "labels": [0, 1]}, schema=schema.CORPUS)
    rows = real_rows(corpus, np.array([[2.0, 0.0], [0.0, 2.0]]), temperature=2.0)
    assert rows[schema.WEIGHTS].to_pylist() == [1.0, 1.0]
    assert rows[schema.CANDIDATE_ID].to_pylist() == [None, None]
    assert not any(rows[schema.IS_SYNTH].to_pylist())


def test_the_synthetic_split_is_stratified_disjoint_and_complete() -> None:
    units = [with_receipts([unit(k, 0, np.eye(2)[[k] * 200] * 9)], k) for k in range(2)]
    chosen, _ = select(units, tau=0.5, n_per_class=200, near_duplicates=1.0)
    parts = split_synthetic(synthetic_rows(chosen, beta=0.3, temperature=2.0), seed=1)
    counts = {n: np.bincount(t[schema.LABELS].to_numpy()).tolist() for n, t in parts.items()}
    assert counts == {
        "train": [180, 180],
        "synthetic_validation": [10, 10],
        "synthetic_test": [10, 10],
    }
    ids = [cid for table in parts.values() for cid in table[schema.CANDIDATE_ID].to_pylist()]
    assert len(ids) == len(set(ids)) == 400
