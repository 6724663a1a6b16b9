"""What a pretraining begins with: embeddings from co-occurrence, weights of a language model.

V pieces, E width.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from sentisynth.config.pretrain import PretrainConfig
from sentisynth.errors import ModelError
from sentisynth.models.loading import load_pretrained, load_tokenizer, read_config
from sentisynth.models.pretraining import ReplacedTokenModel
from sentisynth.seeding import derive_seed
from sentisynth.training.cooccurrence import cooccurrence_embeddings
from sentisynth.training.rows import Rows

EMBEDDINGS, _TABLE = "embeddings.safetensors", "embeddings"
OBJECTIVE = "pretraining_objective"
"""Key of a base model's config.json."""


def embed(config: PretrainConfig, tokenizer: Path, rows: Path, out: Path) -> None:
    """Write what the tables of embeddings begin with: float32 (V, E), for the widest of them."""
    pieces = load_tokenizer(tokenizer)
    if len(pieces) <= config.table_width:  # known here alone where the tokenizer is a given one
        raise ModelError(
            f"the tokenizer has {len(pieces)} pieces; with embeddings=cooccurrence there must be "
            f"more of them than the width, which is {config.table_width}: set embeddings=random"
        )
    seed = derive_seed(config.seed, "embeddings")
    table_VE = cooccurrence_embeddings(
        Rows.map(rows), len(pieces), config.table_width, pieces.all_special_ids, seed
    )
    save_file({_TABLE: torch.from_numpy(table_VE)}, out / EMBEDDINGS)


def put_embeddings(model: nn.Module, file: Path) -> None:
    """Give each table of embeddings in a model the first columns of the one in a file, scaled to
    the model's own standard deviation. Pieces that have none keep their random ones.
    """
    found_VE = load_file(file)[_TABLE]
    is_known_V = found_VE.ne(0).any(dim=1)
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            weight_VE = part.get_input_embeddings().weight.data
            columns_VE = found_VE[:, : weight_VE.shape[1]]
            scale = part.config.initializer_range / columns_VE[is_known_V].std()
            weight_VE[is_known_V] = scale * columns_VE[is_known_V]


def start_from(
    model: ReplacedTokenModel,
    path: Path,
    config: PretrainConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Give D's encoder the weights of a language model of its shape, in place. Raises ModelError.

    Where G shares D's embeddings, it gets them too; all else of G stays random. That is on purpose:
    what a G proposes that begins with them is so likely that D learned less
    (benchmarks/README.md, "Decoupled and coupled").
    """
    source = load_masked_model(path, tokenizer, "start.model")
    check_start(path, config)
    model.detector.encoder.load_state_dict(source.base_model.state_dict())


def check_start(path: Path, config: PretrainConfig) -> None:
    """Raise ModelError unless a directory holds a language model of the encoder's shape."""
    check_masked_model(path, "start.model")
    found = read_config(path)
    wanted = {
        "num_hidden_layers": config.shape.layers,
        "hidden_size": config.shape.width,
        "num_attention_heads": config.shape.heads,
        "max_position_embeddings": config.positions,
    }
    for key, value in wanted.items():
        if getattr(found, key) != value:
            raise ModelError(
                f"start.model: {path} has {key}={getattr(found, key)}, the encoder {value}; train "
                f"one with objective=causal and the encoder's shape"
            )


def load_masked_model(path: Path, tokenizer: PreTrainedTokenizerBase, key: str) -> Any:
    """A masked language model with the same tokenizer, named by `key`. Raises ModelError."""
    check_masked_model(path, key)
    is_other = read_config(path).vocab_size != len(tokenizer)
    if is_other or load_tokenizer(path).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"{key}: the tokenizer in {path} is another one; train that model with "
            f"tokenizer.model set to the same model"
        )
    return load_pretrained(AutoModelForMaskedLM, path).eval()


def check_masked_model(path: Path, key: str) -> None:
    """Raise ModelError unless a model directory is of the kind that `objective=masked` makes: a
    causal encoder looks the same, and `start.model` takes it too, but never filled a mask.
    """
    config = read_config(path)
    kinds = config.architectures
    told = ", ".join(kinds or ["model without a head"])
    objective = getattr(config, OBJECTIVE, "masked")  # older ones do not say it
    if kinds == ["DebertaV2ForMaskedLM"] and (objective == "masked" or key == "start.model"):
        return
    if kinds == ["DebertaV2ForMaskedLM"]:
        told = f"model that was trained with objective={objective}"
    raise ModelError(
        f"{key}: {path} has a {told}; give the model of a pretraining with objective=masked"
    )
