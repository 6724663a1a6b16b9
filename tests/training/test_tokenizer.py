from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sentisynth.config.pretrain import PretrainConfig
from sentisynth.errors import ModelError
from sentisynth.training.tokenizer import train_tokenizer
from tests.conftest import reviews


def settings(kind: str, vocab_size: int = 600, *, lowercase: bool = True) -> PretrainConfig:
    text = {"source": "x.txt", "lowercase": lowercase}
    values = {"name": "x", "kind": kind, "text": text, "tokenizer": {"vocab_size": vocab_size}}
    return PretrainConfig.model_validate(values)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return reviews("train", 300)["text"].to_pylist()


@pytest.mark.parametrize("kind", ["encoder", "generator"])
def test_a_tokenizer_has_the_size_asked_for_and_loads_again(
    kind: str, texts: list[str], tmp_path: Path
) -> None:
    made = train_tokenizer(settings(kind), lambda: texts)
    assert len(made) == 600
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == made.get_vocab()
    assert loaded(texts)["input_ids"] == made(texts)["input_ids"]
    assert loaded.decode(loaded("a good film")["input_ids"], skip_special_tokens=True).strip() == (
        "a good film"
    )


@pytest.mark.parametrize("kind", ["encoder", "generator"])
def test_the_same_corpus_gives_the_same_tokenizer(kind: str, texts: list[str]) -> None:
    first, second = (train_tokenizer(settings(kind, 1500), lambda: texts) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_many_letters_are_known() -> None:
    """A script whose letters are words of their own, and one whose letters are not."""
    for first, size in ((0x4E00, 405), (0xAC00, 1700)):
        letters = [chr(first + i) for i in range(400)]
        texts = ["".join(letters[i % 400] for i in range(n, n + 8)) for n in range(900)]
        config = settings("encoder", size, lowercase=False)
        tokenizer = train_tokenizer(config, lambda texts=texts: texts)
        ids = [token for row in tokenizer(texts)["input_ids"] for token in row]
        assert tokenizer.unk_token_id not in ids


def test_letters_continue_words_where_they_do_and_nowhere_else(texts: list[str]) -> None:
    pieces = train_tokenizer(settings("encoder"), lambda: texts).get_vocab()
    assert "##e" in pieces and "." in pieces and "##." not in pieces


@pytest.mark.parametrize("kind", ["encoder", "generator"])
def test_a_vocabulary_smaller_than_the_letters_is_a_sentence(kind: str, texts: list[str]) -> None:
    with pytest.raises(ModelError, match="vocab_size is 64; letters and special tokens alone are"):
        train_tokenizer(settings(kind, 64), lambda: texts)


def test_an_encoder_reads_marks_that_stand_apart_and_marks_that_do_not_alike(
    texts: list[str],
) -> None:
    tokenizer = train_tokenizer(settings("encoder"), lambda: texts)
    written, apart = "It's good, but don't go.", "it 's good , but do n't go ."
    assert tokenizer(written)["input_ids"] == tokenizer(apart)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(apart)["input_ids"])
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]" and "n't" in tokens


@pytest.mark.parametrize("kind", ["encoder", "generator"])
def test_a_vocabulary_larger_than_the_corpus_supports_is_a_sentence(
    kind: str, texts: list[str]
) -> None:
    with pytest.raises(ModelError, match=r"vocab_size is 8192; the corpus supports \d+ pieces"):
        train_tokenizer(settings(kind, 8192), lambda: texts[:40])
