"""The forward pass of GPT-2 models for decoding: weights laid out once, a preallocated cache.

B rows, H heads, S positions, D width of a head, E width of the model, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F

from sentisynth.errors import ModelError
from sentisynth.models.linear import FUSED, Linear, linear_of

Logits = tuple[torch.Tensor, torch.Tensor | None]


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
    if config.activation_function not in FUSED:
        raise ModelError(
            f"synthesis.engine=batch does not know the activation "
            f"{config.activation_function!r}; {remedy}"
        )


class Cache:
    """Keys and values of every layer, (layers, B, H, S, D) each, of which `length` are filled."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor) -> "Cache":
        """A cache on these tensors."""
        cache = cls.__new__(cls)
        cache.keys, cache.values, cache.length = keys, values, 0
        return cache

    def fill(self, prefix: "Cache") -> None:
        """Begin with the same prefix, of one row, in all rows."""
        self.length = prefix.length
        self.keys[:, :, :, : self.length] = prefix.keys[:, :, :, : self.length]
        self.values[:, :, :, : self.length] = prefix.values[:, :, :, : self.length]

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows go on."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


class Decoder:
    """A GPT2LMHeadModel of which only weights are left."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        config = model.config
        check_config(config)
        body = model.transformer
        self.dtype, self.device = dtype, model.lm_head.weight.device
        self.positions, self._heads = config.n_positions, config.n_head
        self._width, self._epsilon = config.n_embd // config.n_head, config.layer_norm_epsilon
        self._wte, self._wpe = body.wte.weight.to(dtype), body.wpe.weight.to(dtype)
        self._blocks = [_Block(block.to(dtype), config.activation_function) for block in body.h]
        self._norm = (body.ln_f.weight.to(dtype), body.ln_f.bias.to(dtype))
        unembed_VE = model.lm_head.weight.detach().float()
        self._mean_E: torch.Tensor | None = None
        if dtype != torch.float32:
            self._mean_E = unembed_VE.mean(dim=0)
            unembed_VE = unembed_VE - self._mean_E
        self._unembed = Linear(unembed_VE.to(dtype), None)

    def cache(self, n_rows: int, capacity: int) -> Cache:
        """An empty cache."""
        shape = (len(self._blocks), n_rows, self._heads, capacity, self._width)
        return Cache(shape, self.dtype, self.device)

    def cache_bytes(self, capacity: int) -> int:
        """Memory of one row's cache."""
        values = 2 * len(self._blocks) * self._heads * self._width * capacity
        return values * self.dtype.itemsize

    def prefill(self, prompt: list[int]) -> tuple[Logits, Cache]:
        """Logits of one row after the prompt, and its cache."""
        cache = self.cache(1, len(prompt))
        tokens = torch.tensor([prompt], device=self.device)
        return self._forward(tokens, cache, self._wpe[: len(prompt)], None), cache

    def step(self, tokens_B: torch.Tensor, cache: Cache) -> Logits:
        """Logits (B, V) after one more token a row; its keys and values are kept.

        They are the first result plus the second, (B,) in fp32: in half precision, logits near
        −100, as GPT-2 has them, would be rounded to the half; the mean over the vocabulary is
        therefore kept apart, and what is rounded is small.
        """
        return self._forward(tokens_B[:, None], cache, self._wpe[cache.length], None)

    def step_at(self, tokens_B: torch.Tensor, cache: Cache, position: torch.Tensor) -> Logits:
        """`step` with the position as an int64 tensor of one element: all shapes stay the same, so
        that it can be recorded once and replayed. `cache.length` is not used.
        """
        return self._forward(tokens_B[:, None], cache, self._wpe[position], position)

    def _forward(
        self,
        tokens_BS: torch.Tensor,
        cache: Cache,
        positions_SE: torch.Tensor,
        position: torch.Tensor | None,
    ) -> Logits:
        b, s = tokens_BS.shape
        x_NE = (F.embedding(tokens_BS, self._wte) + positions_SE).view(b * s, -1)
        end = cache.length + s
        unfilled_S = None
        if position is not None:
            unfilled_S = torch.arange(cache.keys.shape[3], device=x_NE.device) > position
        for layer, block in enumerate(self._blocks):
            qkv = block.qkv(self._normed(x_NE, block.norm_1))
            q, k, v = qkv.view(b, s, 3, self._heads, self._width).permute(2, 0, 3, 1, 4)
            keys, values = cache.keys[layer], cache.values[layer]
            if position is None:
                keys[:, :, cache.length : end], values[:, :, cache.length : end] = k, v
                keys, values = keys[:, :, :end], values[:, :, :end]
            else:
                keys.index_copy_(2, position, k)
                values.index_copy_(2, position, v)
            out_BHSD = attend(q, keys, values, unfilled_S)
            x_NE = block.out(out_BHSD.transpose(1, 2).reshape(b * s, -1), residual=x_NE)
            hidden = block.up(self._normed(x_NE, block.norm_2))
            x_NE = block.down(hidden, residual=x_NE)
        if position is None:
            cache.length = end
        last_BE = self._normed(x_NE.view(b, s, -1)[:, -1], self._norm)
        shift_B = None if self._mean_E is None else last_BE.float() @ self._mean_E
        return self._unembed(last_BE), shift_B

    def _normed(self, x: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.layer_norm(x, (x.shape[-1],), *norm, eps=self._epsilon)


class _Block:
    def __init__(self, block: Any, activation: str) -> None:
        self.norm_1 = (block.ln_1.weight, block.ln_1.bias)
        self.norm_2 = (block.ln_2.weight, block.ln_2.bias)
        self.qkv, self.out = linear_of(block.attn.c_attn), linear_of(block.attn.c_proj)
        self.up, self.down = linear_of(block.mlp.c_fc, activation), linear_of(block.mlp.c_proj)


def attend(
    q_BHQD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    unfilled_S: torch.Tensor | None,
) -> torch.Tensor:
    """Causal attention of the last Q of S positions; those that are not filled are left out."""
    mask = None if unfilled_S is None else ~unfilled_S[None, :]
    return F.scaled_dot_product_attention(
        q_BHQD, k_BHSD, v_BHSD, attn_mask=mask, is_causal=q_BHQD.shape[2] > 1
    )
