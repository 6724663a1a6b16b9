"""Linear layers in 8 bits, for inference on CPUs that multiply bytes (VNNI, AMX).

Such a CPU multiplies bytes some three times faster than fp32, and a weight takes a quarter of the
time to read. What is lost is rounding: meant for models whose output is judged afterwards.
"""

import torch
from torch import nn

from sentisynth.models.linear import activated

_LARGEST = 127


class Int8Linear(nn.Module):
    """y = activation(x Wᵀ + b) + residual; x, b and y in fp32, the products in 8 bits.

    Each row of W, and each row of x as it comes, is scaled so that its largest magnitude is 127,
    and rounded; sums are exact, in int32 (vector-wise quantization: Dettmers et al., "LLM.int8()",
    2022, section 3.1). So a row's y does not depend on the rows beside it. Shapes: W (out, in),
    x (rows, in). `activation` is a name of transformers, or None.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None = None
    ) -> None:
        super().__init__()
        with torch.inference_mode(False), torch.no_grad():
            weight = weight.detach().float().clone(memory_format=torch.contiguous_format)
            self._scale = _scale(weight).squeeze(1)
            rounded = (weight / self._scale[:, None]).round().to(torch.int8)
            self._zero = torch.zeros(len(weight), dtype=torch.int32)
            self._weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._bias = None if bias is None else bias.detach().float()
        self._activation = activation

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        scale = _scale(x)
        rounded = (x / scale).round_().to(torch.int8)
        bytes_ = rounded.view(torch.uint8).bitwise_xor_(128)  # 128 is zero: kernels want no sign
        y = self.product(bytes_)
        y = y.mul_(scale) if self._bias is None else torch.addcmul(self._bias, y, scale)
        y = activated(y, self._activation)
        return y if residual is None else y.add_(residual)

    def product(self, bytes_: torch.Tensor) -> torch.Tensor:
        """(rows, out) in fp32 from uint8 (rows, in), of which 128 is zero, and W."""
        found: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            bytes_, 1.0, 128, self._weight, self._scale, self._zero, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        return found


def _scale(x: torch.Tensor) -> torch.Tensor:
    """(rows, 1): what the largest magnitude of each row is divided by to be 127; never zero."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    return largest.clamp_min(torch.finfo(torch.float32).tiny * _LARGEST).div_(_LARGEST)
