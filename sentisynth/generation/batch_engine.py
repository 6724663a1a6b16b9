"""Our engine for GPT-2 models: a unit as one batch of fixed shape.

The prompt is computed once for all rows, keys and values live in buffers made once a unit, the
sampler never sorts the vocabulary, and rows that have ended leave the batch. Axes: B rows, H heads,
S positions, D width of a head, E width of the model, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sentisynth.config.types import SamplingConfig
from sentisynth.data.units import Unit
from sentisynth.errors import ModelError
from sentisynth.generation.sampling import sample, until_end
from sentisynth.seeding import candidate_uniforms

_SHRINK_AT = 0.75  # rows leave once this share or less of the batch is alive: copies stay rare


def check_config(config: Any) -> None:
    """Raise ModelError unless the engine runs models of this configuration."""
    remedy = "set synthesis.engine=transformers"
    if config.model_type != "gpt2":
        raise ModelError(
            f"synthesis.engine=batch runs gpt2 models; this one is {config.model_type}: {remedy}"
        )
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        raise ModelError(
            f"synthesis.engine=batch does not scale attention as this model asks for; {remedy}"
        )
    _activation(config.activation_function)


class _Cache:
    """Keys and values of every layer, (layers, B, H, S, D) each."""

    def __init__(self, shape: tuple[int, ...], like: torch.Tensor) -> None:
        self.keys = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def spread(self, n_rows: int, capacity: int) -> "_Cache":
        """The same prefix for n rows, with room for `capacity` positions."""
        layers, _, heads, _, width = self.keys.shape
        wide = _Cache((layers, n_rows, heads, capacity, width), self.keys)
        wide.keys[:, :, :, : self.length] = self.keys[:, :, :, : self.length]
        wide.values[:, :, :, : self.length] = self.values[:, :, :, : self.length]
        wide.length = self.length
        return wide

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows go on."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


class BatchEngine:
    """Draws candidate i's token at step s with the uniform keyed by (seed, label, i, s)."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
    ) -> None:
        config = model.config
        check_config(config)
        self._body = model.transformer.to(dtype)
        self._unembed_VE = model.lm_head.weight.to(dtype)
        self._activation = _activation(config.activation_function)
        self._heads, self._positions = config.n_head, config.n_positions
        self._eos_id = tokenizer.eos_token_id

    @torch.inference_mode()
    def __call__(
        self, prompt: list[int], unit: Unit, seed: int, sampling: SamplingConfig
    ) -> list[list[int]]:
        steps = min(sampling.max_new_tokens, self._positions - len(prompt))
        if steps < 1:
            raise ModelError(f"a prompt of {len(prompt)} tokens fills {self._positions} positions")
        device = self._unembed_VE.device
        uniforms = candidate_uniforms(seed, unit.label, unit.first_index, unit.size, steps)
        uniforms_BS = torch.from_numpy(uniforms).to(device)
        tokens_BS = torch.full((unit.size, len(prompt) + steps), self._eos_id, device=device)
        tokens_BS[:, : len(prompt)] = torch.tensor(prompt, device=device)

        logits, cache = self._prefill(tokens_BS[:1, : len(prompt)])
        cache = cache.spread(unit.size, len(prompt) + steps)
        logits_BV = logits.expand(unit.size, -1).clone()
        rows = torch.arange(unit.size, device=device)  # where in the unit a row of the batch is
        ended = torch.zeros(unit.size, dtype=torch.bool, device=device)
        for step in range(steps):
            position = len(prompt) + step
            drawn = sample(logits_BV, tokens_BS[rows, :position], uniforms_BS[rows, step], sampling)
            drawn = torch.where(ended, self._eos_id, drawn)
            tokens_BS[rows, position] = drawn
            ended = ended | (drawn == self._eos_id)
            alive = (~ended).nonzero().squeeze(1)
            if len(alive) == 0:
                break
            if len(alive) <= _SHRINK_AT * len(rows):
                rows, drawn, ended = rows[alive], drawn[alive], ended[alive]
                cache.keep(alive)
            if step + 1 < steps:
                logits_BV = self._step(drawn[:, None], cache)
        return [until_end(row, self._eos_id) for row in tokens_BS[:, len(prompt) :].tolist()]

    def _prefill(self, prompt_1S: torch.Tensor) -> tuple[torch.Tensor, _Cache]:
        layers, width = len(self._body.h), self._unembed_VE.shape[1]
        shape = (layers, 1, self._heads, prompt_1S.shape[1], width // self._heads)
        cache = _Cache(shape, self._unembed_VE)
        return self._step(prompt_1S, cache), cache

    def _step(self, tokens_BS: torch.Tensor, cache: _Cache) -> torch.Tensor:
        """fp32 logits (B, V) after the last of S new tokens; their keys and values are kept."""
        body, start, n_new = self._body, cache.length, tokens_BS.shape[1]
        x_BSE = body.wte(tokens_BS) + body.wpe.weight[start : start + n_new]
        cache.length = start + n_new
        for layer, block in enumerate(body.h):
            x_BSE = x_BSE + self._attend(block, block.ln_1(x_BSE), cache, layer, start)
            hidden = self._activation(_linear(block.ln_2(x_BSE), block.mlp.c_fc))
            x_BSE = x_BSE + _linear(hidden, block.mlp.c_proj)
        return (body.ln_f(x_BSE[:, -1]) @ self._unembed_VE.T).float()

    def _attend(
        self, block: Any, x_BSE: torch.Tensor, cache: _Cache, layer: int, start: int
    ) -> torch.Tensor:
        b, s, e = x_BSE.shape
        qkv = _linear(x_BSE, block.attn.c_attn).view(b, s, 3, self._heads, e // self._heads)
        q_BHSD, k_BHSD, v_BHSD = qkv.permute(2, 0, 3, 1, 4)
        cache.keys[layer, :, :, start : start + s] = k_BHSD
        cache.values[layer, :, :, start : start + s] = v_BHSD
        out_BHSD = F.scaled_dot_product_attention(
            q_BHSD,
            cache.keys[layer, :, :, : start + s],
            cache.values[layer, :, :, : start + s],
            is_causal=s > 1,
        )
        return _linear(out_BHSD.transpose(1, 2).reshape(b, s, e), block.attn.c_proj)


def _linear(x: torch.Tensor, conv1d: Any) -> torch.Tensor:
    """Transformers' Conv1D: weight (in, out)."""
    return torch.addmm(conv1d.bias, x.reshape(-1, x.shape[-1]), conv1d.weight).view(
        *x.shape[:-1], -1
    )


def _activation(name: str) -> nn.Module:
    if name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):  # three names of one function
        return nn.GELU(approximate="tanh")
    if name in ("gelu", "relu"):
        return nn.GELU() if name == "gelu" else nn.ReLU()
    raise ModelError(
        f"synthesis.engine=batch does not know the activation {name!r}; "
        f"set synthesis.engine=transformers"
    )
