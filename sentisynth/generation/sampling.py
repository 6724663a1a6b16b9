"""One sampling step: penalty, temperature, top-k, top-p, then one keyed uniform a row.

The distribution is that of transformers' processors in the same order. B rows, V vocabulary,
k kept tokens, L tokens seen so far (prompt included).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.generation.likeliest import (
    CHUNK,
    History,
    likeliest,
    log_mass,
    seen_logits,
    shifted,
)

NO_TOKEN = -1
_WIDTHS = (256, 1536)  # of the likeliest tokens, among which a nucleus is looked for


def distribution(
    logits_BV: torch.Tensor,
    history: History,
    config: SamplingConfig,
    shift_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and token ids (B, W), zero outside top-k and top-p; in falling order, but for
    a distribution of which nothing is cut.

    The true logits are `logits_BV` plus `shift_B` (fp32), in any floating type; they are changed.
    """
    if is_short(logits_BV.shape[1], config):
        logits_BV = logits_BV.contiguous()
        raw_BL = logits_BV.gather(1, history.tokens_BL)
        *found, overflow = short_distribution(logits_BV, history, config, shift_B)
        if not overflow:
            return found[0], found[1]
        logits_BV.scatter_(1, history.tokens_BL, raw_BL)
    if not _has_top_k(logits_BV.shape[1], config) and config.top_p < 1.0:
        return _nucleus(logits_BV, history, config, shift_B)
    values, ids = _all_kept(logits_BV, history, config, shift_B)
    return _probs(values, config), ids


