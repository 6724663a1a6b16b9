"""Decoding on a GPU: a step is recorded once as a CUDA graph and replayed.

A step of a small model is some 200 small kernels; launched one by one, they take longer to launch
than to run. A recorded step has fixed shapes and addresses: buffers for the whole unit are made
once, the position is a number on the device, and nothing waits for the device between the steps.
Rows that have ended leave in steps of a quarter or so of the batch, by a rule of the unit alone.
"""

from collections.abc import Callable
from typing import Any

import torch

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.generation.cache import Cache
from sentisynth.generation.gpt2 import Decoder, Logits
from sentisynth.generation.likeliest import History
from sentisynth.generation.sampling import (
    draw,
    is_last,
    is_short,
    short_distribution,
    until_end,
)

POSITIONS = 32  # attention reads whole blocks of so many positions
_LOOK_EVERY = 8  # steps between looks at which rows have ended
_ROWS = 8  # batches are multiples of it


class GraphedSteps:
    """Runs units of one shape after the other. `record` is False where there are no graphs.

    There is room for prompts of up to `longest_prompt` tokens from the first unit on: prompts that
    take turns would else have everything made and recorded anew for each unit.
    """

    def __init__(
        self, decoder: Decoder, end_id: int, *, longest_prompt: int = 0, record: bool = True
    ) -> None:
        self._decoder, self._end_id, self._record = decoder, end_id, record
        self._longest_prompt = longest_prompt
        self._state: _State | None = None
        self._steps: dict[tuple[int, int], Callable[[], None]] = {}
        self._key: Any = None

    @torch.inference_mode()
    def __call__(
        self,
        prompt: list[int],
        logits: Logits,
        prefix: Cache,
        uniforms_BS: torch.Tensor,
        sampling: SamplingConfig,
    ) -> list[list[int] | None] | None:
        """Continuations of the prompt, one for each row of uniforms (B, steps).

        None where the recorded sampler cannot do it: a small vocabulary, a large top-k, or more
        tokens tied with the k-th than it has room for.
        """
        if not is_short(logits[0].shape[1], sampling):
            return None
        n_rows, steps = uniforms_BS.shape
        blocks = -(-(max(len(prompt), self._longest_prompt) + steps) // POSITIONS)
        key = (n_rows, blocks, steps, sampling)
        if self._state is None or key != self._key:
            self._state, self._steps, self._key = None, {}, key
            self._state = _State(self._decoder, n_rows, blocks * POSITIONS, steps)
        state = self._state
        state.begin(prompt, logits, prefix, uniforms_BS)
        drawn_BS = torch.full_like(state.drawn_BS, self._end_id)
        rows = torch.arange(n_rows, device=uniforms_BS.device)  # where in drawn_BS a row belongs
        size, sizes = n_rows, batch_sizes(n_rows)
        for step in range(steps):
            width = -(-(len(prompt) + step + 1) // POSITIONS) * POSITIONS
            self._step(size, width, sampling)
            if (step + 1) % _LOOK_EVERY and step + 1 < steps:
                continue
            drawn_BS[rows] = state.drawn_BS[: len(rows)]
            ended = is_last(drawn_BS[rows, : step + 1], self._end_id).any(dim=1)
            alive = (~ended).nonzero().squeeze(1)
            if len(alive) == 0:
                break
            smaller = min(n for n in sizes if n >= len(alive))
            if smaller < size:
                state.keep(alive)
                rows, size = rows[alive], smaller
        if state.overflow:
            self._state, self._steps = None, {}  # whoever does it instead needs the memory
            return None
        return until_end(drawn_BS, self._end_id)

    def _step(self, size: int, width: int, sampling: SamplingConfig) -> None:
        """One step of the first `size` rows. The first of its shape runs as it is, which also
        readies the libraries, and is then recorded.
        """
        known = self._steps.get((size, width))
        if known is not None:
            known()
            return
        state = self._state
        assert state is not None
        state.step(self._decoder, size, width, sampling)
        if self._record:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=state.memory):  # nothing in it outlives a step
                state.step(self._decoder, size, width, sampling)
            self._steps[size, width] = graph.replay


class _State:
    """Everything that a step reads and writes, at fixed addresses."""

    def __init__(self, decoder: Decoder, n_rows: int, capacity: int, steps: int) -> None:
        device = decoder.device
        self.cache = decoder.cache(n_rows, capacity)
        self.history = History.begin([0], n_rows, capacity, device)
        self.uniforms_BS = torch.zeros((n_rows, steps), dtype=torch.float64, device=device)
        self.drawn_BS = torch.zeros((n_rows, steps), dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.n_drawn = torch.zeros(1, dtype=torch.int64, device=device)
        self.overflow = torch.zeros((), dtype=torch.bool, device=device)
        self.memory = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.logits_BV: torch.Tensor | None = None
        self.shift_B: torch.Tensor | None = None

    def begin(
        self, prompt: list[int], logits: Logits, prefix: Cache, uniforms_BS: torch.Tensor
    ) -> None:
        n_rows = len(uniforms_BS)
        self.cache.fill(prefix)
        fresh = History.begin(prompt, n_rows, self.history.tokens_BL.shape[1], uniforms_BS.device)
        self.history.tokens_BL.copy_(fresh.tokens_BL)
        self.history.repeated_BL.copy_(fresh.repeated_BL)
        self.uniforms_BS.copy_(uniforms_BS)
        self.position.fill_(len(prompt))
        self.n_drawn.zero_()
        self.overflow.zero_()
        if self.logits_BV is None:
            self.logits_BV = logits[0].repeat(n_rows, 1)
            self.shift_B = None if logits[1] is None else logits[1].repeat(n_rows)
        self.logits_BV.copy_(logits[0].expand(n_rows, -1))
        if self.shift_B is not None and logits[1] is not None:
            self.shift_B.copy_(logits[1].expand(n_rows))

    def step(self, decoder: Decoder, size: int, width: int, sampling: SamplingConfig) -> None:
        assert self.logits_BV is not None
        logits_BV = self.logits_BV[:size]
        shift_B = None if self.shift_B is None else self.shift_B[:size]
        history = History(self.history.tokens_BL[:size], self.history.repeated_BL[:size])
        probs, ids, overflow = short_distribution(logits_BV, history, sampling, shift_B)
        self.overflow.logical_or_(overflow)
        uniforms_B = self.uniforms_BS[:size].index_select(1, self.n_drawn).squeeze(1)
        drawn_B = draw(probs, ids, uniforms_B)
        self.drawn_BS[:size].index_copy_(1, self.n_drawn, drawn_B[:, None])
        drawn_B = drawn_B.clamp_min(0)  # of a row without a token, what goes on is not read
        history.add(drawn_B, self.position)
        view = self.cache.first(size, width)
        logits, shift = decoder.step_at(drawn_B, view, self.position)
        logits_BV.copy_(logits)
        if shift_B is not None and shift is not None:
            shift_B.copy_(shift)
        self.position.add_(1)
        self.n_drawn.add_(1)

    def keep(self, rows: torch.Tensor) -> None:
        """Move these rows to the front; what stands behind them goes on unread."""
        n, history = len(rows), self.history
        buffers = [history.tokens_BL, history.repeated_BL, self.uniforms_BS, self.drawn_BS]
        buffers += [x for x in (self.logits_BV, self.shift_B) if x is not None]
        for buffer in buffers:
            buffer[:n] = buffer[rows]
        for both in self.cache.both:  # one layer at a time: a copy of all takes memory
            both[:, :n] = both[:, rows]


def batch_sizes(n_rows: int) -> list[int]:
    """Sizes that a batch may shrink to: n, 3/4 n, 1/2 n, 3/8 n, …, each a multiple of eight."""
    sizes, size = {n_rows}, n_rows
    while size > _ROWS:
        sizes |= {_rounded(3 * size / 4), _rounded(size / 2)}
        size //= 2
    return sorted(size for size in sizes if size <= n_rows)


def _rounded(size: float) -> int:
    return max(_ROWS, -(-int(size) // _ROWS) * _ROWS)
