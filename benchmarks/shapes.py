"""Models of known shapes with random weights."""

from typing import Any

import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification


def deberta(
    seed: int, *, vocabulary: int, width: int, layers: int, heads: int, **other: Any
) -> Any:
    """DeBERTa-v3's architecture, two classes; `other` keys of DebertaV2Config."""
    torch.manual_seed(seed)
    config = DebertaV2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        num_labels=2,
        **other,
    )
    return DebertaV2ForSequenceClassification(config)
