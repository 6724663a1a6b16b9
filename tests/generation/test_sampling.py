"""The sampler's distribution against transformers' own processors, in their order."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sentisynth.config.types import SamplingConfig
from sentisynth.generation.sampling import candidate_probs, penalise_, sample


def reference(logits: torch.Tensor, seen: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(config.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        steps.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        steps.append(TopPLogitsWarper(config.top_p))
    return steps(seen, logits.clone()).softmax(dim=-1)


def ours(logits: torch.Tensor, seen: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    probs, ids = candidate_probs(penalise_(logits.clone(), seen, config.repetition_penalty), config)
    return torch.zeros_like(logits).scatter_(1, ids, probs)


@pytest.mark.parametrize("top_k", [0, 1, 5, 50, 500])
@pytest.mark.parametrize("top_p", [0.1, 0.95, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("vocabulary", [7, 1000])
def test_distribution_is_that_of_transformers(
    top_k: int, top_p: float, penalty: float, vocabulary: int
) -> None:
    config = SamplingConfig(temperature=0.8, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    torch.manual_seed(top_k + vocabulary)
    logits = torch.randn(16, vocabulary) * 3
    seen = torch.randint(0, vocabulary, (16, 12))
    assert torch.allclose(ours(logits, seen, config), reference(logits, seen, config), atol=1e-6)


def test_tokens_tied_with_the_kth_are_kept() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    config = SamplingConfig(temperature=1.0, top_k=2, top_p=1.0, repetition_penalty=1.0)
    seen = torch.zeros(2, 1, dtype=torch.long)
    found = ours(logits, seen, config)
    assert torch.allclose(found, reference(logits, seen, config), atol=1e-6)
    assert (found > 0).sum(dim=1).tolist() == [4, 2]


def test_sampled_frequencies_follow_the_distribution() -> None:
    config = SamplingConfig(temperature=0.7, top_k=8, top_p=0.9, repetition_penalty=1.3)
    torch.manual_seed(0)
    logits, seen, n = torch.randn(1, 30) * 2, torch.tensor([[1, 2, 3]]), 20000
    probs = reference(logits, seen, config)[0].numpy()
    uniforms = torch.from_numpy(np.random.default_rng(0).random(n))
    drawn = sample(logits.repeat(n, 1), seen.repeat(n, 1), uniforms, config)
    counts = np.bincount(drawn.numpy(), minlength=30)
    kept = probs > 0
    assert counts[~kept].sum() == 0
    chi_square = ((counts[kept] - n * probs[kept]) ** 2 / (n * probs[kept])).sum()
    assert chi_square < 30  # at most 7 degrees of freedom: p < 1e-4 beyond


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_stay_inside_the_kept_tokens(uniform: float) -> None:
    config = SamplingConfig(top_k=4, top_p=0.5, repetition_penalty=1.0)
    logits = torch.tensor([[0.1, 5.0, 4.9, 0.0, -1.0]])
    token = sample(logits.clone(), torch.tensor([[0]]), torch.tensor([uniform]), config)
    assert token.item() in (1, 2)
