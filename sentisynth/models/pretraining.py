"""Models that learn from unlabelled text: shapes, and the two that detect replaced tokens.

Clark, Luong, Le, Manning, "ELECTRA", ICLR 2020, section 2: a masked language model G fills masked
positions with tokens of its own, and the encoder D tells which tokens were replaced. Dong et al.,
"Decoupled optimisers", ICML 2023: each has its own learning rate and its own embeddings.
B rows, S tokens, M masked positions of a batch, V pieces of the vocabulary, E width.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2Model,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import MaskedLMOutput

from sentisynth.config.pretrain import PretrainConfig, ShapeConfig
from sentisynth.errors import ModelError
from sentisynth.models.deberta import train_fast_attention

_BUCKETS, _FARTHEST = 32, 128  # of relative positions, as in the paper
_FINE_TUNING_DROPOUT = 0.1


def encoder_config(
    shape: ShapeConfig, tokenizer: PreTrainedTokenizerBase, positions: int, dropout: float
) -> DebertaV2Config:
    """A DeBERTa-v3 of any size: relative positions alone, keys shared with them."""
    return DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        hidden_act="gelu_pytorch_tanh",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=positions,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=_BUCKETS,
        max_relative_positions=_FARTHEST,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        pad_token_id=tokenizer.pad_token_id,
        pooler_hidden_size=shape.width,
    )


def fresh_masked_model(
    shape: ShapeConfig, config: PretrainConfig, tokenizer: PreTrainedTokenizerBase
) -> Any:
    """A masked language model, such as G, with random weights (from torch's generator: seed it
    first). Raises ModelError.
    """
    if tokenizer.mask_token_id is None:
        raise ModelError(
            "the tokenizer has no mask token, which an encoder's model needs; leave "
            "tokenizer.model out, or give a model whose tokenizer has one"
        )
    model = DebertaV2ForMaskedLM(encoder_config(shape, tokenizer, config.positions, config.dropout))
    train_fast_attention(model)
    return model


def fresh_encoder(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    """D's encoder with random weights."""
    model = DebertaV2Model(
        encoder_config(config.shape, tokenizer, config.positions, config.dropout)
    )
    train_fast_attention(model)
    return model


def fresh_causal_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A GPT-2 with random weights; the one-operation form of its activation."""
    shape = config.shape
    settings = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=config.positions,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(settings)


def for_fine_tuning(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, whose configuration says the dropout that fine-tuning usually has."""
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(model.config, name):
            setattr(model.config, name, _FINE_TUNING_DROPOUT)
    return model


class MaskedBatch(NamedTuple):
    """A batch, and what is to be masked in it; each (B, S)."""

    ids_BS: torch.Tensor  # noqa: N815
    mask_BS: torch.Tensor  # noqa: N815
    """int64: what is no padding."""
    counted_BS: torch.Tensor  # noqa: N815
    """bool: what is learned from; of fillers nothing."""
    chosen_BS: torch.Tensor  # noqa: N815
    """bool: what is masked, of what counts."""


@dataclass(frozen=True, kw_only=True)
class Replacements:
    """What G made of a batch."""

    ids_BS: torch.Tensor  # noqa: N815
    """The batch with G's tokens at the masked positions."""
    replaced_BS: torch.Tensor  # noqa: N815
    """bool: where they differ from the text's own."""
    nll: torch.Tensor
    """Sum over the masked positions of G's negative log-likelihood in nats, a scalar."""


def chosen_positions(may_BS: torch.Tensor, rate: float, random_BS: torch.Tensor) -> torch.Tensor:
    """Bool (B, S): round(rate · n) of a row's n positions that may be masked, at least one.

    Which ones, the smallest of `random_BS` say. `may_BS` is bool, without special tokens and
    padding.
    """
    order_BS = random_BS.masked_fill(~may_BS, 2.0).argsort(dim=1).argsort(dim=1)
    n_B1 = (rate * may_BS.sum(dim=1, keepdim=True)).round().clamp(min=1)
    return (order_BS < n_B1) & may_BS


def replacements(masked: Any, batch: MaskedBatch, mask_id: int) -> Replacements:
    """Mask the chosen positions, let G fill them, and sample its tokens (no gradient flows
    through the samples). The head sees the chosen positions alone.
    """
    ids_BS, chosen_BS = batch.ids_BS, batch.chosen_BS
    hidden_BSE = masked.deberta(
        input_ids=ids_BS.masked_fill(chosen_BS, mask_id), attention_mask=batch.mask_BS
    ).last_hidden_state
    logits_MV = masked.cls(hidden_BSE[chosen_BS]).float()
    own_M = ids_BS[chosen_BS]
    nll = F.cross_entropy(logits_MV, own_M, reduction="sum")
    with torch.no_grad():  # Gumbel's trick: one pass, no cumulative sums
        noise_MV = torch.empty_like(logits_MV).exponential_().clamp_(min=1e-20)
        sampled_M = (logits_MV - noise_MV.log_()).argmax(dim=1)
    return Replacements(
        ids_BS=ids_BS.masked_scatter(chosen_BS, sampled_M),
        replaced_BS=torch.zeros_like(chosen_BS).masked_scatter(chosen_BS, sampled_M != own_M),
        nll=nll,
    )


