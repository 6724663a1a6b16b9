from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sentisynth.config.pretrain import PretrainConfig
from sentisynth.errors import ModelError
from sentisynth.training.tokenizer import train_tokenizer
from tests.conftest import reviews


def settings(kind: str, vocab_size: int = 600) -> PretrainConfig:
    values = {"name": "x", "kind": kind, "text": {"source": "x.txt"}}
    return PretrainConfig.model_validate({**values, "tokenizer": {"vocab_size": vocab_size}})


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return reviews("train", 300)["text"].to_pylist()


@pytest.mark.parametrize("kind", ["encoder", "generator"])
def test_a_tokenizer_has_the_size_asked_for_and_loads_again(
    kind: str, texts: list[str], tmp_path: Path
) -> None:
    made = train_tokenizer(settings(kind), texts)
    assert len(made) == 600
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == made.get_vocab()
    assert loaded(texts)["input_ids"] == made(texts)["input_ids"]
    assert loaded.decode(loaded("a good film")["input_ids"], skip_special_tokens=True).strip() == (
        "a good film"
    )


def test_an_encoder_reads_marks_that_stand_apart_and_marks_that_do_not_alike(
    texts: list[str],
) -> None:
    tokenizer = train_tokenizer(settings("encoder"), texts)
    written, apart = "It's good, but don't go.", "it 's good , but do n't go ."
    assert tokenizer(written)["input_ids"] == tokenizer(apart)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(apart)["input_ids"])
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]" and "n't" in tokens


@pytest.mark.parametrize("kind", ["encoder", "generator"])
def test_a_vocabulary_larger_than_the_corpus_supports_is_a_sentence(
    kind: str, texts: list[str]
) -> None:
    with pytest.raises(ModelError, match=r"vocab_size is 8192; the corpus supports \d+ pieces"):
        train_tokenizer(settings(kind, 8192), texts[:40])
