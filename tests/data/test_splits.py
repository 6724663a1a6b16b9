from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentisynth.config.types import DataConfig
from sentisynth.data.splits import load_corpus, stratified_sample
from sentisynth.data.text import normal_form
from sentisynth.errors import DataError


def config(source: Path, **changes: object) -> DataConfig:
    values = {"source": str(source), "validation": 10, "test": 10, "labels": ("n", "p")}
    return DataConfig.model_validate({**values, "n_seed": 20, **changes})


def write(path: Path, texts: list[str], labels: list[int]) -> Path:
    pq.write_table(pa.table({"text": texts, "label": labels}), path)
    return path


@pytest.fixture
def skewed(tmp_path: Path) -> Path:
    """100 rows, three of four of class 0."""
    return write(tmp_path / "s.parquet", [f"text {i}" for i in range(100)], [0, 0, 0, 1] * 25)


def test_the_seed_keeps_the_class_ratio(skewed: Path) -> None:
    corpus = load_corpus(config(skewed), 1)
    assert np.bincount(corpus.seed["labels"].to_numpy()).tolist() == [15, 5]


def test_the_sample_has_exactly_n_rows_whatever_the_rounding() -> None:
    labels = np.repeat([0, 1, 2], [10, 11, 13])
    table = pa.table({"labels": labels})
    for n in range(1, 34):
        assert len(set(stratified_sample(table, n, 5).tolist())) == n


def test_splits_share_no_text(skewed: Path) -> None:
    corpus = load_corpus(config(skewed), 1)
    sets = [set(map(normal_form, t["text"].to_pylist())) for t in corpus.splits().values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 40


def test_the_same_seed_draws_the_same_rows_and_another_others(skewed: Path) -> None:
    first, again, other = (load_corpus(config(skewed), s).seed for s in (1, 1, 2))
    assert first.equals(again) and not first.equals(other)


def test_source_rows_that_are_in_test_are_left_out(tmp_path: Path, skewed: Path) -> None:
    test = write(tmp_path / "t.parquet", ["Text 3 !", "other words"], [1, 0])
    corpus = load_corpus(config(skewed, test=str(test), n_seed=80), 1)
    assert "text 3" not in corpus.seed["text"].to_pylist()
    assert corpus.dropped["in_test"] == 1


def test_a_source_that_is_the_test_file_is_told_of(skewed: Path) -> None:
    with pytest.raises(DataError, match=r"left out, since data\.test has the same texts: 100"):
        load_corpus(config(skewed, test=str(skewed)), 1)


def test_a_validation_that_is_the_test_file_is_told_of(tmp_path: Path, skewed: Path) -> None:
    held_out = str(write(tmp_path / "t.parquet", ["other words", "more words"], [1, 0]))
    told = r"no row of class n, p \(left out, since data\.test has the same texts: 2\)"
    with pytest.raises(DataError, match=told):
        load_corpus(config(skewed, test=held_out, validation=held_out), 1)


def test_a_class_that_is_all_in_test_is_told_of(tmp_path: Path, skewed: Path) -> None:
    texts = [f"text {i}" for i in range(3, 100, 4)]
    held_out = write(tmp_path / "t.parquet", ["other words", *texts], [0] + [1] * len(texts))
    with pytest.raises(DataError, match=r"the seed has no row of class p \(left out.*: 25\)"):
        load_corpus(config(skewed, test=str(held_out)), 1)


def test_repeats_and_contradictions_are_left_out(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(60)] + ["text 0", "text 1"]
    source = write(tmp_path / "s.parquet", texts, [0, 1] * 30 + [0, 0])
    corpus = load_corpus(config(source), 1)
    assert corpus.dropped == {"contradictory": 2, "repeated": 1}


def test_what_became_of_the_rows_is_told(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(60)] + ["text 0", "text 2", "text 2"]
    source = write(tmp_path / "s.parquet", texts, [0, 1] * 30 + [1, 0, 0])
    assert load_corpus(config(source), 1).told == (
        "20 rows to learn from; 10 to validate; 10 to test; 2 left out since their text has "
        "several classes; 2 left out since they repeat a text; 19 not used (data.n_seed)"
    )
    told = r"39 distinct rows left for data.n_seed=50 \(2 left out since they repeat a text, 2"
    with pytest.raises(DataError, match=told):
        load_corpus(config(source, n_seed=50), 1)


def test_a_rare_class_has_a_row_in_each_split(tmp_path: Path) -> None:
    source = write(tmp_path / "s.parquet", [f"text {i}" for i in range(400)], [0] * 396 + [1] * 4)
    corpus = load_corpus(config(source), 1)
    for table in corpus.splits().values():
        assert set(table["labels"].to_pylist()) == {0, 1}


def test_fewer_rows_than_the_seed_asks_for(skewed: Path) -> None:
    with pytest.raises(DataError, match="80 distinct rows left for data.n_seed=81"):
        load_corpus(config(skewed, n_seed=81), 1)


def test_one_class_only(tmp_path: Path) -> None:
    source = write(tmp_path / "s.parquet", [f"text {i}" for i in range(60)], [1] * 60)
    with pytest.raises(DataError, match="no row of class n"):
        load_corpus(config(source), 1)
