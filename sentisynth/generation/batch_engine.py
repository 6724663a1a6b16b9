"""Our engine for GPT-2 models: a unit as one batch of fixed shape.

The prompt is computed once for all rows, keys and values lie in one piece, the sampler sorts the
vocabulary only where top-k is off or large, and rows that have ended leave the batch. On a GPU the
steps are recorded and replayed (`graphs`); on a CPU each thread has rows of its own, since a step
is many small operations and threads that meet after each of them wait for the slowest. Of few rows
they share each step, where it is one call of our kernels.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.data.units import Unit
from sentisynth.errors import ModelError
from sentisynth.generation.cache import Cache
from sentisynth.generation.gpt2 import Decoder, Logits
from sentisynth.generation.graphs import GraphedSteps
from sentisynth.generation.likeliest import History
from sentisynth.generation.sampling import distribution, draw, is_last, until_end
from sentisynth.seeding import candidate_uniforms

_SHRINK_AT = 0.75  # rows leave once this share or less of the batch is alive: copies stay rare
_LEAST_ROWS_A_THREAD = 32


class BatchEngine:
    """Draws candidate i's token at step s with the uniform keyed by (seed, label, i, s).

    `longest_prompt` is that of the units to come, if it is known: see `GraphedSteps`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        longest_prompt: int = 0,
    ) -> None:
        self._decoder = Decoder(model, dtype)
        self._eos_id = tokenizer.eos_token_id
        self._threads = torch.get_num_threads()
        self._graphs: GraphedSteps | None = None
        self._shares_steps = self._decoder.threads_share_steps and self._threads > 1
        if self._decoder.device.type == "cuda":
            self._graphs = GraphedSteps(self._decoder, self._eos_id, longest_prompt=longest_prompt)
        elif self._threads > 1:
            self._workers = ThreadPoolExecutor(
                self._threads, "generate", initializer=torch.set_num_threads, initargs=(1,)
            )

    @torch.inference_mode()
    def __call__(
        self, prompt: list[int], unit: Unit, seed: int, sampling: SamplingConfig
    ) -> list[list[int] | None]:
        decoder = self._decoder
        steps = min(sampling.max_new_tokens, decoder.positions - len(prompt))
        if steps < 1:
            raise ModelError(
                f"a prompt of {len(prompt)} tokens fills {decoder.positions} positions"
            )
        uniforms = candidate_uniforms(seed, unit.label, unit.first_index, unit.size, steps)
        uniforms_BS = torch.from_numpy(uniforms).to(decoder.device)
        logits, prefix = decoder.prefill(prompt)
        if self._graphs is not None:
            rows = self._graphs(prompt, logits, prefix, uniforms_BS, sampling)
            if rows is not None:
                return rows
        parts = uniforms_BS.chunk(min(self._threads, max(1, unit.size // _LEAST_ROWS_A_THREAD)))
        if self._graphs is not None or (len(parts) == 1 and not self._shares_steps):
            return self._rows(prompt, logits, prefix, uniforms_BS, sampling)
        shares = [len(x) for x in torch.arange(self._threads).tensor_split(len(parts))]
        tasks = [
            self._workers.submit(self._rows, prompt, logits, prefix, part, sampling, threads)
            for part, threads in zip(parts, shares, strict=True)
        ]
        return [row for task in tasks for row in task.result()]

    @torch.inference_mode()
    def _rows(
        self,
        prompt: list[int],
        logits: Logits,
        prefix: Cache,
        uniforms_BS: torch.Tensor,
        sampling: SamplingConfig,
        threads: int = 1,
    ) -> list[list[int] | None]:
        """Continuations of the prompt, one for each row of uniforms; so many threads share a step,
        where steps can be shared.
        """
        n_rows, steps = uniforms_BS.shape
        device = uniforms_BS.device
        cache = prefix.spread(n_rows, len(prompt) + steps)
        history = History.begin(prompt, n_rows, len(prompt) + steps, device)
        drawn_BS = torch.full((n_rows, steps), self._eos_id, device=device)
        rows = torch.arange(n_rows, device=device)  # where in drawn_BS a row belongs
        logits_BV = logits[0].repeat(n_rows, 1)
        shift_B = None if logits[1] is None else logits[1].repeat(n_rows)
        for step in range(steps):
            position = len(prompt) + step
            probs = distribution(logits_BV, history.until(position), sampling, shift_B)
            drawn_B = draw(*probs, uniforms_BS[rows, step])
            drawn_BS[rows, step] = drawn_B
            if step + 1 == steps:
                break
            ended = is_last(drawn_BS[rows, : step + 1], self._eos_id).any(dim=1)
            alive = (~ended).nonzero().squeeze(1)
            if len(alive) == 0:
                break
            drawn_B = drawn_B.clamp_min(0)  # of a row without a token, what goes on is not read
            history.add(drawn_B, torch.tensor([position], device=device))
            if len(alive) <= _SHRINK_AT * len(rows):
                rows, drawn_B, history = rows[alive], drawn_B[alive], history.of(alive)
                cache.keep(alive)
            logits_BV, shift_B = self._decoder.step(drawn_B, cache, threads)
        return until_end(drawn_BS, self._eos_id)
