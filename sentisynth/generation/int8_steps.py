"""Decoding steps of GPT-2 models in 8 bits as one call of our own kernels each.

B rows, H heads, S positions, D width of a head, E width of the model, V vocabulary.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from sentisynth.generation.cache import Cache
from sentisynth.models.kernels import ACTIVATIONS, LinearArguments, address, called, library

_Pair = tuple[torch.Tensor, torch.Tensor]


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("norm_1", _Norm),
        ("qkv", LinearArguments),
        ("out", LinearArguments),
        ("norm_2", _Norm),
        ("up", LinearArguments),
        ("down", LinearArguments),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("epsilon", ctypes.c_double),
        ("wte", ctypes.c_void_p),
        ("wpe", ctypes.c_void_p),
        ("layer", ctypes.POINTER(_Layer)),
        ("norm", _Norm),
        ("unembed", LinearArguments),
        ("mean", ctypes.c_void_p),
    )


class _Cache(ctypes.Structure):
    _fields_ = (
        ("both", ctypes.c_void_p),
        ("of_layer", ctypes.c_int64),
        ("of_part", ctypes.c_int64),
        ("of_row", ctypes.c_int64),
        ("of_head", ctypes.c_int64),
        ("length", ctypes.c_int64),
    )


def has_kernels(activation: str) -> bool:
    """Whether a step of models with this activation can be one call here."""
    return library() is not None and activation in ACTIVATIONS


class Int8Steps:
    """`Decoder.step` of a model that is laid out in 8 bits; the cache is in fp16, as views.

    `layers` are, of each block, its first norm, `Int8Linear` of queries (scaled), keys and values,
    of the output, the second norm, and `Int8Linear` of both products of the MLP; `head` the last
    norm, the unembedding without the mean of its rows, and this mean (E,). Norms are pairs of
    weight and bias (E,), all in fp32 and in one piece.
    """

    def __init__(
        self,
        config: Any,
        wte_VE: torch.Tensor,
        wpe_SE: torch.Tensor,
        layers: Sequence[tuple[Any, ...]],
        head: tuple[Any, Any, Any],
    ) -> None:
        self._wpe_SE = wpe_SE
        self._kept = (wte_VE, layers, head)  # of what addresses are taken, too
        self._layers = (_Layer * len(layers))()
        for made, (norm_1, qkv, out, norm_2, up, down) in zip(self._layers, layers, strict=True):
            made.norm_1, made.norm_2 = _norm(norm_1), _norm(norm_2)
            made.qkv, made.out = qkv.arguments, out.arguments
            made.up, made.down = up.arguments, down.arguments
        norm, self._unembed, mean_E = head
        self._model = _Model(
            layers=len(layers),
            width=config.n_embd,
            heads=config.n_head,
            hidden=self._layers[0].up.n_out,
            epsilon=config.layer_norm_epsilon,
            wte=address(wte_VE),
            wpe=address(wpe_SE),
            layer=self._layers,
            norm=_norm(norm),
            unembed=self._unembed.arguments,
            mean=address(mean_E),
        )

    def __call__(self, tokens_B: torch.Tensor, cache: Cache, threads: int) -> _Pair:
        b, positions = len(tokens_B), len(self._wpe_SE)
        assert b == cache.both.shape[2]
        assert cache.length < min(positions, cache.both.shape[4])
        assert tokens_B.dtype == torch.int64
        assert cache.both.dtype == torch.float16
        if cache.logits is None:
            cache.logits = torch.empty(b, self._model.unembed.n_out)
        assert b <= len(cache.logits)  # kernels look at nothing
        logits_BV, shift_B = cache.logits[:b], torch.empty(b)
        tokens_B, (*strides, _, _) = tokens_B.contiguous(), cache.both.stride()
        kept = _Cache(address(cache.both), *strides, cache.length)
        called(
            "sentisynth_gpt2_step",
            ctypes.byref(self._model),
            address(tokens_B),
            ctypes.c_int64(b),
            ctypes.byref(kept),
            address(logits_BV),
            address(shift_B),
            ctypes.c_int64(threads),
        )
        cache.length += 1
        return logits_BV, shift_B


def _norm(pair: _Pair) -> _Norm:
    return _Norm(*map(address, pair))
