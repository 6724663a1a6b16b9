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
    there_K = np.bincount(labels_N, minlength=n_classes) > 0
    values = [
        _macro_f1(labels_N[rows], predicted_N[rows], there_K)
        for rows in _resamples(len(labels_N), seed)
    ]
    return _interval(macro_f1(labels_N, predicted_N, n_classes), values)


def paired_bootstrap(
    labels_N: np.ndarray, a_N: np.ndarray, b_N: np.ndarray, n_classes: int, seed: int
) -> dict[str, float]:
    """Macro-F1 of predictions `b` minus that of `a` on the same rows, with a 95 % interval.

    The interval is the percentile bootstrap over rows (Efron and Tibshirani, "An introduction to
    the bootstrap", chapter 13), 2,000 resamples. It covers the choice of test rows, not of seeds.
    A class of few rows that is in none of a resample's is left out of its mean: that it was not
    drawn says nothing of the predictions.
    """
    there_K = np.bincount(labels_N, minlength=n_classes) > 0
    values = [
        _macro_f1(labels_N[rows], b_N[rows], there_K)
        - _macro_f1(labels_N[rows], a_N[rows], there_K)
        for rows in _resamples(len(labels_N), seed)
    ]
    difference = macro_f1(labels_N, b_N, n_classes) - macro_f1(labels_N, a_N, n_classes)
    return _interval(difference, values)


def _macro_f1(labels_N: np.ndarray, predicted_N: np.ndarray, there_K: np.ndarray) -> float:
    """Macro-F1 of a resample, of rows that have the classes `there_K`."""
    confusion_KK = confusion(labels_N, predicted_N, len(there_K))
    is_drawn_K = confusion_KK.any(axis=1) | ~there_K
    return float(f1_by_class(confusion_KK)[is_drawn_K].mean())


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
