"""The two tasks of the loop: classify rows, and continue a control token. B rows, S tokens."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sentisynth import schema
from sentisynth.config.types import DistilConfig
from sentisynth.data.logits import logits_of
from sentisynth.models.classifier import pad, predict_logits
from sentisynth.models.generator import training_ids
from sentisynth.models.losses import distillation_loss

_IGNORED = -100
_TOKENS_PER_BATCH = 4096


class ClassificationTask:
    """Cross-entropy on labels, or the weighted objective on rows that have soft labels."""

    metric, maximise = "macro_f1", True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: pa.Table,
        validation: pa.Table,
        max_length: int,
        distil: DistilConfig | None = None,
    ) -> None:
        self.model, self._tokenizer, self._max_length = model, tokenizer, max_length
        self._validation, self._distil = validation, distil
        texts = rows[schema.TEXT].to_pylist()
        self._ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        self._labels = torch.from_numpy(rows[schema.LABELS].to_numpy().astype(np.int64))
        self._weights = torch.ones(len(texts))
        if distil is not None:
            self._weights = torch.tensor(rows[schema.WEIGHTS].to_numpy())
            self._soft_labels = torch.tensor(logits_of(rows, schema.SOFT_LABELS))

    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self._ids])

    def loss(self, forward: nn.Module, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        device = self.model.device
        inputs, mask = pad([self._ids[i] for i in rows], self._tokenizer.pad_token_id)
        logits_BK = forward(input_ids=inputs.to(device), attention_mask=mask.to(device)).logits
        logits_BK = logits_BK.float()
        labels_B, weights_B = self._labels[rows].to(device), self._weights[rows].to(device)
        if self._distil is None:
            loss_B = F.cross_entropy(logits_BK, labels_B, reduction="none")
        else:
            loss_B = distillation_loss(
                logits_BK,
                self._soft_labels[rows].to(device),
                labels_B,
                alpha=self._distil.alpha,
                temperature=self._distil.temperature,
            )
        return (weights_B * loss_B).sum(), weights_B.sum()

    def evaluate(self, autocast: torch.dtype | None) -> dict[str, float]:
        logits_NK = self.predict(self._validation, autocast)
        labels, predicted = self._validation[schema.LABELS].to_numpy(), logits_NK.argmax(axis=1)
        loss = F.cross_entropy(torch.tensor(logits_NK), torch.tensor(labels).long())
        return {
            "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
            "accuracy": float(accuracy_score(labels, predicted)),
            "validation_loss": loss.item(),
        }

    def predict(self, table: pa.Table, autocast: torch.dtype | None = None) -> np.ndarray:
        """Logits (N, K) of the model as it stands, fp32 unless told otherwise."""
        return predict_logits(
            self.model,
            self._tokenizer,
            table[schema.TEXT].to_pylist(),
            max_length=self._max_length,
            autocast=autocast,
        )


class LanguageModelTask:
    """Next-token loss on control token + text + end-of-text; the mean is over tokens."""

    metric, maximise = "perplexity", False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        control_ids: Sequence[int],
        rows: pa.Table,
        validation: pa.Table,
        max_length: int,
    ) -> None:
        self.model, self._pad_id = model, tokenizer.pad_token_id

        def encode(table: pa.Table) -> list[list[int]]:
            pairs = zip(
                table[schema.TEXT].to_pylist(), table[schema.LABELS].to_pylist(), strict=True
            )
            return [training_ids(tokenizer, control_ids[y], x, max_length) for x, y in pairs]

        self.ids, self._validation_ids = encode(rows), encode(validation)

    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.ids])

    def loss(self, forward: nn.Module, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return self._nll(forward, [self.ids[i] for i in rows])

    def evaluate(self, autocast: torch.dtype | None) -> dict[str, float]:
        return {"perplexity": self.perplexity(autocast)}

    @torch.inference_mode()
    def perplexity(self, autocast: torch.dtype | None = None) -> float:
        """Exp of the mean negative log-likelihood a token of the validation texts, the
        end-of-text token included, each given its own class's control token.
        """
        self.model.eval()
        ids = sorted(self._validation_ids, key=len)
        size = max(1, _TOKENS_PER_BATCH // len(ids[-1]))
        total, count = 0.0, 0.0
        enabled = autocast is not None
        with torch.autocast(self.model.device.type, dtype=autocast, enabled=enabled):
            for start in range(0, len(ids), size):
                nll, n = self._nll(self.model, ids[start : start + size])
                total, count = total + nll.item(), count + n.item()
        return math.exp(min(total / count, 700.0))

    def _nll(self, forward: nn.Module, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs_BS, mask_BS = (x.to(self.model.device) for x in pad(rows, self._pad_id))
        logits = forward(input_ids=inputs_BS[:, :-1], attention_mask=mask_BS[:, :-1]).logits
        targets = inputs_BS[:, 1:].masked_fill(mask_BS[:, 1:] == 0, _IGNORED)
        nll = F.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="sum"
        )
        return nll, mask_BS[:, 1:].sum().float()
