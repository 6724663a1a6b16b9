"""Linear layers for inference: the weight is laid out once for the kernels of its device.

On a CPU, oneDNN multiplies fastest with weights in blocks of its own; a plain weight is brought
into that layout again in every call. Its activation and the addition of a residual ride along.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

_GELU_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # three names of one function
_GELU = ("gelu", "gelu_python")
FUSED = (*_GELU, *_GELU_TANH, "relu")
_ROWS = 256  # the layout depends on a number of rows; any other number works with it, too


class Linear(nn.Module):
    """y = activation(x Wᵀ + b) + residual; x is cast to the type of the weight. Inference only.

    `activation` is a name of transformers, or None. Shapes: W (out, in), x (..., in).
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None = None
    ) -> None:
        super().__init__()
        self.dtype = weight.dtype
        self._bias = None if bias is None else bias.detach().to(weight)
        if activation not in (None, *FUSED):
            raise ValueError(f"the activation {activation!r} cannot be fused")
        self._activation = activation
        self._is_packed = weight.device.type == "cpu" and _multiplies(weight.dtype)
        self._weight = weight.detach().contiguous()
        if self._is_packed:
            with torch.inference_mode(False), torch.no_grad():
                own = self._weight.clone()  # a tensor of inference mode cannot be packed
                self._weight = torch.ops.mkldnn._reorder_linear_weight(own, _ROWS)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        x, name = x.to(self.dtype), self._activation
        if not self._is_packed:
            y = F.linear(x, self._weight, self._bias)
            if name is not None:
                kind = "tanh" if name in _GELU_TANH else "none"
                y = F.relu(y) if name == "relu" else F.gelu(y, approximate=kind)
        elif name is None and residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self._weight, self._bias, "add"
            )
        else:
            fused = "none" if name is None else "relu" if name == "relu" else "gelu"
            kind = "" if fused != "gelu" else "tanh" if name in _GELU_TANH else "none"
            y = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, fused, [], kind)
        return y if residual is None else y + residual


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes matrices of this type on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def is_linear(module: object) -> bool:
    """Whether `linear_of` takes this layer."""
    return type(module) in (nn.Linear, Conv1D)


def linear_of(module: Any, activation: str | None = None) -> Linear:
    """The same layer from torch's Linear or transformers' Conv1D, whose weight is (in, out)."""
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    return Linear(weight, module.bias, activation)