def short_distribution(
    logits_BV: torch.Tensor,
    history: History,
    config: SamplingConfig,
    shift_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`distribution` without a pass over the sorted vocabulary, and without a wait for the device.

    The third result, one bool on the device, tells whether some row has more tokens tied with the
    k-th than there is room for. Then nothing of the result holds. Needs `is_short`.
    """
    width = config.top_k + slack(config.top_k)
    values, ids_BW, beyond = likeliest(logits_BV, history, config, shift_B, width)
    kth_B1 = values[:, config.top_k - 1 : config.top_k]
    beyond = torch.cat((beyond, values[:, width : width + 1]), dim=1)
    values = values[:, :width].masked_fill(values[:, :width] < kth_B1, float("-inf"))
    return _probs(values, config), ids_BW[:, :width], (beyond >= kth_B1).any()


def _nucleus(
    logits_BV: torch.Tensor,
    history: History,
    config: SamplingConfig,
    shift_B: torch.Tensor | None,
    widths: Sequence[int] = _WIDTHS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-p without top-k: of most rows the tokens that are kept are among a few hundred likeliest;
    for the others more are looked at, in the end all of them.
    """
    width = next((w for w in widths if 2 * CHUNK * w <= logits_BV.shape[1]), 0)
    if not width:
        values, ids_BV = _all_kept(logits_BV, history, config, shift_B)
        probs = _probs(values, config)
        n_kept = max(1, int((probs > 0).sum(dim=1).max()))  # of logits that are no numbers, one
        return probs[:, :n_kept], ids_BV[:, :n_kept]
    logits_BV = logits_BV.contiguous()
    raw_BL = logits_BV.gather(1, history.tokens_BL)
    seen_BL = seen_logits(logits_BV, history, config, shift_B)
    values, ids_BW, _ = likeliest(logits_BV, history, config, shift_B, width)
    mass_B1 = log_mass(logits_BV, seen_BL, history, config, shift_B)
    probs = (values[:, :width] - mass_B1).exp()
    is_within_B = probs.sum(dim=1) >= config.top_p
    probs, ids_BW = _cut(probs, config), ids_BW[:, :width]
    rest = (~is_within_B).nonzero().squeeze(1)
    if len(rest):
        raw = logits_BV[rest].scatter_(1, history.tokens_BL[rest], raw_BL[rest])
        own_shift = None if shift_B is None else shift_B[rest]
        wider = [w for w in widths if w > width]
        more, more_ids = _nucleus(raw, history.of(rest), config, own_shift, wider)
        n_more = max(0, more.shape[1] - width)
        probs, ids_BW = F.pad(probs, (0, n_more)), F.pad(ids_BW, (0, n_more))
        n_less = probs.shape[1] - more.shape[1]
        probs[rest], ids_BW[rest] = F.pad(more, (0, n_less)), F.pad(more_ids, (0, n_less))
    return probs, ids_BW


def slack(top_k: int) -> int:
    """Candidates beyond k that may tie with the k-th before the long way is taken: logits in bf16
    are so coarse that ties grow with k.
    """
    return max(14, top_k // 2)


def is_short(vocabulary: int, config: SamplingConfig) -> bool:
    """Whether the vocabulary is so large, and top-k so small, that the short way is one."""
    return config.top_k > 0 and 2 * CHUNK * (config.top_k + slack(config.top_k)) <= vocabulary


def draw(probs_BW: torch.Tensor, ids_BW: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Tokens (B,) by inverting the distribution at uniforms in [0, 1); NO_TOKEN where it is none,
    since logits were not finite.
    """
    steps = probs_BW.cumsum(dim=1, dtype=torch.float64)
    chosen = (steps <= uniforms_B[:, None] * steps[:, -1:]).sum(dim=1, keepdim=True)
    last = (steps < steps[:, -1:]).sum(dim=1, keepdim=True)  # the last that has a probability
    tokens_B = ids_BW.gather(1, torch.minimum(chosen, last)).squeeze(1)
    return tokens_B.masked_fill(~steps[:, -1].isfinite(), NO_TOKEN)


def _all_kept(
    logits_BV: torch.Tensor,
    history: History,
    config: SamplingConfig,
    shift_B: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled logits and ids, −inf outside top-k, in falling order where something is to be cut. A
    token tied with the k-th is kept, as transformers does.
    """
    seen_BL = seen_logits(logits_BV, history, config, shift_B)
    logits = shifted(logits_BV, shift_B)
    if seen_BL is not None:
        logits = logits.scatter(1, history.tokens_BL, seen_BL)
    logits = logits / config.temperature
    if not _has_top_k(logits.shape[1], config):
        if config.top_p >= 1.0:
            return logits, torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
        return logits.sort(dim=1, descending=True, stable=True)
    kth = logits.topk(config.top_k, dim=1).values[:, -1:]
    n_kept = max(1, int((logits >= kth).sum(dim=1).max()))
    values, ids = logits.topk(n_kept, dim=1)
    return values.masked_fill(values < kth, float("-inf")), ids


def _probs(values_BW: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Top-p inside the top-k is the same distribution as over the whole vocabulary, since the
    tokens outside have probability zero by then.
    """
    return _cut(values_BW.softmax(dim=1), config)


def _cut(probs_BW: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Probabilities in falling order, those of top-p with the sum 1."""
    if config.top_p >= 1.0:
        return probs_BW
    better = probs_BW.cumsum(dim=1) - probs_BW
    probs_BW = probs_BW.masked_fill(better >= config.top_p, 0.0)
    return probs_BW / probs_BW.sum(dim=1, keepdim=True)


def _has_top_k(vocabulary: int, config: SamplingConfig) -> bool:
    return 0 < config.top_k < vocabulary


def until_end(drawn_BS: torch.Tensor, end_id: int) -> list[list[int] | None]:
    """Continuations without their end token and what follows; None for one that met NO_TOKEN."""
    rows = drawn_BS.tolist()
    ended = [row[: row.index(end_id)] if end_id in row else row for row in rows]
    return [None if NO_TOKEN in row else row for row in ended]


def is_last(drawn: torch.Tensor, end_id: int) -> torch.Tensor:
    """Whether tokens are the last of their rows."""
    return (drawn == end_id) | (drawn == NO_TOKEN)
