"""One sampling step: penalty, temperature, top-k, top-p, then one keyed uniform a row.

The distribution is that of transformers' processors in the same order. B rows, V vocabulary,
k kept tokens, L tokens seen so far (prompt included).
"""

import torch

from sentisynth.config.types import SamplingConfig


def penalise_(logits_BV: torch.Tensor, seen_BL: torch.Tensor, penalty: float) -> torch.Tensor:
    """Repetition penalty in place: logits of seen tokens, divided where positive, multiplied
    where negative (Keskar et al., "CTRL", 2019, section 4.1; sign rule of transformers).
    """
    if penalty == 1.0:
        return logits_BV
    seen = logits_BV.gather(1, seen_BL)
    seen = torch.where(seen < 0, seen * penalty, seen / penalty)
    return logits_BV.scatter_(1, seen_BL, seen)


def candidate_probs(
    logits_BV: torch.Tensor, config: SamplingConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (B, k) and token ids (B, k) in falling order; zero outside top-k and top-p.

    Top-p inside the top-k is the same distribution as over the whole vocabulary, since the tokens
    outside have probability zero by then. A token tied with the k-th is kept, as transformers does.
    """
    logits_BV = logits_BV / config.temperature
    vocabulary = logits_BV.shape[1]
    if config.top_k and config.top_k < vocabulary:
        k = config.top_k
        values, ids = logits_BV.topk(k, dim=1)
        kth = values[:, -1:]
        n_tied = int((logits_BV >= kth).sum(dim=1).max())
        if n_tied > k:
            values, ids = logits_BV.topk(n_tied, dim=1)
            values = values.masked_fill(values < kth, float("-inf"))
    else:
        values, ids = logits_BV.sort(dim=1, descending=True, stable=True)
    probs = values.softmax(dim=1)
    if config.top_p < 1.0:
        better = probs.cumsum(dim=1) - probs
        probs = probs.masked_fill(better >= config.top_p, 0.0)
        probs = probs / probs.sum(dim=1, keepdim=True)
    return probs, ids


def sample(
    logits_BV: torch.Tensor, seen_BL: torch.Tensor, uniforms_B: torch.Tensor, config: SamplingConfig
) -> torch.Tensor:
    """Next tokens (B,) by inverting the distribution at `uniforms_B` in [0, 1). Changes logits."""
    penalise_(logits_BV, seen_BL, config.repetition_penalty)
    probs, ids = candidate_probs(logits_BV, config)
    steps = probs.cumsum(dim=1, dtype=torch.float64)
    chosen = (steps <= uniforms_B[:, None] * steps[:, -1:]).sum(dim=1, keepdim=True)
    last = (probs > 0).sum(dim=1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(chosen, last)).squeeze(1)


def until_end(row: list[int], end_id: int) -> list[int]:
    """A continuation without its end token and what follows."""
    return row[: row.index(end_id)] if end_id in row else row
