"""Linear layers for inference: the weight is laid out once for the kernels of its device.

On a CPU, oneDNN multiplies fastest with weights in blocks of its own; a plain weight is brought
into that layout again in every call. Its activation and the addition of a residual ride along.

With few rows a product takes as long as its weight takes to read. A weight in fp16 is half as long
to read as one in fp32, and FBGEMM multiplies it with fp32 on CPUs that have no half precision.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from sentisynth.models.devices import working_dtype

_GELU_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # three names of one function
_GELU = ("gelu", "gelu_python")
FUSED = (*_GELU, *_GELU_TANH, "relu")
_ROOT = (2 / math.pi) ** 0.5  # Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2
_ROOT_TENSOR = torch.tensor(_ROOT)
_ROWS = 256  # the layout depends on a number of rows; any other number works with it, too
_FEW_ROWS = 32  # up to here FBGEMM with fp16 weights is faster than oneDNN with the same in fp32


class Linear(nn.Module):
    """y = activation(x Wᵀ + b) + residual; x is cast to the type of the weight. Inference only.

    `activation` is a name of transformers, or None. Shapes: W (out, in), x (..., in). On a CPU, a
    weight in fp16 is multiplied in fp32, and x and y are in fp32.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None = None
    ) -> None:
        super().__init__()
        self.dtype = working_dtype(weight.dtype, weight.device)
        is_half = self.dtype != weight.dtype
        weight = weight.detach().to(self.dtype)
        self._bias = None if bias is None else bias.detach().to(weight)
        if activation not in (None, *FUSED):
            raise ValueError(f"the activation {activation!r} cannot be fused")
        self._activation = activation
        self._is_packed = weight.device.type == "cpu" and _multiplies(weight.dtype)
        self._weight = weight.contiguous()
        self._few_rows: Any = None
        if is_half and _multiplies_half():
            self._few_rows = torch.ops.quantized.linear_prepack_fp16(self._weight, self._bias)
        if self._is_packed:
            with torch.inference_mode(False), torch.no_grad():
                own = self._weight.clone()  # a tensor of inference mode cannot be packed
                self._weight = torch.ops.mkldnn._reorder_linear_weight(own, _ROWS)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        x, name = x.to(self.dtype), self._activation
        is_few = self._few_rows is not None and x.numel() <= _FEW_ROWS * x.shape[-1]
        if is_few or not self._is_packed:
            if is_few:
                y = torch.ops.quantized.linear_dynamic_fp16(x, self._few_rows)
            else:
                y = F.linear(x, self._weight, self._bias)
            y = activated(y, name)
        elif name is None and residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self._weight, self._bias, "add"
            )
        else:
            fused = "none" if name is None else "relu" if name == "relu" else "gelu"
            kind = "" if name is None or fused != "gelu" else gelu_kind(name)
            y = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, fused, [], kind)
        return y if residual is None else y + residual


def activated(y: torch.Tensor, name: str | None) -> torch.Tensor:
    """An activation of `FUSED`, or none; y may be written over."""
    if name is None:
        return y
    if name == "relu":
        return y.relu_()
    if name in _GELU or y.device.type != "cpu":
        return F.gelu(y, approximate=gelu_kind(name))
    # torch's own takes five times as long on a CPU as the tanh in it
    inner = torch.addcmul(_ROOT_TENSOR, y, y, value=0.044715 * _ROOT).mul_(y).tanh_()
    y.mul_(0.5)
    return y.addcmul_(y, inner)


def gelu_kind(name: str) -> str:
    """What torch calls the GELU that transformers calls `name`."""
    return "tanh" if name in _GELU_TANH else "none"


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes matrices of this type on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _multiplies_half() -> bool:
    """Whether FBGEMM, which takes weights in fp16, does the work of torch's quantized ops."""
    return torch.backends.quantized.engine in ("x86", "fbgemm")


def is_linear(module: object) -> bool:
    """Whether `linear_of` takes this layer."""
    return type(module) in (nn.Linear, Conv1D)


def linear_of(module: Any, activation: str | None = None) -> Linear:
    """The same layer from torch's Linear or transformers' Conv1D, whose weight is (in, out)."""
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    return Linear(weight, module.bias, activation)
