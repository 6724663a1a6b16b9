import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sentisynth.errors import ModelError
from sentisynth.models.classifier import (
    check_verifier,
    load_classifier,
    load_verifier,
    predict_logits,
    score,
    tokenize,
)
from sentisynth.models.loading import model_digest, resolve_model, save_model
from tests.conftest import RESOURCES, reviews


@pytest.mark.parametrize("n_classes", [2, 5])
def test_a_head_of_k_classes_is_put_on_encoders_and_decoders(
    tiny_bert: Path, tiny_gpt2: Path, n_classes: int
) -> None:
    labels = [f"class {i}" for i in range(n_classes)]
    for path in (tiny_bert, tiny_gpt2):
        model, tokenizer = load_classifier(str(path), labels)
        logits = predict_logits(model, tokenizer, ["one text", "another"], max_length=16)
        assert logits.shape == (2, n_classes) and logits.dtype == np.float32
        assert model.config.id2label[1] == "class 1"


@pytest.mark.parametrize("kind", ["tiny_bert", "tiny_gpt2"])
def test_logits_do_not_depend_on_the_company(kind: str, request: pytest.FixtureRequest) -> None:
    model, tokenizer = load_classifier(str(request.getfixturevalue(kind)), ["n", "p"])
    texts = reviews("validation", 20)["text"].to_pylist()
    together = predict_logits(model, tokenizer, texts, max_length=48, tokens_per_batch=256)
    alone = [predict_logits(model, tokenizer, [t], max_length=48)[0] for t in texts]
    assert np.allclose(together, np.array(alone), atol=1e-5)


@pytest.mark.parametrize("kind", ["tiny_bert", "tiny_gpt2"])
def test_a_text_has_at_least_one_token_and_at_most_so_many(
    kind: str, request: pytest.FixtureRequest
) -> None:
    _, tokenizer = load_classifier(str(request.getfixturevalue(kind)), ["n", "p"])
    ids = tokenize(tokenizer, ["", "one text", "many words " * 50], 12)
    assert all(ids) and max(map(len, ids)) == len(ids[2]) == 12
    assert tokenize(tokenizer, ["one text"], 12) == ids[1:2]


def test_logits_are_those_of_the_tokens_in_their_order(tiny_bert: Path) -> None:
    model, tokenizer = load_classifier(str(tiny_bert), ["n", "p"])
    texts = reviews("validation", 8)["text"].to_pylist()
    ids, pad_id = tokenize(tokenizer, texts, 32), tokenizer.pad_token_id
    wanted = predict_logits(model, tokenizer, texts, max_length=32)
    assert np.array_equal(score(model, ids, pad_id=pad_id), wanted)
    backwards = score(model, ids[::-1], pad_id=pad_id)[::-1]
    assert np.allclose(backwards, wanted, atol=1e-5)


def test_no_rows_have_no_logits(tiny_bert: Path) -> None:
    model, _ = load_classifier(str(tiny_bert), ["n", "p", "x"])
    assert score(model, [], pad_id=0).shape == (0, 3)


def test_a_fresh_student_takes_the_teachers_tokenizer(tiny_gpt2: Path) -> None:
    model, tokenizer = load_classifier("fresh:bert-tiny", ["n", "p"], teacher=tiny_gpt2)
    assert model.config.num_hidden_layers == 2 and model.config.hidden_size == 128
    assert model.config.vocab_size == len(tokenizer)


def test_a_fresh_student_is_the_same_for_the_same_seed(tiny_gpt2: Path) -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        model, _ = load_classifier("fresh:bert-tiny", ["n", "p"], teacher=tiny_gpt2)
        weights.append(model.classifier.weight)
    assert torch.equal(*weights)


def test_mistakes_in_a_reference_are_one_sentence(tmp_path: Path, tiny_bert: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_bert / name).read_bytes())
    for reference, told in (
        (str(tmp_path), "has no weights"),
        (str(tmp_path / "absent"), "there is no model directory"),
        ("package:absent", "shipped are gpt2-mini, reviews-encoder-mini"),
        ("fresh:bert-huge", "write fresh:bert-tiny or fresh:bert-mini"),
        (str(RESOURCES), "has no config.json"),
    ):
        with pytest.raises(ModelError, match=told):
            load_classifier(reference, ["n", "p"], teacher=tiny_bert)


