import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sentisynth import schema
from sentisynth.data.receipts import Receipt
from sentisynth.data.units import Unit, read_unit, write_unit
from tests.conftest import reviews
from tests.data.test_ledger import Row, pool_rows

UNIT = Unit(1, 0, 4)
SOME: list[Row] = [
    ("a text of some length that is good", None, [0.0, 3.5]),
    ("short", schema.TOO_SHORT, None),
    ("another text of some length that is bad", None, [2.5, -1.0]),
    ("it broke the teacher", schema.NON_FINITE, None),
]
ALL: list[Row] = [(text, None, [0.25, 1.0]) for text, _, _ in SOME]
NONE: list[Row] = [(text, schema.LEAK, None) for text, _, _ in SOME]


def same(a: Receipt, b: Receipt) -> bool:
    """Whether all values and their types are the same."""

    def facts(receipt: Receipt) -> list[object]:
        values = [getattr(receipt, f.name) for f in dataclasses.fields(receipt)]
        sketches = values.pop()
        values += [sketches.keys, sketches.shingles, sketches.ends]
        return [(v.dtype, v.tolist()) if isinstance(v, np.ndarray) else v for v in values]

    return facts(a) == facts(b)


@pytest.mark.parametrize("near_duplicates", [0.8, 1.0])
@pytest.mark.parametrize("rows", [SOME, ALL, NONE], ids=["some", "all", "none"])
def test_a_receipt_comes_back_from_arrow_as_it_was(rows: list[Row], near_duplicates: float) -> None:
    receipt = Receipt.of(pool_rows(rows), UNIT, "ab" * 32, near_duplicates)
    assert same(Receipt.from_arrow(receipt.to_arrow()), receipt)
    assert receipt.to_arrow().num_rows == 1


def test_a_receipt_is_found_among_others() -> None:
    """Whether or not they have screened or scored rows."""
    kinds = (SOME, SOME[::-1], ALL, NONE)
    receipts = [Receipt.of(pool_rows(rows), UNIT, "ab" * 32, 0.8) for rows in kinds]
    table = pa.concat_tables(receipt.to_arrow() for receipt in receipts)
    for i, receipt in enumerate(receipts):
        assert same(Receipt.from_arrow(table.slice(i, 1)), receipt)


def test_a_receipt_says_what_the_rows_say() -> None:
    receipt = Receipt.of(pool_rows(SOME), UNIT, "ab" * 32, 0.8)
    assert receipt.rows.tolist() == [0, 2] and receipt.right.tolist() == [True, False]
    assert receipt.confidence == pytest.approx(1 / (1 + np.exp([-3.5, -3.5])))
    assert receipt.screened == {"too_short": 1, "non_finite": 1} and receipt.n_tokens == 36
    assert len(receipt.sketches) == 2


def test_a_receipt_is_a_function_of_the_rows_not_of_who_reads_them(tmp_path: Path) -> None:
    """The one made beside the writer, the one of the file, and the one of a table in pieces."""
    texts = reviews("train", 16)["text"].to_pylist()
    rows: list[Row] = [(text, None, [0.1 * i, 1.0]) for i, text in enumerate(texts)]
    table, unit = pool_rows(rows), Unit(1, 0, len(rows))
    sha256 = write_unit(table, unit, tmp_path, "plan")
    wanted = Receipt.of(table, unit, sha256, 0.8)
    found = read_unit(unit, tmp_path, "plan")
    assert found is not None
    pieces = pa.concat_tables(table.slice(i, 5) for i in range(0, len(rows), 5))
    assert same(Receipt.of(found[0], unit, found[1], 0.8), wanted)
    assert same(Receipt.of(pieces, unit, sha256, 0.8), wanted)
    assert wanted.to_arrow().equals(Receipt.of(pieces, unit, sha256, 0.8).to_arrow())


def test_a_receipt_is_small() -> None:
    texts = reviews("train", 128)["text"].to_pylist()
    table = pool_rows([(text, None, [0.0, 1.0]) for text in texts])
    assert Receipt.of(table, Unit(1, 0, 256), "", 0.8).to_arrow().nbytes < 150 * len(texts)
