"""The two tasks of the loop: classify rows, and continue a control token. B rows, S tokens."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sentisynth import schema
from sentisynth.config.types import DistilConfig
from sentisynth.data.logits import logits_of
from sentisynth.models.classifier import by_length, tokenize
from sentisynth.models.first_token import use_first_token_alone
from sentisynth.models.generator import training_ids
from sentisynth.models.losses import distillation_loss
from sentisynth.models.metrics import macro_f1
from sentisynth.models.vocabulary import used_vocabulary
from sentisynth.training.rows import Rows, positions, world

_IGNORED = -100
_TOKENS_PER_BATCH = 4096


def classification_rows(
    table: pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    soft: bool = False,
    class_weights: Sequence[float] | None = None,
) -> Rows:
    """Texts and labels to rows; with `soft`, soft labels and weights of the dataset too."""
    labels = table[schema.LABELS].to_numpy().astype(np.int64)
    weights = table[schema.WEIGHTS].to_numpy() if soft else np.ones(len(labels), np.float32)
    if class_weights is not None:
        weights = weights * np.asarray(class_weights, np.float32)[labels]
    return Rows.of(
        tokenize(tokenizer, table[schema.TEXT].to_pylist(), max_length),
        labels,
        weights,
        logits_of(table, schema.SOFT_LABELS) if soft else None,
    )


def language_rows(
    table: pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    control_ids: Sequence[int],
    max_length: int,
) -> Rows:
    """Control token, text, end-of-text of each row."""
    texts, labels = table[schema.TEXT].to_pylist(), table[schema.LABELS].to_numpy()
    ids = [
        training_ids(tokenizer, control_ids[label], text, max_length)
        for text, label in zip(texts, labels, strict=True)
    ]
    return Rows.of(ids, labels)


class ClassificationTask:
    """Cross-entropy on labels, or the weighted objective on rows that have soft labels.

    Where that changes nothing, the model's embedding is cut down to the tokens that the rows use,
    and its last layer to the first token; see `models.vocabulary` and `models.first_token`.
    """

    metric = "macro_f1"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Rows,
        validation: Rows,
        *,
        objective: DistilConfig | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.model, self.rows, self._validation = model, rows, validation
        self._pad_id, self._objective, self._smoothing = (
            tokenizer.pad_token_id,
            objective,
            label_smoothing,
        )
        use_first_token_alone(model)
        self.vocabulary = used_vocabulary(model, tokenizer, rows.ids, validation.ids)
        if self.vocabulary is not None:
            self.vocabulary.shrink(model)

    def weight(self, rows: np.ndarray) -> float:
        return float(self.rows.weights_of(rows).sum(dtype=np.float64))

    def loss(self, forward: nn.Module, rows: np.ndarray) -> torch.Tensor:
        logits_BK = self._logits(forward, self.rows, rows).float()
        device, index = logits_BK.device, positions(rows)
        labels_B = torch.from_numpy(self.rows.labels[index]).to(device)
        if self._objective is None:
            loss_B = F.cross_entropy(
                logits_BK, labels_B, reduction="none", label_smoothing=self._smoothing
            )
        else:
            assert self.rows.soft_labels is not None
            loss_B = distillation_loss(
                logits_BK,
                torch.from_numpy(self.rows.soft_labels[index]).to(device),
                labels_B,
                alpha=self._objective.alpha,
                temperature=self._objective.temperature,
            )
        weights_B = torch.from_numpy(self.rows.weights_of(rows)).to(device)
        return (weights_B * loss_B).sum()

    def evaluate(self, forward: nn.Module, autocast: torch.dtype | None) -> dict[str, float]:
        labels = self._validation.labels
        logits_NK = self._predict(forward, autocast)
        predicted = logits_NK.argmax(dim=1).numpy()
        return {
            "macro_f1": macro_f1(labels, predicted, logits_NK.shape[1]),
            "accuracy": float(np.mean(labels == predicted)),
            "validation_loss": F.cross_entropy(logits_NK, torch.tensor(labels)).item(),
        }

    @torch.no_grad()
    def _predict(self, forward: nn.Module, autocast: torch.dtype | None) -> torch.Tensor:
        """Logits (N, K) of the validation rows in fp32, on the CPU."""
        device = self.model.device
        shape = (len(self._validation), self.model.config.num_labels)
        logits_NK = torch.zeros(shape, device=device)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            for batch, counts in own_batches(self._validation):
                found_BK = self._logits(forward, self._validation, batch).float()
                if counts:
                    logits_NK[batch] = found_BK
        if dist.is_initialized():
            dist.all_reduce(logits_NK)
        return logits_NK.cpu()

    def _logits(self, forward: nn.Module, rows: Rows, batch: np.ndarray) -> torch.Tensor:
        ids_BS, mask_BS = rows.padded(batch, self._pad_id)
        if self.vocabulary is not None:
            ids_BS = torch.from_numpy(self.vocabulary.renumber(ids_BS.numpy()))
        device = self.model.device
        logits: torch.Tensor = forward(
            input_ids=ids_BS.to(device), attention_mask=mask_BS.to(device)
        ).logits
        return logits


class LanguageModelTask:
    """Next-token loss on control token + text + end-of-text; the mean is over tokens."""

    metric = "perplexity"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Rows,
        validation: Rows,
    ) -> None:
        self.model, self.rows, self._validation = model, rows, validation
        self._pad_id = tokenizer.pad_token_id

    def weight(self, rows: np.ndarray) -> float:
        return float((self.rows.lengths[rows[rows >= 0]] - 1).sum())

    def loss(self, forward: nn.Module, rows: np.ndarray) -> torch.Tensor:
        return self._nll(forward, self.rows, rows)

    def evaluate(self, forward: nn.Module, autocast: torch.dtype | None) -> dict[str, float]:
        loss = self.mean_nll(forward, autocast)
        return {"perplexity": math.exp(min(loss, 700.0)), "validation_loss": loss}

    @torch.no_grad()
    def mean_nll(self, forward: nn.Module, autocast: torch.dtype | None = None) -> float:
        """Mean negative log-likelihood in nats a token of the validation texts, the end-of-text
        token included, each given its own class's control token. Its exp is the perplexity.
        """
        total = torch.zeros((), dtype=torch.float64)
        device = self.model.device
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            for batch, counts in own_batches(self._validation):
                nll = self._nll(forward, self._validation, batch)
                if counts:
                    total += nll.double().cpu()
        if dist.is_initialized():
            total = total.float().to(device)
            dist.all_reduce(total)
        tokens = int((self._validation.lengths - 1).sum())
        return total.item() / tokens

    def _nll(self, forward: nn.Module, rows: Rows, batch: np.ndarray) -> torch.Tensor:
        """Sum over the tokens of a batch (B,); fillers count nothing."""
        device = self.model.device
        ids_BS, mask_BS = (x.to(device) for x in rows.padded(batch, self._pad_id))
        logits = forward(input_ids=ids_BS[:, :-1], attention_mask=mask_BS[:, :-1]).logits
        ignored_BS = (mask_BS[:, 1:] == 0) | torch.from_numpy(batch < 0).to(device)[:, None]
        targets = ids_BS[:, 1:].masked_fill(ignored_BS, _IGNORED)
        return F.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="sum"
        )


def own_batches(rows: Rows) -> Iterator[tuple[np.ndarray, bool]]:
    """The worker's batches of similar lengths, and whether they count: every worker gets equally
    many, since a forward pass may need them all.
    """
    rank, world_size = world()
    batches = by_length(rows.lengths, _TOKENS_PER_BATCH)
    for first in range(0, len(batches), world_size):
        i = first + rank
        yield batches[i if i < len(batches) else 0], i < len(batches)
