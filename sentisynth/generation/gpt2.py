"""The forward pass of GPT-2 models for decoding: weights laid out once, a preallocated cache.

B rows, H heads, S positions, D width of a head, E width of the model, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F

from sentisynth.errors import ModelError
from sentisynth.generation.cache import Cache
from sentisynth.generation.int8_steps import Int8Steps, has_kernels
from sentisynth.models.devices import working_dtype
from sentisynth.models.int8 import Int8Linear
from sentisynth.models.linear import FUSED, Linear

_ROWS_OF_UNEMBEDDING = {"cuda": 64}  # a multiple of it: odd ones shut cuBLAS's fast kernels out
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


class Decoder:
    """A GPT2LMHeadModel of which only weights are left."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        config = model.config
        check_config(config)
        body = model.transformer
        self.device = model.lm_head.weight.device
        self.dtype = working_dtype(dtype, self.device)
        self.positions, self._heads = config.n_positions, config.n_head
        self._width, self._epsilon = config.n_embd // config.n_head, config.layer_norm_epsilon
        self._wte, self._wpe = (_owned(x.weight, self.dtype) for x in (body.wte, body.wpe))
        self._blocks = [
            _Block(block.to(self.dtype), config.activation_function, self._width, dtype)
            for block in body.h
        ]
        norm = body.ln_f
        self._norm = (_owned(norm.weight, self.dtype), _owned(norm.bias, self.dtype))
        unembed_VE = model.lm_head.weight.detach().float()
        self._mean_E: torch.Tensor | None = None
        if self.dtype != torch.float32 or dtype == torch.int8:
            self._mean_E = unembed_VE.mean(dim=0)
            unembed_VE = unembed_VE - self._mean_E
        self._vocabulary = len(unembed_VE)
        n_more = -self._vocabulary % _ROWS_OF_UNEMBEDDING.get(self.device.type, 1)
        self._unembed = _laid_out(F.pad(unembed_VE, (0, 0, 0, n_more)), None, dtype)
        self._steps: Int8Steps | None = None
        if dtype == torch.int8 and has_kernels(config.activation_function):
            layers = [block.layers() for block in self._blocks]
            head = (self._norm, self._unembed, self._mean_E)
            self._steps = Int8Steps(config, self._wte, self._wpe, layers, head)

    @property
    def threads_share_steps(self) -> bool:
        """Whether `step` takes threads, which share the work on few rows."""
        return self._steps is not None

    def cache(self, n_rows: int, capacity: int) -> Cache:
        """An empty cache."""
        shape = (len(self._blocks), 2, n_rows, self._heads, capacity, self._width)
        views = self.device.type == "cpu" and self.dtype == torch.float32
        dtype = self.dtype if self._steps is None else torch.float16
        return Cache(torch.zeros(shape, dtype=dtype, device=self.device), views=views)

    @torch.inference_mode()
    def prefill(self, prompt: list[int]) -> tuple[Logits, Cache]:
        """Logits of one row after the prompt, and its cache."""
        cache = self.cache(1, len(prompt))
        tokens = torch.tensor([prompt], device=self.device)
        return self._forward(tokens, cache, self._wpe[: len(prompt)], None), cache

    @torch.inference_mode()
    def step(self, tokens_B: torch.Tensor, cache: Cache, threads: int = 1) -> Logits:
        """Logits (B, V) after one more token a row; its keys and values are kept.

        They are the first result plus the second, (B,) in fp32: in half precision, logits near
        −100, as GPT-2 has them, would be rounded to the half; the mean over the vocabulary is
        therefore kept apart, and what is rounded is small. The next step with the same cache may
        write over the first. So many threads share the work where `threads_share_steps`.
        """
        cache.grow()
        if self._steps is not None:
            return self._steps(tokens_B, cache, threads)
        return self._forward(tokens_B[:, None], cache, self._wpe[cache.length], None)

    @torch.inference_mode()
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
        unfilled_S, views = None, cache.views and position is None
        if position is not None or (not views and end < cache.both.shape[4]):
            last = end - 1 if position is None else position
            unfilled_S = torch.arange(cache.both.shape[4], device=x_NE.device) > last
        for both, block in zip(cache.both, self._blocks, strict=True):
            qkv = block.qkv(self._normed(x_NE, block.norm_1))
            qkv = qkv.view(b, s, 3, self._heads, self._width).permute(2, 0, 3, 1, 4)
            q, k, v = qkv[0], qkv[1], qkv[2]
            if position is None:
                both[..., cache.length : end, :] = qkv[1:]
            else:
                both.index_copy_(3, position, qkv[1:])
            if cache.length == 0 and position is None:  # a prompt
                out_BHSD = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
            else:
                read = both[..., :end, :] if views else both
                out_BHSD = attend(q, read[0], read[1], unfilled_S)
            x_NE = block.out(out_BHSD.transpose(1, 2).reshape(b * s, -1), residual=x_NE)
            hidden = block.up(self._normed(x_NE, block.norm_2))
            x_NE = block.down(hidden, residual=x_NE)
        if position is None:
            cache.length = end
        last_BE = self._normed(x_NE.view(b, s, -1)[:, -1], self._norm)
        shift_B = None if self._mean_E is None else last_BE.float() @ self._mean_E
        return self._unembed(last_BE)[:, : self._vocabulary], shift_B

    def _normed(self, x: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.layer_norm(x, (x.shape[-1],), *norm, eps=self._epsilon)


class _Block:
    def __init__(self, block: Any, activation: str, width: int, dtype: torch.dtype) -> None:
        self.norm_1, self.norm_2 = (
            (_owned(norm.weight), _owned(norm.bias)) for norm in (block.ln_1, block.ln_2)
        )
        attention = block.attn
        scales = torch.ones_like(attention.c_attn.bias)
        scales[: len(scales) // 3] = width**-0.5  # queries come scaled
        weight, bias = attention.c_attn.weight.T * scales[:, None], attention.c_attn.bias * scales
        self.qkv = _laid_out(weight, bias, dtype)
        out, up, down = attention.c_proj, block.mlp.c_fc, block.mlp.c_proj
        self.out = _laid_out(out.weight.T, out.bias, dtype)
        self.up = _laid_out(up.weight.T, up.bias, dtype, activation)
        self.down = _laid_out(down.weight.T, down.bias, dtype)

    def layers(self) -> tuple[Any, ...]:
        """In the order of a step."""
        return self.norm_1, self.qkv, self.out, self.norm_2, self.up, self.down


def _owned(parameter: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Its numbers, in one piece; they stay where they are if the parameter is given others."""
    return parameter.detach().to(dtype or parameter.dtype).contiguous()


def _laid_out(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    activation: str | None = None,
) -> Linear | Int8Linear:
    """A layer of weights (out, in) in the dtype."""
    if dtype == torch.int8:
        return Int8Linear(weight, bias, activation)
    return Linear(weight.to(dtype), bias, activation)


def attend(
    q_BH1D: torch.Tensor,
    keys_BHSD: torch.Tensor,
    values_BHSD: torch.Tensor,
    unfilled_S: torch.Tensor | None,
) -> torch.Tensor:
    """Attention (B, H, 1, D) of one scaled query a row; unfilled positions are left out.

    Plain products: kernels for long attention were four times slower at this on a CPU. The query
    is the left factor, which is the faster side.
    """
    b, h, s, d = keys_BHSD.shape
    q_N1D = q_BH1D.reshape(b * h, 1, d)
    scores_NS = torch.bmm(q_N1D, keys_BHSD.reshape(b * h, s, d).transpose(1, 2)).squeeze(1)
    if unfilled_S is not None:
        scores_NS = scores_NS.masked_fill(unfilled_S, float("-inf"))
    probs_NS = scores_NS.softmax(dim=1, dtype=torch.float32).to(values_BHSD.dtype)
    out_N1D = torch.bmm(probs_NS[:, None], values_BHSD.reshape(b * h, s, d))
    return out_N1D.view(b, h, 1, d)
