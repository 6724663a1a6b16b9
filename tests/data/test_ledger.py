import math

import numpy as np
import pyarrow as pa
import pytest

from sentisynth import schema
from sentisynth.data.ledger import Tally, adds_up, fill, judge
from sentisynth.data.logits import softmax
from sentisynth.data.receipts import Receipt
from sentisynth.data.units import Unit

Row = tuple[str, str | None, list[float] | None]


def pool_rows(rows: list[Row], label: int = 1) -> pa.Table:
    """(text, reject reason, logits) as a pool table of one label."""
    texts, reasons, logits = zip(*rows, strict=True)
    n = len(rows)
    return pa.table(
        {
            schema.CANDIDATE_ID: [schema.candidate_id(label, i) for i in range(n)],
            schema.LABEL: [label] * n,
            schema.TEXT: list(texts),
            schema.PROMPT: [""] * n,
            schema.N_TOKENS: [9] * n,
            schema.REJECT_REASON: list(reasons),
            schema.TEACHER_LOGITS: list(logits),
        },
        schema=schema.POOL,
    )


def told(tally: Tally, rows: list[Row]) -> list[str]:
    """The verdicts on the next unit, a word for each of its rows."""
    table = pool_rows(rows)
    receipt = Receipt.of(table, Unit(1, tally.next_number, len(rows)), "", 1.0)
    return fill(table, receipt.rows, tally.add(receipt))


def test_the_temperature_divides_logits_once() -> None:
    """At p = 0.99 and T = 2 the soft label is 0.909; a softmax of probabilities says 0.62."""
    z = math.log(0.99 / 0.01)
    assert softmax(np.array([z, 0.0]), 2.0)[0] == pytest.approx(0.9087, abs=1e-4)


def test_every_row_gets_the_verdict_that_its_facts_say() -> None:
    rows: list[Row] = [
        ("short", schema.TOO_SHORT, None),
        ("right and sure", None, [0.0, 3.0]),
        ("right, not sure", None, [0.0, 1.0]),
        ("sure, but wrong", None, [5.0, 0.0]),
        ("refused", schema.UNTOKENIZABLE, None),
    ]
    verdicts = ["too_short", "accepted", "below_tau", "wrong_label", "untokenizable"]
    assert judge(pool_rows(rows), 0.9) == told(Tally(0.9, 1.0), rows) == verdicts


def test_exactly_tau_is_accepted() -> None:
    table = pool_rows([("even", None, [0.0, 0.0, 0.0, 0.0])], label=0)
    assert judge(table, 0.25) == ["accepted"]


def test_of_equal_texts_the_lowest_index_stays_across_units() -> None:
    tally = Tally(0.9, 1.0)
    first: list[Row] = [("same text", None, [0.0, 5.0]), ("other", None, [0.0, 5.0])]
    assert told(tally, first) == ["accepted", "accepted"]
    second: list[Row] = [("Same text!", None, [0.0, 5.0]), ("new", None, [0.0, 5.0])]
    assert told(tally, second) == ["duplicate", "accepted"]
    assert tally.ledger.counts[schema.DUPLICATE] == 1
    assert tally.next_number == 2


def test_a_duplicate_of_a_text_the_teacher_refused_is_a_duplicate() -> None:
    tally = Tally(0.9, 1.0)
    rows: list[Row] = [("x y", None, [5.0, 0.0]), ("x y", None, [0.0, 5.0])]
    assert told(tally, rows) == ["wrong_label", "duplicate"]
    assert tally.ledger.counts == {schema.WRONG_LABEL: 1, schema.DUPLICATE: 1}
    assert tally.ledger.accepted == 0


def test_a_text_that_was_not_scored_makes_no_later_one_a_duplicate() -> None:
    rows: list[Row] = [("x y", schema.NON_FINITE, None), ("x y", None, [0.0, 5.0])]
    assert told(Tally(0.9, 1.0), rows) == ["non_finite", "accepted"]


def test_the_ledger_adds_up_and_says_when_it_does_not() -> None:
    tally = Tally(0.9, 1.0)
    told(tally, [("a", schema.LEAK, None), ("b", None, [0, 5.0]), ("c", None, [5.0, 0])])
    entry = tally.ledger.as_dict()
    assert entry["generated"] == 3 and entry["scored"] == 2 and entry["screened"] == {"leak": 1}
    assert entry["tokens"] == 27
    assert adds_up(entry)
    assert not adds_up({**entry, "accepted": 2})
    assert not adds_up({**entry, "generated": 4})
