"""A classifier's training touches few rows of its embedding: work on those alone. V tokens.

A row whose token is in no training text gets no gradient. AdamW with decoupled decay (Loshchilov
and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2) then leaves its moments at
zero and multiplies it by 1 − λη at each step, so that its value at the end is known without doing
any step. What is trained is the same model with a smaller table.
"""

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Vocabulary:
    """The tokens that some texts use; special tokens keep their ids, for models ask for them."""

    def __init__(self, old_ids: np.ndarray) -> None:
        self._old = torch.from_numpy(old_ids)
        self._new = np.full(int(old_ids.max()) + 1, -1, np.int32)
        self._new[old_ids] = np.arange(len(old_ids), dtype=np.int32)

    def __len__(self) -> int:
        return len(self._old)

    def renumber(self, ids: np.ndarray) -> np.ndarray:
        """Token ids as rows of the smaller table."""
        return self._new[ids]

    def shrink(self, model: PreTrainedModel) -> None:
        """Leave the used rows alone in the model's embedding."""
        old = model.get_input_embeddings()
        new = nn.Embedding(
            len(self), old.embedding_dim, padding_idx=old.padding_idx, dtype=old.weight.dtype
        )
        new.weight.data.copy_(old.weight.data[self._old])
        model.set_input_embeddings(new)

    def grow(self, whole: torch.Tensor, small: torch.Tensor, decay: float) -> torch.Tensor:
        """The table (V, D) after training: the trained rows, and the others at their start `whole`
        times `decay`, the product of 1 − λη over the steps.
        """
        grown = whole * decay
        grown[self._old] = small.to(whole.dtype)
        return grown


def used_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *ids: np.ndarray
) -> Vocabulary | None:
    """The tokens in `ids` and the pad token, if the model can do with those alone.

    None where the embedding is not a plain trained table of its own (tied to an output layer, say),
    or a special token that the texts use cannot keep its id.
    """
    table = model.get_input_embeddings()
    if type(table) is not nn.Embedding or table.sparse or table.max_norm is not None:
        return None
    if table.padding_idx not in (None, tokenizer.pad_token_id):
        return None
    owners = [m for m in model.modules() for p in m.parameters(recurse=False) if p is table.weight]
    if len(owners) != 1 or not table.weight.requires_grad:
        return None
    used = np.unique(np.concatenate([[tokenizer.pad_token_id], *map(np.unique, ids)]))
    special = np.intersect1d(used, tokenizer.all_special_ids)
    if special.max() >= len(used) or len(used) == table.num_embeddings:
        return None
    old_ids = np.full(len(used), -1, np.int64)
    old_ids[special] = special
    old_ids[old_ids < 0] = np.setdiff1d(used, special)
    return Vocabulary(old_ids)


def embedding_name(model: PreTrainedModel) -> str:
    """The name of the embedding's weight among the model's parameters."""
    weight = model.get_input_embeddings().weight
    (name,) = [n for n, p in model.named_parameters() if p is weight]
    return name
