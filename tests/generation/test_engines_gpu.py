import pytest
import torch

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.data.units import Unit
from sentisynth.generation.batch_engine import BatchEngine
from sentisynth.models.generator import load_sampler
from tests.conftest import RESOURCES


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_greedy_tokens_on_a_gpu_are_those_of_the_cpu() -> None:
    sampling = SamplingConfig(max_new_tokens=40, top_k=1)
    rows = []
    for device in ("cpu", "cuda"):
        model, tokenizer = load_sampler(RESOURCES / "gpt2-mini")
        engine = BatchEngine(model.to(device), tokenizer, torch.float32)
        rows.append(engine([0, 17, 230], Unit(0, 0, 16), 1, sampling))
    assert rows[0] == rows[1]
