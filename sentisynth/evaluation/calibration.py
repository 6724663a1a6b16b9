"""How far a classifier's probabilities can be believed. N rows, K classes.

Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", 2017: expected calibration
error (section 2) and temperature scaling (section 4.2).
"""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

_BINS = 15
_LOG_BOUNDS = (-4.0, 4.0)  # of the temperature: e^-4 to e^4
Split = tuple[np.ndarray, np.ndarray]
"""Labels (N,) and logits (N, K)."""


def calibration(validation: Split, test: Split) -> dict[str, Any]:
    """The temperature that fits the validation rows best, and what it does on each split: negative
    log-likelihood in nats a row and expected calibration error, before (T = 1) and after.
    """
    t = fit_temperature(*validation)
    told: dict[str, Any] = {"temperature": t}
    for name, (labels_N, logits_NK) in (("validation", validation), ("test", test)):
        told[name] = {
            "nll_before": nll(labels_N, logits_NK),
            "nll_after": nll(labels_N, logits_NK / t),
            "ece_before": expected_calibration_error(labels_N, logits_NK),
            "ece_after": expected_calibration_error(labels_N, logits_NK / t),
        }
    return told


def fit_temperature(labels_N: np.ndarray, logits_NK: np.ndarray) -> float:
    """T in [e⁻⁴, e⁴] with the least negative log-likelihood of softmax(logits / T)."""
    found = minimize_scalar(
        lambda log_t: nll(labels_N, logits_NK / np.exp(log_t)), bounds=_LOG_BOUNDS, method="bounded"
    )
    return float(np.exp(found.x))


def nll(labels_N: np.ndarray, logits_NK: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    log_p_NK = log_softmax(np.asarray(logits_NK, np.float64), axis=1)
    return float(-log_p_NK[np.arange(len(labels_N)), labels_N].mean())


def expected_calibration_error(labels_N: np.ndarray, logits_NK: np.ndarray) -> float:
    """Σ over 15 equal bins of confidence of (rows in it / N) · |accuracy − mean confidence|."""
    p_NK = np.exp(log_softmax(np.asarray(logits_NK, np.float64), axis=1))
    confidence_N, right_N = p_NK.max(axis=1), p_NK.argmax(axis=1) == labels_N
    bins_N = np.minimum((confidence_N * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins_N, weights=right_N - confidence_N, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(labels_N))