def test_a_name_that_is_nowhere_is_one_sentence() -> None:
    with pytest.raises(ModelError, match="no local directory and no Hub model"):
        resolve_model("no-such-org/no-such-model")


def test_a_teacher_with_other_classes_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    model, tokenizer = load_classifier(str(tiny_bert), ["a", "b", "c"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for refuse in (load_verifier, check_verifier):
        with pytest.raises(ModelError, match="has 3 classes, the data 2"):
            refuse(tmp_path, 2)
    found, _ = load_verifier(tmp_path, 3)
    assert torch.equal(found.classifier.weight, model.classifier.weight)


def test_classes_are_counted_without_the_weights(tmp_path: Path, tiny_bert: Path) -> None:
    model, _ = load_classifier(str(tiny_bert), ["a", "b", "c"])
    model.config.save_pretrained(tmp_path)
    check_verifier(tmp_path, 3)


def test_the_digest_follows_the_weights(tmp_path: Path, tiny_bert: Path) -> None:
    for file in tiny_bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "README.md").write_text("a card")
    assert model_digest(tmp_path) == model_digest(tiny_bert)
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert model_digest(tmp_path) != model_digest(tiny_bert)


def test_weights_that_do_not_fit_the_body_are_refused(tmp_path: Path, tiny_bert: Path) -> None:
    for file in tiny_bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(ModelError, match="do not have the shape of config.json"):
        load_classifier(str(tmp_path), ["n", "p"])


def test_torn_weights_and_a_missing_tokenizer_are_one_sentence(
    tmp_path: Path, tiny_gpt2: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_gpt2 / name).read_bytes())
    with pytest.raises(ModelError, match="tokenizer"):
        load_classifier(str(tmp_path), ["n", "p"])
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match="is damaged"):
        load_classifier(str(tmp_path), ["n", "p"])


def test_the_first_token_alone_gives_the_same_logits_and_gradients(tiny_bert: Path) -> None:
    from sentisynth.models.first_token import use_first_token_alone

    found = []
    for cut in (False, True):
        torch.manual_seed(0)
        model, tokenizer = load_classifier(str(tiny_bert), ["n", "p"])
        model.eval()  # no dropout
        if cut:
            use_first_token_alone(model)
            assert "forward" in vars(model.bert.encoder.layer[-1])  # the last layer was cut
        texts = ["a film", "a much longer text about another film", "no"]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        logits = model(**batch).logits
        logits.square().sum().backward()
        found.append([logits, *(p.grad for p in model.parameters())])
    for whole, first in zip(*found, strict=True):
        torch.testing.assert_close(whole, first, atol=1e-6, rtol=1e-5)


def test_a_head_for_other_classes_is_a_sentence(tiny_bert: Path, tmp_path: Path) -> None:
    model, tokenizer = load_classifier(str(tiny_bert), ["a", "b", "c"])
    save_model(model, tokenizer, tmp_path)
    with pytest.raises(ModelError, match=r"has a head for 3 classes .*, the data has 2"):
        load_classifier(str(tmp_path), ["n", "p"])


def test_a_student_can_start_from_the_teachers_first_layers(tiny_gpt2: Path) -> None:
    model, tokenizer = load_classifier("teacher:2", ["n", "p"], teacher=tiny_gpt2)
    whole, _ = load_classifier(str(tiny_gpt2), ["n", "p"])
    assert len(model.transformer.h) == model.config.num_hidden_layers == 2
    assert torch.equal(
        model.transformer.h[1].mlp.c_fc.weight, whole.transformer.h[1].mlp.c_fc.weight
    )
    assert model(**tokenizer("a film", return_tensors="pt")).logits.shape == (1, 2)
    for wrong in ("teacher:0", "teacher:4", "teacher:two"):
        with pytest.raises(ModelError, match=f"student.model is '{wrong}'; write teacher:N with N"):
            load_classifier(wrong, ["n", "p"], teacher=tiny_gpt2)
    with pytest.raises(ModelError, match="needs a teacher"):
        load_classifier("teacher:2", ["n", "p"])
