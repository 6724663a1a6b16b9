"""Linear layers in 8 bits, for inference on CPUs that multiply bytes (VNNI, AMX).

Such a CPU multiplies bytes some three times faster than fp32, and a weight takes a quarter of the
time to read. What is lost is rounding: meant for models whose output is judged afterwards.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import nn

from sentisynth.models.kernels import (
    ACTIVATIONS,
    BLOCK,
    LinearArguments,
    address,
    called,
    library,
)
from sentisynth.models.linear import activated

_LARGEST = 127


class Int8Linear(nn.Module):
    """y = activation(x Wᵀ + b) + residual; x, b and y in fp32, the products in 8 bits.

    Each row of W, and each row of x as it comes, is scaled so that its largest magnitude is 127,
    and rounded; sums are exact, in int32 (vector-wise quantization: Dettmers et al., "LLM.int8()",
    2022, section 3.1). So a row's y does not depend on the rows beside it. Shapes: W (out, in),
    x (rows, in). `activation` is a name of transformers, or None. By our own kernels where they
    are compiled, else by oneDNN.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None = None
    ) -> None:
        super().__init__()
        self.arguments = LinearArguments()
        """For kernels, where they multiply."""
        self._activation, self._out = activation, len(weight)
        self._onednn: _OneDnnProduct | None = None
        with torch.inference_mode(False), torch.no_grad():
            weight = weight.detach().float().clone(memory_format=torch.contiguous_format)
            bias = None if bias is None else bias.detach().float()
            scale = _scale(weight)
            rounded = (weight / scale).round().to(torch.int8)
            if library() is None:
                self._onednn = _OneDnnProduct(rounded, scale.squeeze(1), bias)
            else:
                self._lay_out(rounded, scale.squeeze(1), bias)

    def _lay_out(
        self, rounded: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        n_out, n_in = rounded.shape
        assert n_in < 2**17  # beyond, sums may need more than 32 bits
        more_out, more_in = -n_out % BLOCK, -n_in % 4
        blocks = F.pad(rounded, (0, more_in, 0, more_out)).unflatten(0, (-1, BLOCK))
        blocks = blocks.unflatten(2, (-1, 4)).transpose(1, 2).contiguous()
        bias = torch.zeros(n_out) if bias is None else bias
        self._kept = (
            blocks.view(torch.uint8).bitwise_xor_(128),  # 128 is zero
            F.pad(scale, (0, more_out)),
            F.pad(bias, (0, more_out)),
        )
        if self._activation in ACTIVATIONS:
            own, self._activation = ACTIVATIONS[self._activation], None
        else:
            own = ACTIVATIONS[None]
        self.arguments = LinearArguments(*map(address, self._kept), n_in, n_out, own)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if self._onednn is not None:
            y = activated(self._onednn(x), self._activation)
        elif self._activation is None:
            return self._by_kernels(x, residual)
        else:
            y = activated(self._by_kernels(x), self._activation)
        return y if residual is None else y.add_(residual)

    def _by_kernels(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        assert x.dim() == 2
        assert x.shape[1] == self.arguments.n_in
        assert x.dtype == torch.float32
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        y = x.new_empty(len(x), self._out)
        rows, threads = ctypes.c_int64(len(x)), ctypes.c_int64(torch.get_num_threads())
        arguments = (address(x), rows, address(residual), address(y), threads)
        called("sentisynth_linear", ctypes.byref(self.arguments), *arguments)
        return y


class _OneDnnProduct:
    """x Wᵀ + b by oneDNN."""

    def __init__(
        self, rounded: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        self._scale, self._bias = scale, bias
        self._zero = torch.zeros(len(rounded), dtype=torch.int32)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scale = _scale(x)
        rounded = (x / scale).round_().to(torch.int8)
        bytes_ = rounded.view(torch.uint8).bitwise_xor_(128)  # 128 is zero: kernels want no sign
        y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            bytes_, 1.0, 128, self._weight, self._scale, self._zero, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        return y.mul_(scale) if self._bias is None else torch.addcmul(self._bias, y, scale)


def _scale(x: torch.Tensor) -> torch.Tensor:
    """(rows, 1): what the largest magnitude of each row is divided by to be 127; never zero."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    return largest.clamp_min(torch.finfo(torch.float32).tiny * _LARGEST).div_(_LARGEST)
