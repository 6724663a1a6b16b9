"""Replaced-token detection as one would write it with transformers alone: the peer of
`pretraining.py`. Same models, rows, rates and arithmetic as ours.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DebertaV2Config, DebertaV2ForMaskedLM, DebertaV2ForTokenClassification


class PlainReplacedTokens:
    """G fills masks, D is a token classifier; an AdamW each."""

    def __init__(
        self,
        masked: DebertaV2Config,
        encoder: DebertaV2Config,
        rates: tuple[float, float],
        mask_id: int,
        mask_rate: float,
        device: torch.device,
    ) -> None:
        self._g = DebertaV2ForMaskedLM(masked).to(device)
        encoder.num_labels = 1
        self._d = DebertaV2ForTokenClassification(encoder).to(device)
        self._optimizers = [
            torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), eps=1e-6, fused=True)
            for model, rate in zip((self._g, self._d), rates, strict=True)
        ]
        self._mask_id, self._mask_rate = mask_id, mask_rate

    def step(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        special: torch.Tensor,
        dtype: torch.dtype | None,
    ) -> torch.Tensor:
        """Learn from a batch; returns the loss."""
        chosen = (torch.rand(ids.shape, device=ids.device) < self._mask_rate) & ~special
        with torch.autocast(ids.device.type, dtype=dtype, enabled=dtype is not None):
            labels = ids.masked_fill(~chosen, -100)
            made = self._g(
                input_ids=ids.masked_fill(chosen, self._mask_id),
                attention_mask=mask,
                labels=labels,
            )
            with torch.no_grad():
                probabilities = made.logits[chosen].float().softmax(dim=-1)
                drawn = torch.multinomial(probabilities, 1).squeeze(1)
            replaced_ids = ids.masked_scatter(chosen, drawn)
            logits = self._d(input_ids=replaced_ids, attention_mask=mask).logits.squeeze(-1)
            wanted = (replaced_ids != ids).float()
            losses = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
            loss = made.loss + (losses * mask).sum() / mask.sum()
        loss.backward()
        for model, optimizer in zip((self._g, self._d), self._optimizers, strict=True):
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()
