"""DeBERTa-v2 and -v3: the published weights, the same logits, less work.

He, Liu, Gao, Chen, "DeBERTa", ICLR 2021, equation 4: the score of query i and key j is

    (q_i · k_j + q_i · r^K_δ + k_j · r^Q_δ) / sqrt(3 D),    δ = i − j in buckets.

The rows r^K and r^Q of the relative positions do not depend on the input, so they are projected
once; they are the same for every row of the batch, so they are not repeated over it; and S tokens
reach 2 S − 1 of them, so the others are left out. B rows, S tokens, H heads, D width of a head,
P relative positions.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position


class DisentangledAttention(nn.Module):
    """Takes the place of transformers' DisentangledSelfAttention. Inference only."""

    def __init__(self, attention: Any, table_PE: torch.Tensor) -> None:
        super().__init__()
        self._heads, self._width = attention.num_attention_heads, attention.attention_head_size
        self._buckets = attention.position_buckets
        self._most, self._span = attention.max_relative_positions, attention.pos_ebd_size
        kinds = attention.pos_att_type
        shared = attention.share_att_key
        to_keys: Any = attention.key_proj if shared else getattr(attention, "pos_key_proj", None)
        to_queries: Any = (
            attention.query_proj if shared else getattr(attention, "pos_query_proj", None)
        )
        self._reached_last: tuple[int, torch.Tensor | None, torch.Tensor | None] | None = None
        self._keys_HPD: torch.Tensor | None
        self._queries_HPD: torch.Tensor | None
        for name, projection, kind in (
            ("_keys_HPD", to_keys, "c2p"),
            ("_queries_HPD", to_queries, "p2c"),
        ):
            table = self._split(projection(table_PE)) if kind in kinds else None
            self.register_buffer(name, table, persistent=False)
        scale = (self._width * (1 + ("c2p" in kinds) + ("p2c" in kinds))) ** -0.5
        if self._queries_HPD is not None:
            self._queries_HPD *= scale  # queries come scaled: half precision does not overflow
        three = [attention.query_proj, attention.key_proj, attention.value_proj]
        joined = nn.Linear(three[0].in_features, 3 * self._heads * self._width).to(three[0].weight)
        with torch.no_grad():
            joined.weight.copy_(torch.cat([module.weight for module in three]))
            joined.bias.copy_(torch.cat([module.bias for module in three]))
            joined.weight[: self._heads * self._width] *= scale
            joined.bias[: self._heads * self._width] *= scale
        self._project = joined

    def _split(self, rows_PE: torch.Tensor) -> torch.Tensor:
        return rows_PE.view(-1, self._heads, self._width).transpose(0, 1).contiguous()

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        """Hidden states (B, S, E) and transformers' mask (B, 1, S, S) to the context (B, S, E)."""
        b, s = hidden_states.shape[:2]
        h, d = self._heads, self._width
        qkv = self._project(hidden_states).view(b, s, 3, h, d)
        q_HBSD, k_HBSD, v_HBSD = qkv.permute(2, 3, 0, 1, 4).contiguous()
        scores_HBSS = self._position_scores(q_HBSD, k_HBSD)
        q, k_T = q_HBSD.view(h * b, s, d), k_HBSD.view(h * b, s, d).transpose(1, 2)
        if scores_HBSS is None:
            scores_HBSS = torch.bmm(q, k_T).view(h, b, s, s)
        else:
            scores_HBSS = torch.baddbmm(scores_HBSS.view(h * b, s, s), q, k_T).view(h, b, s, s)
        # keys that the first token may attend to: it is real, while rows of padding see nothing
        unreal_BS = ~attention_mask[:, 0, 0].bool()
        scores_HBSS = scores_HBSS.float().masked_fill(
            unreal_BS[None, :, None, :], torch.finfo(torch.float32).min
        )
        probs_HBSS = scores_HBSS.softmax(dim=-1).to(v_HBSD.dtype)
        context = torch.bmm(probs_HBSS.view(h * b, s, s), v_HBSD.view(h * b, s, d))
        return context.view(h, b, s, d).permute(1, 2, 0, 3).reshape(b, s, h * d), None

    def _position_scores(self, q_HBSD: torch.Tensor, k_HBSD: torch.Tensor) -> torch.Tensor | None:
        """q_i · r^K_δ + k_j · r^Q_δ, (H, B, S, S)."""
        keys_HPD, queries_HPD = self._reached_by(q_HBSD.shape[2])
        parts = []
        if keys_HPD is not None:
            parts.append(_skewed(q_HBSD, keys_HPD))
        if queries_HPD is not None:
            parts.append(_skewed(k_HBSD, queries_HPD).transpose(2, 3))
        if len(parts) == 2:
            return parts[0] + parts[1]
        return parts[0].contiguous() if parts else None

    def _reached_by(self, s: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Rows of both tables that s tokens reach, as `_skewed` reads them; batches sorted by
        length ask for the same ones again and again.
        """
        if self._reached_last is None or self._reached_last[0] != s:
            rows = _reached_rows(s, self._buckets, self._most, self._span)
            keys, queries = self._keys_HPD, self._queries_HPD
            if keys is not None:
                keys = keys[:, rows.flip(0).to(keys.device)]
            if queries is not None:
                queries = queries[:, rows.to(queries.device)]
            self._reached_last = (s, keys, queries)
        return self._reached_last[1:]


class TrainedDisentangledAttention(nn.Module):
    """The same with gradients and dropout: projections under transformers' names, so that a model
    is saved as it would be without; the rows of the relative positions are projected in each pass.
    """

    pos_dropout: nn.Module
    dropout: nn.Module
    key_proj: nn.Module
    query_proj: nn.Module
    pos_key_proj: nn.Module
    pos_query_proj: nn.Module

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self._heads, self._width = attention.num_attention_heads, attention.attention_head_size
        self._buckets = attention.position_buckets
        self._most, self._span = attention.max_relative_positions, attention.pos_ebd_size
        self._kinds, self._shared = attention.pos_att_type, attention.share_att_key
        for name, module in attention.named_children():  # query_proj, key_proj, value_proj, …
            self.add_module(name, module)
        self._scale = (self._width * (1 + len({"c2p", "p2c"} & set(self._kinds)))) ** -0.5

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        *_: Any,
        rel_embeddings: torch.Tensor,
        **__: Any,
    ) -> tuple[torch.Tensor, None]:
        """Hidden states (B, S, E) and transformers' mask (B, 1, S, S) to the context (B, S, E)."""
        b, s = hidden_states.shape[:2]
        h, d = self._heads, self._width
        q, k, v = (
            self._split(getattr(self, name)(hidden_states))
            for name in ("query_proj", "key_proj", "value_proj")
        )
        q = q * self._scale
        scores = torch.bmm(q, k.transpose(1, 2)).view(h, b, s, s)
        rows = _reached_rows(s, self._buckets, self._most, self._span).to(rel_embeddings.device)
        table_PE = self.pos_dropout(rel_embeddings)
        if "c2p" in self._kinds:
            keys = self.key_proj if self._shared else self.pos_key_proj
            reached_HPD = self._rows_of(keys(table_PE))[:, rows.flip(0)]
            scores = scores + _skewed(q.view(h, b, s, d), reached_HPD)
        if "p2c" in self._kinds:
            queries = self.query_proj if self._shared else self.pos_query_proj
            reached_HPD = self._rows_of(queries(table_PE))[:, rows] * self._scale
            scores = scores + _skewed(k.view(h, b, s, d), reached_HPD).transpose(2, 3)
        is_hidden_BSS = ~attention_mask[:, 0].bool()
        scores = scores.float().masked_fill(is_hidden_BSS, torch.finfo(torch.float32).min)
        probs = self.dropout(scores.softmax(dim=-1)).to(v.dtype)
        context = torch.bmm(probs.view(h * b, s, s), v)
        return context.view(h, b, s, d).permute(1, 2, 0, 3).reshape(b, s, h * d), None

    def _split(self, x_BSE: torch.Tensor) -> torch.Tensor:
        b, s, _ = x_BSE.shape
        shape = (self._heads * b, s, self._width)
        return x_BSE.view(b, s, self._heads, self._width).permute(2, 0, 1, 3).reshape(shape)

    def _rows_of(self, rows_PE: torch.Tensor) -> torch.Tensor:
        return rows_PE.view(-1, self._heads, self._width).transpose(0, 1)


def _reached_rows(s: int, buckets: int, most: int, span: int) -> torch.Tensor:
    """Rows of the table for the distances 1 − s … s − 1, (2 s − 1,)."""
    distances = torch.arange(1 - s, s)
    if buckets > 0 and most > 0:
        distances = make_log_bucket_position(distances, buckets, most)
    return (distances.long() + span).clamp(0, 2 * span - 1)


def _skewed(x_HBSD: torch.Tensor, table_HPD: torch.Tensor) -> torch.Tensor:
    """Products of row i with the table's rows S − 1 − i … 2 S − 2 − i: a view (H, B, S, S).

    Row i of the product begins one column earlier than the row before it, so rows that are one
    element shorter than they are read the right columns without an index.
    """
    h, b, s, d = x_HBSD.shape
    width = table_HPD.shape[1]
    products = torch.bmm(x_HBSD.view(h, b * s, d), table_HPD.transpose(1, 2))
    return products.as_strided((h, b, s, s), (b * s * width, s * width, width - 1, 1), s - 1)


def use_fast_attention(model: PreTrainedModel) -> bool:
    """Replace the attention of a DeBERTa-v2 or -v3 classifier, in place; False for other models."""
    if model.config.model_type != "deberta-v2" or not model.config.relative_attention:
        return False
    encoder = model.base_model.encoder
    with torch.no_grad():
        table_PE = encoder.get_rel_embedding()
        for layer in encoder.layer:
            own = layer.attention
            own.self = DisentangledAttention(own.self, table_PE)
    return True


def train_fast_attention(model: PreTrainedModel) -> None:
    """Replace the attention of a DeBERTa-v2 or -v3 model that is to be trained, in place."""
    for layer in model.base_model.encoder.layer:
        layer.attention.self = TrainedDisentangledAttention(layer.attention.self)
