"""Linear layers for inference: the weight is laid out once for the kernels of its device.

On a CPU, oneDNN multiplies fastest with weights in blocks of its own; a plain weight is brought
into that layout again in every call. Its activation and the addition of a residual ride along.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sentisynth.models.deberta import DisentangledAttention, use_fast_attention

_GELU_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # three names of one function
_GELU = ("gelu", "gelu_python")
FUSED = (*_GELU, *_GELU_TANH, "relu")
_LAID_OUT = (  # others may read the weights of their layers themselves
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "gpt2"),
    *("modernbert", "mpnet", "roberta", "xlm-roberta"),
)
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


def linear_of(module: Any, activation: str | None = None) -> Linear:
    """The same layer from torch's Linear or transformers' Conv1D, whose weight is (in, out)."""
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    return Linear(weight, module.bias, activation)


def lay_out(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Make a classifier ready for inference, in place: its body in `dtype`, its head in fp32.

    Linear layers of common models are laid out for the device they are on, and the GELU after a
    feed-forward layer's first half is fused with it. The model cannot be trained or saved then.
    """
    model.eval().requires_grad_(False)
    use_fast_attention(model)
    for parameter in model.base_model.parameters():  # not buffers: rotary frequencies stay fp32
        parameter.data = parameter.data.to(dtype)
    for module in model.base_model.modules():
        if isinstance(module, DisentangledAttention):
            module.to(dtype)
    if model.config.model_type not in _LAID_OUT:
        return _with_head_cast(model)
    for module in list(model.modules()):
        name = getattr(model.config, "hidden_act", getattr(model.config, "activation_function", ""))
        for first, act in (("dense", "intermediate_act_fn"), ("c_fc", "act")):
            layer, follows = getattr(module, first, None), getattr(module, act, None)
            if name in FUSED and _is_linear(layer) and isinstance(follows, nn.Module):
                setattr(module, first, linear_of(layer, name))
                setattr(module, act, nn.Identity())
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if _is_linear(child):
                setattr(module, name, linear_of(child))
    return model


def _with_head_cast(model: PreTrainedModel) -> PreTrainedModel:
    """Let the head take what the body gives, in fp32."""
    body = {id(module) for module in model.base_model.modules()}
    for name, child in list(model.named_children()):
        if type(child) is nn.Linear and id(child) not in body:
            setattr(model, name, linear_of(child))
        elif id(child) not in body:
            child.register_forward_pre_hook(lambda _, given: tuple(x.float() for x in given))
    return model


def _is_linear(module: object) -> bool:
    return type(module) in (nn.Linear, Conv1D)
