"""Figures as pure functions on arrays and texts. N rows, K classes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sentisynth.data.text import words
from sentisynth.models.metrics import confusion, f1_by_class, macro_f1, ratio

_RESAMPLES = 2000


def classification(labels_N: np.ndarray, predicted_N: np.ndarray, n_classes: int) -> dict[str, Any]:
    """Macro-F1 (the mean of the K classes' F1), accuracy, and per class precision, recall, F1.

    `confusion[i][j]` counts rows of class i that were predicted as class j. A class that is never
    predicted has precision 0.
    """
    confusion_KK = confusion(labels_N, predicted_N, n_classes)
    right_K, support_K = np.diag(confusion_KK), confusion_KK.sum(axis=1)
    f1_K = f1_by_class(confusion_KK)
    return {
        "macro_f1": float(f1_K.mean()),
        "accuracy": float(np.mean(labels_N == predicted_N)),
        "precision": ratio(right_K, confusion_KK.sum(axis=0)).tolist(),
        "recall": ratio(right_K, support_K).tolist(),
        "f1": f1_K.tolist(),
        "support": support_K.tolist(),
        "confusion": confusion_KK.tolist(),
    }


def bootstrap(
    labels_N: np.ndarray, predicted_N: np.ndarray, n_classes: int, seed: int
) -> dict[str, float]:
    """Macro-F1 with a 95 % interval over the choice of rows; see `paired_bootstrap`."""
    values = [
        macro_f1(labels_N[rows], predicted_N[rows], n_classes)
        for rows in _resamples(len(labels_N), seed)
    ]
    return _interval(macro_f1(labels_N, predicted_N, n_classes), values)


def paired_bootstrap(
    labels_N: np.ndarray, a_N: np.ndarray, b_N: np.ndarray, n_classes: int, seed: int
) -> dict[str, float]:
    """Macro-F1 of predictions `b` minus that of `a` on the same rows, with a 95 % interval.

    The interval is the percentile bootstrap over rows (Efron and Tibshirani, "An introduction to
    the bootstrap", chapter 13), 2,000 resamples. It covers the choice of test rows, not of seeds.
    """

    def difference(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        return macro_f1(labels, b, n_classes) - macro_f1(labels, a, n_classes)

    values = [
        difference(labels_N[rows], a_N[rows], b_N[rows]) for rows in _resamples(len(labels_N), seed)
    ]
    return _interval(difference(labels_N, a_N, b_N), values)


def _resamples(n_rows: int, seed: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    return (random.integers(0, n_rows, n_rows) for _ in range(_RESAMPLES))


def _interval(value: float, resampled: list[float]) -> dict[str, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"macro_f1": value, "low": float(low), "high": float(high)}


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of words, the corpus taken as one (Li et al.,
    "A diversity-promoting objective function for neural conversation models", 2016, section 5).
    Falls as the corpus grows: compare sets of one size.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        items = words(text)
        grams = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def mean_entropy(soft_labels_NK: np.ndarray) -> float:
    """Mean entropy of the rows in nats; ln K for rows that know nothing."""
    p = np.asarray(soft_labels_NK, dtype=np.float64)
    return float(-np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0.0).sum(axis=1).mean())
