"""Class-conditional causal language models: one control token a class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from sentisynth.errors import ModelError
from sentisynth.models.loading import (
    empty_model,
    load_pretrained,
    load_tokenizer,
    resolve_model,
)

_LORA_SCALE = 2


def load_generator(
    reference: str, control_tokens: Sequence[str], dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM whose vocabulary holds every control token as one token.

    Where the vocabulary has to grow, a new row starts at the mean of all rows, so that its token is
    as likely as an average word; a model with spare rows keeps them. Raises ModelError.
    """
    path = resolve_model(reference)
    tokenizer = load_tokenizer(path)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: the tokenizer has no end-of-text token, which ends a candidate")
    model = load_pretrained(AutoModelForCausalLM, path, dtype)
    known = tokenizer.get_vocab()
    taken = [t for t in control_tokens if t in known and t not in tokenizer.get_added_vocab()]
    own = {getattr(tokenizer, name) for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    taken += [t for t in control_tokens if t in own]
    if taken:
        raise ModelError(
            f"the control token {taken[0]!r} is a token of {path} already; choose another"
        )
    tokenizer.add_special_tokens({"additional_special_tokens": list(control_tokens)})
    before = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > before:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        tables = {model.get_input_embeddings(), model.get_output_embeddings()} - {None}
        with torch.no_grad():
            for rows in {id(t.weight): t.weight for t in tables}.values():
                rows[before:] = rows[:before].mean(dim=0)
    return model, tokenizer


def control_token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a control token. Raises ModelError if the tokenizer does not know it as one."""
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or token_id == tokenizer.unk_token_id:
        raise ModelError(f"the generator does not know the control token {token}; train it again")
    return int(token_id)


def training_ids(
    tokenizer: PreTrainedTokenizerBase, control_id: int, text: str, max_length: int
) -> list[int]:
    """Token ids of a training text: control token first, then the text, end-of-text last.

    A text that is cut off at `max_length` has no end-of-text token: it did not end there.
    """
    body = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [control_id, *body, tokenizer.eos_token_id][:max_length]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, control_id: int, prompt: str) -> list[int]:
    """Token ids that a candidate continues: the control token, then the prompt's text."""
    if not prompt:
        return [control_id]
    return [control_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks, lowest first: the longest ModuleList of the model."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of blocks to freeze")
    return max(lists, key=len)


def freeze_lower_blocks(model: PreTrainedModel, n_frozen: int | None) -> int:
    """Stop the gradients of the lower n blocks (null: two thirds of them) and return n."""
    found = blocks(model)
    n = len(found) * 2 // 3 if n_frozen is None else n_frozen
    check_frozen(n, len(found))
    for block in found[:n]:
        block.requires_grad_(False)
    return n


def check_frozen(n_frozen: int, n_blocks: int) -> None:
    """Raise ModelError unless a model of so many blocks has as many to freeze."""
    if n_frozen > n_blocks:
        raise ModelError(f"generator.frozen_blocks is {n_frozen}; the model has {n_blocks} blocks")


def add_adapters(model: PreTrainedModel, rank: int, control_ids: Sequence[int]) -> Any:
    """Low-rank adapters on every linear layer of the blocks (Hu et al., "LoRA: low-rank adaptation
    of large language models", 2021, section 4.1), scaled by 2, and trained rows for the control
    tokens; nothing else has gradients. `merge_and_unload` gives the plain model back.
    """
    from peft import LoraConfig, get_peft_model

    inside = {m for m in blocks(model).modules() if isinstance(m, nn.Linear | Conv1D)}
    names = [name for name, module in model.named_modules() if module in inside]
    settings = LoraConfig(
        r=rank,
        lora_alpha=_LORA_SCALE * rank,
        target_modules=names,
        trainable_token_indices=list(control_ids),
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in inside),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def count_parameters(config: Any) -> int:
    """Parameters of a causal language model so configured; nothing is allocated."""
    return sum(p.numel() for p in empty_model(AutoModelForCausalLM, config).parameters())


def load_causal_model(path: Path) -> PreTrainedModel:
    """A fine-tuned generator as it was saved."""
    return load_pretrained(AutoModelForCausalLM, path)


def load_sampler(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A fine-tuned generator as it was saved, and its tokenizer."""
    return load_causal_model(path), load_tokenizer(path)
