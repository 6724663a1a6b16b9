"""What only a GPU shows: recorded steps beside the same steps one by one, and beside the CPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.data.units import Unit
from sentisynth.generation.batch_engine import BatchEngine
from sentisynth.generation.gpt2 import Decoder
from sentisynth.generation.graphs import GraphedSteps
from sentisynth.models.classifier import load_classifier, score
from sentisynth.models.generator import load_sampler
from sentisynth.models.inference import lay_out
from sentisynth.seeding import candidate_uniforms
from tests.conftest import RESOURCES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PROMPT = [0, 17, 230]
SAMPLING = SamplingConfig(max_new_tokens=60, temperature=1.2, top_k=20)


def decoder(dtype: torch.dtype) -> Decoder:
    return Decoder(load_sampler(RESOURCES / "gpt2-mini")[0].to("cuda"), dtype)


def uniforms(first: int, n: int) -> torch.Tensor:
    return torch.from_numpy(candidate_uniforms(1, 0, first, n, 60)).to("cuda")


def test_greedy_tokens_on_a_gpu_are_those_of_the_cpu() -> None:
    sampling = SamplingConfig(max_new_tokens=40, top_k=1)
    rows = []
    for device in ("cpu", "cuda"):
        model, tokenizer = load_sampler(RESOURCES / "gpt2-mini")
        engine = BatchEngine(model.to(device), tokenizer, torch.float32)
        rows.append(engine([0, 17, 230], Unit(0, 0, 16), 1, sampling))
    assert rows[0] == rows[1]


@pytest.mark.parametrize("end_id", [0, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_replayed_steps_draw_the_tokens_of_the_same_steps_one_by_one(
    dtype: torch.dtype, end_id: int
) -> None:
    """Rows leave in between, and a second unit meets the graphs and buffers of the first."""
    model = decoder(dtype)
    logits, prefix = model.prefill(PROMPT)
    recorded, plain = (GraphedSteps(model, end_id, record=record) for record in (True, False))
    for first in (0, 40, 80):
        found = recorded(PROMPT, logits, prefix, uniforms(first, 40), SAMPLING)
        assert found == plain(PROMPT, logits, prefix, uniforms(first, 40), SAMPLING)
        assert found is not None and (min(map(len, found)) < 60) == (end_id == 0)


def test_a_unit_has_the_same_tokens_before_and_after_others() -> None:
    """The first time a shape runs as it is, later it is replayed."""
    model, tokenizer = load_sampler(RESOURCES / "gpt2-mini")
    engine = BatchEngine(model.to("cuda"), tokenizer, torch.bfloat16)

    def made(number: int, prompt: list[int]) -> Any:
        return engine(prompt, Unit(1, number, 64), 1, SAMPLING)

    first = made(0, PROMPT)
    for other in ([0], [0, *range(100, 140)]):  # another capacity, and back
        made(3, other)
    assert made(0, PROMPT) == first


def test_what_cannot_be_recorded_is_drawn_all_the_same() -> None:
    model, tokenizer = load_sampler(RESOURCES / "gpt2-mini")
    engine = BatchEngine(model.to("cuda"), tokenizer, torch.float32)
    for sampling in (SamplingConfig(top_k=0), SamplingConfig(top_k=5000, top_p=1.0)):
        rows = engine(PROMPT, Unit(0, 0, 16), 1, sampling)
        assert len(rows) == 16 and None not in rows


def test_rows_of_no_numbers_are_none() -> None:
    model, _ = load_sampler(RESOURCES / "gpt2-mini")
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    engine = BatchEngine(model.to("cuda"), SimpleNamespace(eos_token_id=0), torch.float32)
    assert engine(PROMPT, Unit(0, 0, 8), 1, SAMPLING) == [None] * 8


def test_scores_on_a_gpu_are_those_of_the_cpu() -> None:
    rows = [[2, *range(10, 10 + n), 3] for n in (3, 40, 11, 25)]
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = load_classifier("package:reviews-encoder-mini", ["no", "yes"])[0].to(device)
        found.append(torch.from_numpy(score(lay_out(model, torch.float32), rows, pad_id=0)))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)