class Detector(nn.Module):
    """D: the encoder and a logit a token, that it was replaced (ELECTRA's head)."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.encoder = encoder
        self.transform, self.score = nn.Linear(width, width), nn.Linear(width, 1)
        for layer in (self.transform, self.score):
            nn.init.normal_(layer.weight, std=encoder.config.initializer_range)
            nn.init.zeros_(layer.bias)

    def forward(self, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Logits (B, S) in fp32."""
        hidden_BSE = self.encoder(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
        inner_BSE = F.gelu(self.transform(hidden_BSE), approximate="tanh")
        return self.score(inner_BSE).squeeze(-1).float()


class _TrainedModel(nn.Module):
    """What the loop asks of a model, passed on to those inside."""

    supports_gradient_checkpointing = True

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.parameters()).device

    def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
        """Compute activations again in the backward pass."""
        for module in self.modules():
            if isinstance(module, DebertaV2Model):
                module.gradient_checkpointing_enable(options)


class MaskedModel(_TrainedModel):
    """G alone."""

    def __init__(self, masked: PreTrainedModel, config: PretrainConfig, mask_id: int) -> None:
        super().__init__()
        self.masked = masked
        self._mask_id, self._rate = mask_id, config.masked.mask_rate

    def forward(self, batch: MaskedBatch) -> torch.Tensor:
        """(1 / rate) Σ nll over masked positions, a scalar."""
        made = replacements(self.masked, batch, self._mask_id)
        return made.nll / self._rate


class OneWayModel(_TrainedModel):
    """A masked language model as a causal one: no position sees what follows it, and each predicts
    the next token. The same weights may work both ways (Dong et al., "UniLM", NeurIPS 2019,
    section 2.3).
    """

    def __init__(self, masked: PreTrainedModel) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> MaskedLMOutput:
        """Logits (B, S, V) of the tokens that follow; ids and mask (B, S), padded on the right."""
        size, model = input_ids.shape[1], self.masked.deberta
        seen_SS = torch.ones(size, size, dtype=torch.long, device=input_ids.device).tril()
        hidden_BSE = model.encoder(
            model.embeddings(input_ids=input_ids, mask=attention_mask),
            attention_mask[:, None, :] * seen_SS,
            output_hidden_states=False,
        ).last_hidden_state
        return MaskedLMOutput(logits=self.masked.cls(hidden_BSE))


class ReplacedTokenModel(_TrainedModel):
    """G and D, trained together.

    Decoupled: `rate_factors` give G a learning rate of its own, and λ is 1: Adam cancels it.
    Coupled: one table of embeddings, and the loss L_G + λ L_D.
    """

    def __init__(
        self,
        masked: PreTrainedModel,
        encoder: PreTrainedModel,
        config: PretrainConfig,
        mask_id: int,
    ) -> None:
        super().__init__()
        self.masked, self.detector = masked, Detector(encoder)
        self._mask_id, self._rate = mask_id, config.masked.mask_rate
        self._coupling = 1.0
        if config.optimizer == "coupled":
            self._coupling = config.coupling
            encoder.set_input_embeddings(masked.get_input_embeddings())
        else:
            own = config.masked.learning_rate / config.train.learning_rate
            self.rate_factors = {"masked.": own, "detector.": 1.0}

    def forward(self, batch: MaskedBatch) -> torch.Tensor:
        """(1 / rate) Σ nll over masked positions + λ Σ bce over tokens that count, a scalar.

        Divided by the number of tokens it is L_G + λ L_D, where L_G is a mean over rate times all
        tokens. Special ones are never masked, and what is masked of a row is a whole number: in
        rows of 64 tokens that is 0.94 of the mean over the masked ones, in rows of 10 it is 0.67.
        """
        made = replacements(self.masked, batch, self._mask_id)
        logits_BS = self.detector(made.ids_BS, batch.mask_BS)
        bce_BS = F.binary_cross_entropy_with_logits(
            logits_BS, made.replaced_BS.float(), reduction="none"
        )
        return made.nll / self._rate + self._coupling * (bce_BS * batch.counted_BS).sum()
