import numpy as np
import pytest

from sentisynth.training import cooccurrence
from sentisynth.training.cooccurrence import cooccurrence_embeddings, neighbours, ppmi
from sentisynth.training.rows import Rows

SPECIAL = [0, 1]


def rows_of(ids: list[list[int]]) -> Rows:
    return Rows.of(ids, np.zeros(len(ids), np.int64))


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Rows like [0, …, 1] of 30 pieces; pieces 10 and 11 stand in the same places."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(400):
        ids = rng.choice(np.arange(2, 20), size=rng.integers(3, 14), p=_shares()).tolist()
        ids += [10 + i % 2, 25, 26, 27]
        made.append([0, *ids, 1])
    return rows_of(made)


def _shares() -> np.ndarray:
    shares = 1.0 / np.arange(1, 19)
    return shares / shares.sum()


def counted(rows: Rows, n: int) -> np.ndarray:
    """Pair by pair."""
    found = np.zeros((n, n))
    for start, end in zip(rows.starts, rows.starts[1:], strict=False):
        ids = rows.ids[start:end].tolist()
        for i, a in enumerate(ids):
            for b in ids[i + 1 : i + 9]:
                if a not in SPECIAL and b not in SPECIAL:
                    found[a, b] += 1
                    found[b, a] += 1
    return found


@pytest.mark.parametrize("chunk", [1, 50, 2**23])
def test_neighbours_are_counted_in_rows_alone(
    rows: Rows, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cooccurrence, "_CHUNK", chunk)
    few = rows.take(np.arange(60))
    assert neighbours(few, 30, SPECIAL).toarray().tolist() == counted(few, 30).tolist()


def test_ppmi_is_the_formula(rows: Rows) -> None:
    counts = counted(rows, 30)
    word, context = counts.sum(1) / counts.sum(), counts.sum(0) ** 0.75
    context /= context.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log(counts / counts.sum() / np.outer(word, context))
    wanted = np.where(counts > 0, np.maximum(value, 0), 0)
    found = ppmi(neighbours(rows, 30, SPECIAL)).toarray()
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_pieces_with_the_same_neighbours_are_near(rows: Rows) -> None:
    table = cooccurrence_embeddings(rows, 30, 8, SPECIAL, seed=3)
    assert table.shape == (30, 8) and table.dtype == np.float32
    assert table.std() == pytest.approx(1, abs=1e-5)
    assert not table[[*SPECIAL, 22, 23]].any()  # special, or not in the corpus
    assert table[10].any()
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    near = unit @ unit[10]
    assert np.argsort(-near)[:2].tolist() == [10, 11]
    again = cooccurrence_embeddings(rows, 30, 8, SPECIAL, seed=3)
    assert again.tobytes() == table.tobytes()


def test_a_corpus_that_tells_nothing_gives_nothing() -> None:
    table = cooccurrence_embeddings(rows_of([[0, 5, 5, 5, 1]] * 4), 30, 8, SPECIAL, seed=3)
    assert not table.any()
