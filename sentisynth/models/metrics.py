"""Figures of predictions, also for training's own choices. N rows, K classes."""

import numpy as np


def confusion(labels_N: np.ndarray, predicted_N: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts (K, K) of rows of class i that were predicted as class j."""
    counts = np.bincount(labels_N * n_classes + predicted_N, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def macro_f1(labels_N: np.ndarray, predicted_N: np.ndarray, n_classes: int) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN); 0 for a class that never occurs."""
    return float(f1_by_class(confusion(labels_N, predicted_N, n_classes)).mean())


def f1_by_class(confusion_KK: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of each class, (K,)."""
    return ratio(2 * np.diag(confusion_KK), confusion_KK.sum(axis=0) + confusion_KK.sum(axis=1))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part by part; 0 where there is nothing."""
    return part / np.maximum(whole, 1)
