import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score

from sentisynth.training import detection


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    made = []
    for _ in range(3):
        replaced = torch.rand(8, 50) < 0.13
        logits = torch.randn(8, 50) - 1.5 + 2 * replaced
        made.append((logits, replaced, torch.rand(8, 50) < 0.9))
    return made


def test_figures_of_a_detector_are_those_of_all_its_tokens(
    batches: list[tuple[torch.Tensor, ...]],
) -> None:
    found = detection.figures(sum(detection.counts(*batch) for batch in batches))
    logits, replaced = (torch.cat([b[i][b[2]] for b in batches]).numpy() for i in (0, 1))
    assert found["f1"] == pytest.approx(f1_score(replaced, logits > 0))
    assert found["ap"] == pytest.approx(average_precision_score(replaced, logits), abs=2e-3)
    wanted = F.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(replaced * 1.0))
    assert found["loss"] == pytest.approx(wanted.item(), rel=1e-5)
    assert found["replaced"] == replaced.sum()


def test_precision_does_not_depend_on_how_ready_the_detector_is(
    batches: list[tuple[torch.Tensor, ...]],
) -> None:
    (logits, replaced, counted), *_ = batches
    bold, shy = (
        detection.figures(detection.counts(logits + shift, replaced, counted)) for shift in (1, -1)
    )
    assert bold["f1"] != pytest.approx(shy["f1"], abs=0.05)
    assert bold["ap"] == pytest.approx(shy["ap"], abs=2e-3)


def test_nothing_replaced_and_nothing_found() -> None:
    zeros = torch.zeros(2, 3)
    found = detection.figures(detection.counts(zeros - 99, zeros.bool(), ~zeros.bool()))
    assert (found["f1"], found["ap"], found["replaced"]) == (0.0, 0.0, 0.0)
    assert np.isfinite(found["loss"])
