"""Models made ready for inference: their weights cast, their layers laid out for the device."""

import torch
from torch import nn
from transformers import PreTrainedModel

from sentisynth.models.deberta import DisentangledAttention, use_fast_attention
from sentisynth.models.linear import FUSED, is_linear, linear_of

_LAID_OUT = (  # others may read the weights of their layers themselves
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "gpt2"),
    *("modernbert", "mpnet", "roberta", "xlm-roberta"),
)


def lay_out(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Make a classifier ready for inference, in place: its body in `dtype`, its head in fp32.

    Linear layers of common models are laid out for the device they are on, and the GELU after a
    feed-forward layer's first half is fused with it. The model cannot be trained or saved then.
    """
    model.eval().requires_grad_(False)
    use_fast_attention(model)
    cast_weights(model.base_model, dtype)
    for module in model.base_model.modules():
        if isinstance(module, DisentangledAttention):
            module.to(dtype)
    if model.config.model_type not in _LAID_OUT:
        return _with_head_cast(model)
    for module in list(model.modules()):
        name = getattr(model.config, "hidden_act", getattr(model.config, "activation_function", ""))
        for first, act in (("dense", "intermediate_act_fn"), ("c_fc", "act")):
            layer, follows = getattr(module, first, None), getattr(module, act, None)
            if name in FUSED and is_linear(layer) and isinstance(follows, nn.Module):
                setattr(module, first, linear_of(layer, name))
                setattr(module, act, nn.Identity())
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if is_linear(child):
                setattr(module, name, linear_of(child))
    return model


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters in place, but no buffers: rotary frequencies stay in fp32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _with_head_cast(model: PreTrainedModel) -> PreTrainedModel:
    """Let the head take what the body gives, in fp32."""
    body = {id(module) for module in model.base_model.modules()}
    for name, child in list(model.named_children()):
        if type(child) is nn.Linear and id(child) not in body:
            setattr(model, name, linear_of(child))
        elif id(child) not in body:
            child.register_forward_pre_hook(lambda _, given: tuple(x.float() for x in given))
    return model
