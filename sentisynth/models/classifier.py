"""Sequence classifiers: teachers and students. B rows, S tokens, K classes."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sentisynth.errors import ModelError
from sentisynth.models.loading import load_pretrained, load_tokenizer, read_config, resolve_model

_TEXTS_AT_ONCE = 2048  # the tokenizer keeps what it cut off until all are done
FRESH, FIRST_LAYERS = "fresh:", "teacher:"
FRESH_POSITIONS = 512
SHAPES: dict[str, dict[str, Any]] = {
    # Turc et al., "Well-read students learn better", 2019, table 1.
    "bert-tiny": {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 128},
    "bert-mini": {"model_type": "bert", "num_hidden_layers": 4, "hidden_size": 256},
}


def load_classifier(
    reference: str, labels: Sequence[str], teacher: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A K-class classifier in fp32 and its tokenizer; a head is added where there is none.

    `fresh:SHAPE` has random weights (from torch's generator: seed it first) and the tokenizer of
    `teacher`, a finished one; `teacher:N` has its first N layers too. Raises ModelError, also where
    a head is there and is for another K.
    """
    names: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {n: i for i, n in enumerate(labels)},
    }
    if starts_from_teacher(reference) and teacher is None:
        raise ModelError(f"{reference!r} needs a teacher; only a student can start from it")
    if reference.startswith(FRESH):
        assert teacher is not None
        tokenizer = load_tokenizer(teacher)
        check_fresh(reference, FRESH_POSITIONS)
        config = fresh_config(
            reference, len(tokenizer), pad_token_id=tokenizer.pad_token_id, **names
        )
        return AutoModelForSequenceClassification.from_config(config), tokenizer
    if reference.startswith(FIRST_LAYERS):
        assert teacher is not None
        path = teacher
        names["num_hidden_layers"] = first_layers(reference, read_config(teacher))
    else:
        path = resolve_model(reference)
    tokenizer = load_tokenizer(path)
    model, info = load_pretrained(
        AutoModelForSequenceClassification,
        path,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **names,
    )
    for key, found, wanted in info["mismatched_keys"]:
        if key.startswith(model.base_model_prefix):
            raise ModelError(f"{path}: the weights {key} do not have the shape of config.json")
        raise ModelError(
            f"{path} has a head for {found[0]} classes ({key}), the data has {wanted[0]}; give a "
            f"model without a head, or data with those classes"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def starts_from_teacher(reference: str) -> bool:
    """Whether a student is made with the finished teacher: its tokenizer, or its layers too."""
    return reference.startswith((FRESH, FIRST_LAYERS))


def first_layers(reference: str, teacher: Any) -> int:
    """N of `teacher:N`. Raises ModelError unless the teacher's configuration has as many layers."""
    text = reference.removeprefix(FIRST_LAYERS)
    layers = teacher.num_hidden_layers
    if not text.isdecimal() or not 1 <= int(text) <= layers:
        raise ModelError(
            f"student.model is {reference!r}; write teacher:N with N from 1 to the teacher's "
            f"{layers} layers"
        )
    return int(text)


def check_head(start: Any, n_labels: int) -> None:
    """Raise ModelError where a configuration tells of a head for another K."""
    names = start.architectures or ()
    has_head = any(name.endswith("ForSequenceClassification") for name in names)
    if has_head and start.num_labels != n_labels:
        raise ModelError(
            f"{start.name_or_path} has a head for {start.num_labels} classes, the data has "
            f"{n_labels}; give a model without a head, or data with those classes"
        )


def check_fresh(reference: str, max_length: int) -> None:
    """Raise ModelError unless a `fresh:SHAPE` is known and takes `max_length` tokens."""
    shape = reference.removeprefix(FRESH)
    if shape not in SHAPES:
        raise ModelError(f"there is no shape {shape!r}; write fresh:{' or fresh:'.join(SHAPES)}")
    if max_length > FRESH_POSITIONS:
        raise ModelError(
            f"student.max_length is {max_length}; {reference} takes {FRESH_POSITIONS} at most"
        )


def fresh_config(reference: str, vocab_size: int, **more: Any) -> Any:
    """The configuration of a known `fresh:SHAPE`."""
    sizes = dict(SHAPES[reference.removeprefix(FRESH)])
    hidden = sizes["hidden_size"]
    return AutoConfig.for_model(
        sizes.pop("model_type"),
        **sizes,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        max_position_embeddings=FRESH_POSITIONS,
        vocab_size=vocab_size,
        **more,
    )


def load_verifier(path: Path, n_labels: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A fine-tuned classifier as it was saved. Raises ModelError unless it has K = n_labels."""
    check_verifier(path, n_labels)
    return load_pretrained(AutoModelForSequenceClassification, path), load_tokenizer(path)


def check_verifier(path: Path, n_labels: int) -> None:
    """Raise ModelError unless a fine-tuned classifier has K = n_labels; weights are not read."""
    found = read_config(path).num_labels
    if found != n_labels:
        raise ModelError(
            f"the teacher in {path} has {found} classes, the data {n_labels}; "
            f"train a teacher on this data"
        )


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> list[list[int]]:
    """Token ids of each text, cut off at `max_length`; at least one token each."""
    ids = list[list[int]]()
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        part = list(texts[first : first + _TEXTS_AT_ONCE])
        ids += tokenizer(part, truncation=True, max_length=max_length)["input_ids"]
    return [row or [tokenizer.pad_token_id] for row in ids]


def predict_logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
    autocast: torch.dtype | None = None,
    tokens_per_batch: int = 4096,
) -> np.ndarray:
    """Logits (N, K) in float32, in the order of the texts; see `score`."""
    ids = tokenize(tokenizer, texts, max_length)
    return score(
        model,
        ids,
        pad_id=tokenizer.pad_token_id,
        autocast=autocast,
        tokens_per_batch=tokens_per_batch,
    )


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    ids: Sequence[list[int]],
    *,
    pad_id: int,
    autocast: torch.dtype | None = None,
    tokens_per_batch: int = 4096,
) -> np.ndarray:
    """Logits (N, K) in float32 of token rows, in their order.

    Sorted by length and cut into batches of at most `tokens_per_batch` padded tokens, so that the
    batches, and with them the bytes of the result, depend on the rows alone.
    """
    model.eval()
    device = next(model.parameters()).device
    logits_NK = np.empty((len(ids), model.config.num_labels), dtype=np.float32)
    cast = nullcontext() if autocast is None else torch.autocast(device.type, dtype=autocast)
    with cast:
        for batch in by_length(np.array([len(row) for row in ids]), tokens_per_batch):
            inputs, mask = pad([ids[i] for i in batch], pad_id)
            out = model(input_ids=inputs.to(device), attention_mask=mask.to(device)).logits
            logits_NK[batch] = out.float().cpu().numpy()
    return logits_NK


def by_length(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Positions of rows in batches of ascending length, each of at most `budget` padded tokens."""
    batches: list[list[int]] = []
    for i in np.argsort(lengths, kind="stable").tolist():
        # ascending, so row i is the longest of its batch so far
        if not batches or (len(batches[-1]) + 1) * lengths[i] > budget:
            batches.append([])
        batches[-1].append(i)
    return [np.array(batch) for batch in batches]


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token rows to int64 tensors (B, S): ids padded on the right, and the attention mask."""
    length = max(len(row) for row in rows)
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
