import numpy as np
import pytest

from sentisynth.evaluation.calibration import (
    calibration,
    expected_calibration_error,
    fit_temperature,
    nll,
)
from sentisynth.evaluation.metrics import bootstrap


def made_up(n: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from a softmax, and its logits times `sharpness`."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (n, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) < random.random((n, 1))).sum(axis=1)
    return labels, logits * sharpness


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scale(sharpness: float) -> None:
    labels, logits = made_up(20000, sharpness)
    assert fit_temperature(labels, logits) == pytest.approx(sharpness, rel=0.03)


def test_overconfidence_is_seen_and_mended() -> None:
    told = calibration(made_up(4000, 4.0), made_up(4000, 4.0))
    for split in ("validation", "test"):
        assert told[split]["nll_after"] < told[split]["nll_before"]
        assert told[split]["ece_after"] < 0.03 < 0.1 < told[split]["ece_before"]


def test_two_rows_by_hand() -> None:
    labels, logits = np.array([0, 1]), np.log(np.array([[0.9, 0.1], [0.7, 0.3]]))
    assert nll(labels, logits) == pytest.approx(-(np.log(0.9) + np.log(0.3)) / 2)
    # |1 − 0.9| · ½ + |0 − 0.7| · ½
    assert expected_calibration_error(labels, logits) == pytest.approx(0.4)


def test_the_interval_holds_the_figure() -> None:
    labels = np.arange(200) % 2
    predicted = np.where(np.arange(200) % 10 < 8, labels, 1 - labels)
    found = bootstrap(labels, predicted, 2, seed=1)
    assert found["macro_f1"] == pytest.approx(0.8)
    assert 0.73 < found["low"] < 0.8 < found["high"] < 0.87
