"""One sampling step: penalty, temperature, top-k, top-p, then one keyed uniform a row.

The distribution is that of transformers' processors in the same order. B rows, V vocabulary,
k kept tokens, L tokens seen so far (prompt included).
"""

from dataclasses import dataclass

import torch

from sentisynth.config.synthesis import SamplingConfig

NO_TOKEN = -1
_CHUNK = 16  # tokens of which the largest logit is taken first


@dataclass(frozen=True)
class History:
    """Tokens of B rows at L positions, of which each is penalised once however often it was seen.

    Positions that are not filled hold the row's first token, as a repetition of it: shapes may stay
    the same from the first step to the last, and what lies ahead changes nothing.
    """

    tokens_BL: torch.Tensor  # noqa: N815  its axes
    repeated_BL: torch.Tensor  # noqa: N815
    """Whether the token stands at an earlier position too."""

    @classmethod
    def begin(cls, prompt: list[int], n_rows: int, length: int, device: torch.device) -> "History":
        """The same prompt in every row, and room up to `length` positions."""
        tokens = [*prompt, *prompt[:1] * (length - len(prompt))]
        repeated = [tokens.index(token) < position for position, token in enumerate(tokens)]
        return cls(
            torch.tensor(tokens, device=device).repeat(n_rows, 1),
            torch.tensor(repeated, device=device).repeat(n_rows, 1),
        )

    def until(self, position: int) -> "History":
        """A view of the positions before this one."""
        return History(self.tokens_BL[:, :position], self.repeated_BL[:, :position])

    def add(self, drawn_B: torch.Tensor, position: torch.Tensor) -> None:
        """Put tokens at a position, an int64 tensor of one element."""
        again = (self.tokens_BL == drawn_B[:, None]).any(dim=1, keepdim=True)
        self.tokens_BL.index_copy_(1, position, drawn_B[:, None])
        self.repeated_BL.index_copy_(1, position, again)

    def of(self, rows: torch.Tensor) -> "History":
        """These rows, copied."""
        return History(self.tokens_BL[rows], self.repeated_BL[rows])


def penalised(logits: torch.Tensor, penalty: float) -> torch.Tensor:
    """Repetition penalty: logits of seen tokens, divided where positive, multiplied where negative
    (Keskar et al., "CTRL", 2019, section 4.1; sign rule of transformers).
    """
    return torch.where(logits < 0, logits * penalty, logits / penalty)


