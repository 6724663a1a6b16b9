"""How well D tells replaced tokens from others. B rows, S tokens, T counted tokens."""

import torch
import torch.nn.functional as F

_BINS, _FARTHEST = 4096, 16.0  # logits beyond are counted as of the last bin
WIDTH = 1 + 2 * _BINS


def counts(
    logits_BS: torch.Tensor, replaced_BS: torch.Tensor, counted_BS: torch.Tensor
) -> torch.Tensor:
    """(WIDTH,) numbers of a batch in float64, to be added up for `figures`: the loss, and the
    logits' histograms of the tokens that were left and of the replaced ones.
    """
    logits_T, replaced_T = logits_BS[counted_BS].float(), replaced_BS[counted_BS]
    loss = F.binary_cross_entropy_with_logits(logits_T, replaced_T.float(), reduction="sum")
    bins_T = ((logits_T / _FARTHEST + 1) * (_BINS // 2)).long().clamp(0, _BINS - 1)
    histogram = torch.bincount(bins_T + _BINS * replaced_T, minlength=2 * _BINS)
    return torch.cat([loss.double()[None], histogram.double()])


def figures(counted: torch.Tensor) -> dict[str, float]:
    """Loss in nats a token, F1 of what has a positive logit, average precision, and how many tokens
    were replaced.

    F1 at a fixed threshold depends on how ready D is to call a token replaced. The average
    precision (the area under precision over recall) depends on the order of the logits alone.
    """
    loss, histograms = counted[0].item(), counted[1:].view(2, _BINS)
    left, replaced = histograms.flip(1).cumsum(dim=1)  # with a logit in this bin or above
    hits, misses = replaced[_BINS // 2 - 1], left[_BINS // 2 - 1]
    precision = replaced / (left + replaced).clamp(min=1)
    recalled = histograms[1].flip(0) / replaced[-1].clamp(min=1)
    return {
        "loss": loss / (left + replaced)[-1].item(),
        "f1": (2 * hits / (hits + misses + replaced[-1]).clamp(min=1)).item(),
        "ap": (precision * recalled).sum().item(),
        "replaced": replaced[-1].item(),
    }
