import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from sentisynth.evaluation.metrics import (
    bootstrap,
    classification,
    distinct_n,
    mean_entropy,
    paired_bootstrap,
)
from sentisynth.models.metrics import macro_f1


@pytest.mark.parametrize("k", [2, 4])
def test_macro_f1_is_the_mean_over_classes(k: int) -> None:
    random = np.random.default_rng(k)
    labels, predicted = random.integers(0, k, (2, 300))
    wanted = f1_score(labels, predicted, average="macro")
    assert macro_f1(labels, predicted, k) == pytest.approx(wanted)
    assert classification(labels, predicted, k)["macro_f1"] == pytest.approx(wanted)


def test_macro_f1_is_not_the_f1_of_one_class() -> None:
    labels, predicted = np.array([1] * 90 + [0] * 10), np.ones(100, dtype=int)
    assert f1_score(labels, predicted) > 0.94
    assert macro_f1(labels, predicted, 2) == pytest.approx(0.9474 / 2, abs=1e-4)


def test_figures_by_class() -> None:
    found = classification(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 3)
    assert found["confusion"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert found["precision"] == [1.0, 0.5, 0.0]
    assert found["recall"] == pytest.approx([2 / 3, 1.0, 0.0])
    assert found["accuracy"] == 0.75


def test_figures_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 3, 200), random.integers(1, 5, 200)  # 5 never occurs
    found, classes = classification(labels, predicted, 6), list(range(6))
    wanted = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), wanted, strict=True):
        np.testing.assert_allclose(found[name], values)
    assert found["confusion"] == confusion_matrix(labels, predicted, labels=classes).tolist()


def test_the_interval_of_a_gain() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 1000)
    worse = np.where(random.random(1000) < 0.65, labels, 1 - labels)
    better = np.where(random.random(1000) < 0.80, labels, 1 - labels)
    gain = paired_bootstrap(labels, worse, better, 2, seed=1)
    assert 0 < gain["low"] < gain["macro_f1"] < gain["high"]
    nothing = paired_bootstrap(labels, worse, worse, 2, seed=1)
    assert nothing == {"macro_f1": 0.0, "low": 0.0, "high": 0.0}


def test_a_class_of_few_rows_does_not_pull_the_interval_down() -> None:
    """A resample leaves it out one time in seven, or three."""
    labels = np.repeat(np.arange(4), (60, 25, 2, 1))
    perfect = bootstrap(labels, labels, 4, seed=1)
    assert perfect == {"macro_f1": 1.0, "low": 1.0, "high": 1.0}
    worse = np.where(np.arange(len(labels)) % 3 == 0, 0, labels)
    gain = paired_bootstrap(labels, worse, labels, 4, seed=1)
    assert 0 < gain["low"] < gain["macro_f1"] < gain["high"]
    absent = bootstrap(labels, labels, 5, seed=1)  # of the fifth nothing is known: it counts as 0
    assert absent["low"] < absent["macro_f1"] == absent["high"] == 0.8


def test_distinct_counts_different_ngrams() -> None:
    texts = ["a b a b", "a b"]
    assert distinct_n(texts, 1) == pytest.approx(2 / 6)
    assert distinct_n(texts, 2) == pytest.approx(2 / 4)
    assert distinct_n([], 2) == 0.0


def test_entropy_in_nats() -> None:
    assert mean_entropy(np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx(np.log(2) / 2)