def distribution(
    logits_BV: torch.Tensor,
    history: History,
    config: SamplingConfig,
    shift_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and token ids (B, W), in falling order; zero outside top-k and top-p.

    The true logits are `logits_BV` plus `shift_B` (fp32), in any floating type; they are changed.
    """
    if is_short(logits_BV.shape[1], config):
        logits_BV = logits_BV.contiguous()
        raw_BL = logits_BV.gather(1, history.tokens_BL)
        *found, overflow = short_distribution(logits_BV, history, config, shift_B)
        if not overflow:
            return found[0], found[1]
        logits_BV.scatter_(1, history.tokens_BL, raw_BL)
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
    seen_BL = _seen(logits_BV, history, config, shift_B)
    if seen_BL is not None:  # not by scatter_, which copies all of the logits twice on a CPU
        firsts_B = torch.arange(0, logits_BV.numel(), logits_BV.shape[1], device=logits_BV.device)
        seen = (history.tokens_BL + firsts_B[:, None]).flatten()
        logits_BV.view(-1).index_fill_(0, seen, float("-inf"))
    width = config.top_k + slack(config.top_k)
    largest_BW, ids_BW, bound_B1 = _largest(logits_BV, width)
    values, beyond = (_shifted(x, shift_B) / config.temperature for x in (largest_BW, bound_B1))
    if seen_BL is not None:
        seen_BL = (seen_BL / config.temperature).masked_fill(history.repeated_BL, float("-inf"))
        values = torch.cat((values, seen_BL), dim=1)
        ids_BW = torch.cat((ids_BW, history.tokens_BL), dim=1)
    values, order = values.sort(dim=1, descending=True, stable=True)
    kth_B1 = values[:, config.top_k - 1 : config.top_k]
    beyond = torch.cat((beyond, values[:, width : width + 1]), dim=1)
    values = values[:, :width].masked_fill(values[:, :width] < kth_B1, float("-inf"))
    ids_BW = ids_BW.gather(1, order[:, :width])
    return _probs(values, config), ids_BW, (beyond >= kth_B1).any()


def slack(top_k: int) -> int:
    """Candidates beyond k that may tie with the k-th before the long way is taken: logits in bf16
    are so coarse that ties grow with k.
    """
    return max(14, top_k // 2)


def is_short(vocabulary: int, config: SamplingConfig) -> bool:
    """Whether the vocabulary is so large, and top-k so small, that the short way is one."""
    return config.top_k > 0 and 2 * _CHUNK * (config.top_k + slack(config.top_k)) <= vocabulary


def draw(probs_BW: torch.Tensor, ids_BW: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Tokens (B,) by inverting the distribution at uniforms in [0, 1); NO_TOKEN where it is none,
    since logits were not finite.
    """
    steps = probs_BW.cumsum(dim=1, dtype=torch.float64)
    chosen = (steps <= uniforms_B[:, None] * steps[:, -1:]).sum(dim=1, keepdim=True)
    last = ((probs_BW > 0).sum(dim=1, keepdim=True) - 1).clamp_min(0)
    tokens_B = ids_BW.gather(1, torch.minimum(chosen, last)).squeeze(1)
    return tokens_B.masked_fill(~steps[:, -1].isfinite(), NO_TOKEN)


def _shifted(values: torch.Tensor, shift_B: torch.Tensor | None) -> torch.Tensor:
    return values.float() if shift_B is None else values.float() + shift_B[:, None]


def _seen(
    logits_BV: torch.Tensor,
    history: History,
    config: SamplingConfig,
    shift_B: torch.Tensor | None,
) -> torch.Tensor | None:
    """Penalised logits (B, L) of the tokens seen, in fp32; None where there is no penalty."""
    if config.repetition_penalty == 1.0:
        return None
    seen = _shifted(logits_BV.gather(1, history.tokens_BL), shift_B)
    return penalised(seen, config.repetition_penalty)


def _largest(
    logits_BV: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `width` largest logits (B, W) and their ids, in any order, without a sort of V.

    A token among the w largest lies in one of the w chunks with the largest maxima. The third
    result (B, 1) bounds from above the logits of all tokens that are left out.
    """
    rows, vocabulary = logits_BV.shape
    n_chunks = vocabulary // _CHUNK
    whole = n_chunks * _CHUNK
    strided = logits_BV[:, :whole].unflatten(1, (_CHUNK, n_chunks))  # chunk c: c, c + n, c + 2n, …
    maxima, chunks = strided.amax(dim=1).topk(width, dim=1)
    starts = torch.arange(0, whole, n_chunks, device=logits_BV.device)
    ids = (chunks[:, None, :] + starts[:, None]).flatten(1)
    if whole < vocabulary:
        rest = torch.arange(whole, vocabulary, device=logits_BV.device)
        ids = torch.cat((ids, rest.expand(rows, -1)), dim=1)
    values, found = logits_BV.gather(1, ids).topk(width, dim=1)
    bound = torch.maximum(values[:, -1:], maxima[:, -1:])
    return values, ids.gather(1, found), bound


def _all_kept(
    logits_BV: torch.Tensor,
    history: History,
    config: SamplingConfig,
    shift_B: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled logits and ids in falling order, −inf outside top-k. A token tied with the k-th is
    kept, as transformers does.
    """
    seen_BL = _seen(logits_BV, history, config, shift_B)
    logits = _shifted(logits_BV, shift_B)
    if seen_BL is not None:
        logits = logits.scatter(1, history.tokens_BL, seen_BL)
    logits = logits / config.temperature
    if not config.top_k or config.top_k >= logits.shape[1]:
        return logits.sort(dim=1, descending=True, stable=True)
    kth = logits.topk(config.top_k, dim=1).values[:, -1:]
    n_kept = int((logits >= kth).sum(dim=1).max())
    values, ids = logits.topk(n_kept, dim=1)
    return values.masked_fill(values < kth, float("-inf")), ids


def _probs(values_BW: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Top-p inside the top-k is the same distribution as over the whole vocabulary, since the
    tokens outside have probability zero by then.
    """
    probs = values_BW.softmax(dim=1)
    if config.top_p < 1.0:
        better = probs.cumsum(dim=1) - probs
        probs = probs.masked_fill(better >= config.top_p, 0.0)
        probs = probs / probs.sum(dim=1, keepdim=True)
    return probs


def until_end(drawn_BS: torch.Tensor, end_id: int) -> list[list[int] | None]:
    """Continuations without their end token and what follows; None for one that met NO_TOKEN."""
    rows = drawn_BS.tolist()
    ended = [row[: row.index(end_id)] if end_id in row else row for row in rows]
    return [None if NO_TOKEN in row else row for row in ended]


def is_last(drawn: torch.Tensor, end_id: int) -> torch.Tensor:
    """Whether tokens are the last of their rows."""
    return (drawn == end_id) | (drawn == NO_TOKEN)
