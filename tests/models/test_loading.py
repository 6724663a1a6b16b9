import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from huggingface_hub import constants

from sentisynth.errors import ModelError
from sentisynth.models.loading import load_tokenizer, read_config, resolve_model

PIECES = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]"}


def test_a_tokenizer_that_is_a_sentencepiece_model_alone_loads(tmp_path: Path) -> None:
    """As DeBERTa-v3's on the Hub."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a fine film", "the plot is thin", "it works"] * 20),
        model_writer=model,
        vocab_size=24,
        minloglevel=2,
        **{f"{name}_id": place for place, name in enumerate(PIECES)},
        **{f"{name}_piece": piece for name, piece in PIECES.items()},
    )
    (tmp_path / "spm.model").write_bytes(model.getvalue())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer("a fine film")["input_ids"]) == "[CLS] a fine film[SEP]"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A Hub cache without a network; the result adds a revision of org/name to it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def add(revision: str, *files: str) -> None:
        ref = tmp_path / "models--org--name" / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        commit = ref.name.encode().hex().rjust(40, "0")
        ref.write_text(commit)
        folder = tmp_path / "models--org--name" / "snapshots" / commit
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_bytes((8).to_bytes(8, "little") + b"{}      ")

    return add


def test_a_cached_conversion_needs_no_network(cached: Callable[..., None]) -> None:
    cached("main", "config.json", "pytorch_model.bin")
    cached("refs/pr/2", "config.json")
    cached("refs/pr/5", "config.json", "model.safetensors")
    assert resolve_model("org/name").name.endswith(b"5".hex())


def test_pickled_weights_alone_are_a_sentence_without_a_network(
    cached: Callable[..., None],
) -> None:
    cached("main", "config.json", "pytorch_model.bin")
    with pytest.raises(ModelError, match="no Hub model could be read as 'org/name'"):
        resolve_model("org/name")


@pytest.mark.parametrize(
    "wrong", [{"n_embd": "768"}, {"layer_norm_epsilon": "small"}, {"n_head": [12]}]
)
def test_a_configuration_of_wrong_types_is_a_sentence(tmp_path: Path, wrong: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"} | wrong))
    with pytest.raises(ModelError, match="has a config.json that does not load"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"version": "1.0", "model": {"type": "Future"}}'])
def test_a_tokenizer_that_cannot_be_read_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="has no tokenizer that loads"):
        load_tokenizer(tmp_path)
