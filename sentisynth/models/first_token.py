"""BERT classifies by its first token: the last layer has to compute that one alone.

Keys and values of the last layer are of all tokens; its query, attention, feed-forward network and
normalisations are of the first, since the pooler reads nothing else. In a student of two layers
that saves two fifths of the work, of the forward and of the backward pass. B rows, S tokens, D
hidden units, H heads.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from transformers import BertForSequenceClassification, PreTrainedModel
from transformers.models.bert.modeling_bert import BertLayer


def use_first_token_alone(model: PreTrainedModel) -> None:
    """Cut the last layer of a BERT classifier down; other models stay as they are.

    Parameters, their names and the logits are the same.
    """
    if type(model) is not BertForSequenceClassification or model.config.is_decoder:
        return
    last = model.bert.encoder.layer[-1]
    last.forward = MethodType(_first_token_of_layer, last)


def _first_token_of_layer(
    layer: BertLayer,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> torch.Tensor:
    """What `BertLayer.forward` gives for the first token: (B, S, D) to (B, 1, D)."""
    attention = layer.attention.self
    first_B1D = hidden_states[:, :1]

    def heads(projected: torch.Tensor) -> torch.Tensor:
        shape = (*projected.shape[:2], -1, attention.attention_head_size)
        return projected.view(shape).transpose(1, 2)

    context_BH1d = F.scaled_dot_product_attention(
        heads(attention.query(first_B1D)),
        heads(attention.key(hidden_states)),
        heads(attention.value(hidden_states)),
        attn_mask=None if attention_mask is None else attention_mask[..., :1, :],
        dropout_p=attention.dropout.p if layer.training else 0.0,
        scale=attention.scaling,
    )
    context_B1D = context_BH1d.transpose(1, 2).flatten(2)
    attended_B1D = layer.attention.output(context_B1D, first_B1D)
    out: torch.Tensor = layer.feed_forward_chunk(attended_B1D)
    return out
