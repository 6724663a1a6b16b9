import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sentisynth.errors import ModelError
from sentisynth.models.generator import (
    blocks,
    control_token_id,
    freeze_lower_blocks,
    load_generator,
    prompt_ids,
    training_ids,
)
from sentisynth.models.loading import load_tokenizer
from sentisynth.training.tasks import language_rows
from tests.conftest import reviews

TOKENS = ["<NEG>", "<POS>"]


def corpus(n: int) -> pa.Table:
    return reviews("train", n).rename_columns(["text", "labels"])


def test_every_training_text_begins_with_its_class_and_ends(tiny_gpt2: Path) -> None:
    _, tokenizer = load_generator(str(tiny_gpt2), TOKENS)
    ids = [control_token_id(tokenizer, token) for token in TOKENS]
    table = corpus(40)
    rows = language_rows(table, tokenizer, ids, 128)
    found = np.split(rows.ids, rows.starts[1:-1])
    for row, label, text in zip(
        map(list, found), table["labels"].to_pylist(), table["text"].to_pylist(), strict=True
    ):
        assert row[0] == ids[label]
        assert row[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row[1:-1]).strip() == text
        assert not set(row[1:]) & set(ids)


def test_a_text_cut_off_does_not_pretend_to_end(tiny_gpt2: Path) -> None:
    _, tokenizer = load_generator(str(tiny_gpt2), TOKENS)
    row = training_ids(tokenizer, 9000, "a long text of more than a few words", 5)
    assert len(row) == 5 and row[0] == 9000 and tokenizer.eos_token_id not in row


def test_control_tokens_are_one_new_token_each(tiny_gpt2: Path) -> None:
    model, tokenizer = load_generator(str(tiny_gpt2), TOKENS)
    rows = model.get_input_embeddings().weight
    assert len(tokenizer) == rows.shape[0] == 8194
    assert model.get_output_embeddings().weight.shape[0] == 8194
    assert tokenizer("<POS>", add_special_tokens=False)["input_ids"] == [8193]


def test_a_prompt_follows_the_control_token(tiny_gpt2: Path) -> None:
    _, tokenizer = load_generator(str(tiny_gpt2), TOKENS)
    control = control_token_id(tokenizer, "<POS>")
    assert prompt_ids(tokenizer, control, "") == [control]
    ids = prompt_ids(tokenizer, control, "the film")
    assert ids[0] == control and tokenizer.decode(ids[1:]).strip() == "the film"


def test_an_unknown_control_token_is_refused(tiny_gpt2: Path) -> None:
    _, tokenizer = load_generator(str(tiny_gpt2), TOKENS)
    with pytest.raises(ModelError, match="<MEH>"):
        control_token_id(tokenizer, "<MEH>")


def test_the_lower_two_thirds_are_frozen_by_default(tiny_gpt2: Path) -> None:
    model, _ = load_generator(str(tiny_gpt2), TOKENS)
    assert freeze_lower_blocks(model, None) == 2
    trained = [any(p.requires_grad for p in block.parameters()) for block in blocks(model)]
    assert trained == [False, False, True]
    assert model.get_input_embeddings().weight.requires_grad


def test_more_frozen_blocks_than_there_are(tiny_gpt2: Path) -> None:
    model, _ = load_generator(str(tiny_gpt2), TOKENS)
    with pytest.raises(ModelError, match="frozen_blocks is 9; the model has 3"):
        freeze_lower_blocks(model, 9)


@pytest.mark.parametrize("token", ["Ġgood", "<|endoftext|>"])
def test_a_word_of_the_vocabulary_cannot_be_a_control_token(tiny_gpt2: Path, token: str) -> None:
    with pytest.raises(ModelError, match="is a token of"):
        load_generator(str(tiny_gpt2), ["<NEG>", token])


def test_the_end_of_texts_cannot_be_a_control_token_where_their_beginning_is_another(
    tiny_gpt2: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_gpt2)
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    shutil.copytree(tiny_gpt2, tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="'</s>' is a token of"):
        load_generator(str(tmp_path / "model"), ["<NEG>", "</s>"])
