"""Layers in 8 bits: the integers are exact, and what rounding costs is small."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers.activations import ACT2FN

from sentisynth.errors import ModelError
from sentisynth.models import kernels
from sentisynth.models.devices import DeviceFacts, check_int8, inference_dtype, multiplies_int8
from sentisynth.models.int8 import Int8Linear
from sentisynth.models.linear import FUSED

CPU = torch.device("cpu")
needs_vnni = pytest.mark.skipif(not multiplies_int8("cpu"), reason="needs a CPU with VNNI or AMX")


@pytest.fixture(params=["kernels", "oneDNN"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who multiplies."""
    if request.param == "oneDNN":
        monkeypatch.setattr("sentisynth.models.int8.library", lambda: None)
    elif kernels.library() is None:
        pytest.skip("needs a C++ compiler at installation, and a CPU with VNNI")
    return str(request.param)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Each row in 8 bits, written down plainly."""
    scale = x.abs().amax(dim=1, keepdim=True) / 127
    return (x / scale).round().clamp(-127, 127).double() * scale


@needs_vnni
@pytest.mark.parametrize(("n_in", "n_out"), [(5, 3), (24, 40), (256, 700)])
@pytest.mark.parametrize("rows", [1, 7, 130])
@torch.inference_mode()
def test_the_product_of_the_rounded_is_exact(by: str, n_in: int, n_out: int, rows: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, n_in), torch.randn(n_out, n_in), torch.randn(n_out)
    wanted = (rounded(x) @ rounded(weight).T + bias).float()
    for laid in (weight, weight.T.contiguous().T):  # as Conv1D has it
        torch.testing.assert_close(Int8Linear(laid, bias)(x), wanted, atol=1e-5, rtol=1e-5)
    exact = x @ weight.T
    error = (Int8Linear(weight, None)(x) - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.025


@needs_vnni
@pytest.mark.parametrize("activation", [None, *FUSED])
@torch.inference_mode()
def test_its_activation_and_a_residual(by: str, activation: str | None) -> None:
    torch.manual_seed(0)
    x, residual, weight, bias = (torch.randn(*s) for s in ((9, 24), (9, 40), (40, 24), (40,)))
    wanted = (rounded(x) @ rounded(weight).T + bias).float()
    wanted = ACT2FN[activation](wanted) if activation else wanted
    found, before = Int8Linear(weight, bias, activation), x.clone()
    torch.testing.assert_close(found(x), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found(x, residual), wanted + residual, atol=1e-5, rtol=1e-5)
    assert torch.equal(x, before)


@needs_vnni
@torch.inference_mode()
def test_a_row_does_not_depend_on_those_beside_it(by: str) -> None:
    torch.manual_seed(0)
    layer, x = Int8Linear(torch.randn(64, 32), torch.randn(64)), torch.randn(50, 32)
    x[7] *= 1e4
    for n in range(1, 8):
        assert torch.equal(layer(x)[:n], layer(x[:n]))


@needs_vnni
@torch.inference_mode()
def test_rows_of_zeros_and_rows_that_are_not_finite(by: str) -> None:
    weight = torch.randn(6, 4)
    weight[2] = 0
    layer = Int8Linear(weight, torch.arange(6.0))
    x = torch.zeros(4, 4)
    x[1, 0], x[2, 0], x[3] = float("nan"), float("inf"), 1e-42
    y = layer(x)
    assert torch.equal(y[0], torch.arange(6.0)) and torch.equal(y[3], torch.arange(6.0))
    assert not y[1].isfinite().any() and not y[2].isfinite().any()


def test_other_devices_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="this is a GPU"):
        inference_dtype("int8", torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ModelError, match=r"VNNI or AMX\), and this is a CPU \("):
        inference_dtype("int8", CPU)
    with pytest.raises(ModelError, match="take another precision, or auto"):
        check_int8("cpu")


@pytest.mark.parametrize(
    ("kind", "auto", "asked", "wanted"),
    [
        ("cpu", "fp32", "int8", "fp32"),
        ("cpu", "bf16", "int8", "bf16"),
        ("cpu", "bf16", "fp16", "fp32"),
        ("cpu", "bf16", "fp32", "fp32"),
        ("cuda", "bf16", "fp16", "fp16"),
        ("cuda", "bf16", "auto", "bf16"),
        ("cuda", "bf16", "int8", "bf16"),
    ],
)
def test_what_a_teacher_computes_in(kind: str, auto: str, asked: str, wanted: str) -> None:
    facts = DeviceFacts(kind=kind, name="", memory=1, precision=auto)
    assert facts.verification(asked) == wanted


def test_kernels_that_cannot_be_used_are_left(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Not compiled, of another system, of another version, on a CPU without what they need."""
    of_another = tmp_path / "compiled.so"
    of_another.write_bytes(b"no library")
    strange = SimpleNamespace(sentisynth_version=lambda: -1)
    for what, value in (
        ("find_spec", lambda _: None),
        ("find_spec", lambda _: SimpleNamespace(origin=str(of_another))),
        ("ctypes.CDLL", lambda _: strange),
        ("torch.cpu._is_vnni_supported", lambda: False),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"sentisynth.models.kernels.{what}", value)
            assert kernels.library.__wrapped__() is None


def test_a_device_is_named_with_what_gives_other_bytes() -> None:
    facts = DeviceFacts(kind="cpu", name="", memory=1, precision="fp32", has_kernels=True)
    assert facts.named("int8") == "cpu with kernels 1 of our own" and facts.named("fp32") == "cpu"
    assert replace(facts, has_kernels=False).named("int8") == "cpu"
