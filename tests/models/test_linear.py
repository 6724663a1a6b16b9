"""Laid-out layers give what torch's give."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    T5Config,
)
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from sentisynth.models.inference import lay_out
from sentisynth.models.linear import FUSED, Linear, linear_of

SIZES = {"vocab_size": 60, "num_labels": 3, "pad_token_id": 1}
WIDE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
CONFIGS = {
    "bert": BertConfig(**SIZES, **WIDE, num_hidden_layers=2),
    "bert, relu": BertConfig(**SIZES, **WIDE, num_hidden_layers=2, hidden_act="relu"),
    "bert, silu": BertConfig(**SIZES, **WIDE, num_hidden_layers=2, hidden_act="silu"),
    "roberta": RobertaConfig(**SIZES, **WIDE, num_hidden_layers=2),
    "distilbert": DistilBertConfig(**SIZES, dim=32, n_heads=4, n_layers=2, hidden_dim=48),
    "llama": LlamaConfig(**SIZES, **WIDE, num_hidden_layers=2),
    "t5": T5Config(
        **SIZES,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_heads=4,
        num_layers=2,
        eos_token_id=5,
        decoder_start_token_id=0,
    ),
    "gpt2": GPT2Config(**SIZES, n_embd=32, n_head=4, n_layer=2),
}


@pytest.mark.parametrize("activation", [None, *FUSED])
@pytest.mark.parametrize("rows", [1, 7, 300])
@torch.inference_mode()
def test_a_layer_its_activation_and_a_residual(activation: str | None, rows: int) -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(rows, 24), torch.randn(rows, 40)
    for layer in (nn.Linear(24, 40), Conv1D(40, 24)):
        wanted = layer(x)
        if activation is not None:
            wanted = ACT2FN[activation](wanted)
        found = linear_of(layer, activation)
        torch.testing.assert_close(found(x), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found(x, residual), wanted + residual, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("engine", ["x86", "onednn"])
@pytest.mark.parametrize("activation", [None, "gelu_new"])
@pytest.mark.parametrize("shape", [(1,), (2, 16), (33,), (300,)])
@torch.inference_mode()
def test_weights_in_fp16_work_in_fp32_on_a_cpu(
    activation: str | None, shape: tuple[int, ...], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same function with few rows and with many, whichever kernel there is for each."""
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this PyTorch has no {engine}")
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    torch.manual_seed(0)
    x, residual, layer = torch.randn(*shape, 24), torch.randn(*shape, 40), nn.Linear(24, 40)
    half = copy.deepcopy(layer).half()
    found = Linear(half.weight, layer.bias, activation)
    assert (found._few_rows is not None) == (engine == "x86")
    wanted = x @ half.weight.float().T + layer.bias
    wanted = ACT2FN[activation](wanted) if activation else wanted
    assert found(x).dtype == torch.float32
    torch.testing.assert_close(found(x), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found(x, residual), wanted + residual, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found(x), layer(x), atol=1e-6, rtol=0)  # they are rounded


@torch.inference_mode()
def test_no_bias_and_more_axes() -> None:
    layer = nn.Linear(24, 40, bias=False)
    x = torch.randn(3, 5, 24)
    torch.testing.assert_close(linear_of(layer)(x), layer(x), atol=1e-5, rtol=1e-5)


def test_an_activation_that_cannot_be_fused_is_refused() -> None:
    with pytest.raises(ValueError, match="'silu'"):
        Linear(torch.ones(2, 2), None, "silu")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_classifiers_keep_their_logits(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[name]).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    inputs = {
        "input_ids": torch.cat((torch.randint(6, 60, (4, 8)), torch.full((4, 1), 5)), dim=1),
        "attention_mask": torch.ones(4, 9, dtype=torch.long),
    }
    wanted = model(**inputs).logits
    laid_out = lay_out(model, dtype)
    is_replaced = any(isinstance(module, Linear) for module in laid_out.modules())
    assert is_replaced or name == "t5"  # which reads its weights itself
    found = laid_out(**inputs).logits
    assert dtype == torch.float32 or not found.equal(wanted)
    assert found.dtype == torch.float32
    off = 1e-4 if dtype == torch.float32 else 0.08 * wanted.abs().max().item()
    torch.testing.assert_close(found, wanted, atol=off, rtol=0)
