"""The fast attention gives the logits of transformers' DeBERTa."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, DebertaV2Config

from sentisynth.models.deberta import train_fast_attention, use_fast_attention
from sentisynth.models.inference import lay_out

V3 = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
VARIANTS = {
    "v3": V3,
    "v2-xlarge": V3 | {"conv_kernel_size": 3, "conv_act": "gelu"},
    "own projections": V3 | {"share_att_key": False},
    "no buckets": V3 | {"position_buckets": -1, "max_relative_positions": 16},
    "content to position alone": V3 | {"pos_att_type": ["c2p"]},
    "position to content alone": V3 | {"pos_att_type": ["p2c"]},
    "neither": V3 | {"pos_att_type": []},
    "no relative attention": {"relative_attention": False, "position_biased_input": True},
}


def classifier(**given: object) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "type_vocab_size": 0,
        "num_labels": 3,
        "pad_token_id": 0,
    }
    config = DebertaV2Config(**(sizes | given))
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():  # larger than at the start of a training
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 50, (5, length))
    mask = torch.ones_like(ids)
    for row in range(1, 5):
        mask[row, max(1, length - 3 * row) :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [1, 2, 9, 33])
@torch.inference_mode()
def test_the_logits_are_those_of_transformers(variant: str, length: int) -> None:
    inputs = batch(length)
    wanted = classifier(**VARIANTS[variant])(**inputs).logits
    found = lay_out(classifier(**VARIANTS[variant]), torch.float32)(**inputs).logits
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_only_models_with_relative_attention_are_changed() -> None:
    assert use_fast_attention(classifier(**V3))
    assert not use_fast_attention(classifier(**VARIANTS["no relative attention"]))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "no relative attention"])
def test_gradients_are_those_of_transformers(variant: str) -> None:
    inputs, labels = batch(9), torch.tensor([0, 1, 2, 0, 1])
    plain, fast = classifier(**VARIANTS[variant]), classifier(**VARIANTS[variant])
    train_fast_attention(fast)
    assert kinds(fast) != kinds(plain)  # the attention was replaced
    assert list(plain.state_dict()) == list(fast.state_dict())
    for model in (plain, fast):
        model(**inputs, labels=labels).loss.backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, atol=1e-4, rtol=1e-3, msg=name)


def kinds(model: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in model.modules()}


def test_dropout_falls_in_training_alone() -> None:
    model = classifier(**V3, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    train_fast_attention(model)
    inputs = batch(9)
    with torch.no_grad():
        calm = [model.eval()(**inputs).logits for _ in range(2)]
        noisy = [model.train()(**inputs).logits for _ in range(2)]
    assert calm[0].equal(calm[1]) and not noisy[0].equal(noisy[1])
