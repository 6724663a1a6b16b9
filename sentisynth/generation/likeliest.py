"""The likeliest of many tokens, after the repetition penalty, without a sort of the vocabulary.

B rows, V vocabulary, W likeliest tokens, L tokens seen so far (prompt included).
"""

from dataclasses import dataclass

import torch

from sentisynth.config.synthesis import SamplingConfig

CHUNK = 16  # tokens of which the largest logit is taken first


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


def likeliest(
    logits_BV: torch.Tensor,
    history: History,
    config: SamplingConfig,
    shift_B: torch.Tensor | None,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scaled logits and ids in falling order, of which the first `width` are the largest of all.

    Logits of tokens seen become −inf in `logits_BV`, and stand among the results. The third (B, 1)
    bounds the logits of all that are in no result from above.
    """
    seen_BL = seen_logits(logits_BV, history, config, shift_B)
    if seen_BL is not None:  # not by scatter_, which copies all of the logits twice on a CPU
        firsts_B = torch.arange(0, logits_BV.numel(), logits_BV.shape[1], device=logits_BV.device)
        seen = (history.tokens_BL + firsts_B[:, None]).flatten()
        logits_BV.view(-1).index_fill_(0, seen, float("-inf"))
    largest_BW, ids_BW, bound_B1 = _largest(logits_BV, width)
    values, beyond = (shifted(x, shift_B) / config.temperature for x in (largest_BW, bound_B1))
    if seen_BL is not None:
        values = torch.cat((values, _once(seen_BL, history, config)), dim=1)
        ids_BW = torch.cat((ids_BW, history.tokens_BL), dim=1)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values, ids_BW.gather(1, order), beyond


def log_mass(
    logits_BV: torch.Tensor,
    seen_BL: torch.Tensor | None,
    history: History,
    config: SamplingConfig,
    shift_B: torch.Tensor | None,
) -> torch.Tensor:
    """Ln Σ exp of all scaled logits, (B, 1), once `likeliest` has taken those of tokens seen out;
    `seen_BL` are these.
    """
    mass_B = (logits_BV.float() / config.temperature).logsumexp(dim=1)
    if shift_B is not None:
        mass_B = mass_B + shift_B / config.temperature
    if seen_BL is not None:
        mass_B = torch.logaddexp(mass_B, _once(seen_BL, history, config).logsumexp(dim=1))
    return mass_B[:, None]


def _once(seen_BL: torch.Tensor, history: History, config: SamplingConfig) -> torch.Tensor:
    return (seen_BL / config.temperature).masked_fill(history.repeated_BL, float("-inf"))


def shifted(values: torch.Tensor, shift_B: torch.Tensor | None) -> torch.Tensor:
    return values.float() if shift_B is None else values.float() + shift_B[:, None]


def seen_logits(
    logits_BV: torch.Tensor,
    history: History,
    config: SamplingConfig,
    shift_B: torch.Tensor | None,
) -> torch.Tensor | None:
    """Penalised logits (B, L) of the tokens seen, in fp32; None where there is no penalty."""
    if config.repetition_penalty == 1.0:
        return None
    seen = shifted(logits_BV.gather(1, history.tokens_BL), shift_B)
    return penalised(seen, config.repetition_penalty)


def _largest(
    logits_BV: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `width` largest logits (B, W) and their ids, in any order, without a sort of V.

    A token among the w largest lies in one of the w chunks with the largest maxima. The third
    result (B, 1) bounds from above the logits of all tokens that are left out.
    """
    rows, vocabulary = logits_BV.shape
    n_chunks = vocabulary // CHUNK
    whole = n_chunks * CHUNK
    strided = logits_BV[:, :whole].unflatten(1, (CHUNK, n_chunks))  # chunk c: c, c + n, c + 2n, …
    maxima, chunks = strided.amax(dim=1).topk(width, dim=1)
    starts = torch.arange(0, whole, n_chunks, device=logits_BV.device)
    ids = (chunks[:, None, :] + starts[:, None]).flatten(1)
    if whole < vocabulary:
        rest = torch.arange(whole, vocabulary, device=logits_BV.device)
        ids = torch.cat((ids, rest.expand(rows, -1)), dim=1)
    values, found = logits_BV.gather(1, ids).topk(width, dim=1)
    bound = torch.maximum(values[:, -1:], maxima[:, -1:])
    return values, ids.gather(1, found), bound
