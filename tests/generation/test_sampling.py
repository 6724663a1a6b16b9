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

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.generation.likeliest import History
from sentisynth.generation.sampling import (
    distribution,
    draw,
    is_short,
    short_distribution,
    slack,
)


def reference(logits: torch.Tensor, seen: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(config.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        steps.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        steps.append(TopPLogitsWarper(config.top_p))
    return steps(seen, logits.clone()).softmax(dim=-1)


def history(seen: torch.Tensor, room: int = 0) -> History:
    """Rows of seen tokens, each added as the engine adds them."""
    found = History.begin([0], len(seen), seen.shape[1] + 1 + room, seen.device)
    for position in range(seen.shape[1]):
        found.add(seen[:, position], torch.tensor([position + 1]))
    return found


def ours(logits: torch.Tensor, seen: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    probs, ids = distribution(logits.clone(), history(seen), config)
    return torch.zeros_like(logits).scatter_add_(1, ids, probs)


def theirs(logits: torch.Tensor, seen: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    return reference(logits, torch.cat((torch.zeros_like(seen[:, :1]), seen), dim=1), config)


@pytest.mark.parametrize("top_k", [0, 1, 5, 50, 500])
@pytest.mark.parametrize("top_p", [0.1, 0.95, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("vocabulary", [7, 1000, 5001])
def test_distribution_is_that_of_transformers(
    top_k: int, top_p: float, penalty: float, vocabulary: int
) -> None:
    config = SamplingConfig(temperature=0.8, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    torch.manual_seed(top_k + vocabulary)
    logits = torch.randn(16, vocabulary) * 3
    seen = torch.randint(0, vocabulary, (16, 12))
    seen[:, 6:] = logits.topk(6).indices  # the penalty decides what is kept
    seen[:, -1] = seen[:, 0]  # and counts once
    assert torch.allclose(ours(logits, seen, config), theirs(logits, seen, config), atol=1e-6)


@pytest.mark.parametrize("n_tied", [1, 15, 16, 300])
@pytest.mark.parametrize("penalty", [1.0, 1.2, 0.8])
def test_ties_at_the_kth_of_a_large_vocabulary(n_tied: int, penalty: float) -> None:
    """More ties than the short way has room for are noticed, and taken the long way."""
    config = SamplingConfig(temperature=0.7, top_k=20, top_p=1.0, repetition_penalty=penalty)
    torch.manual_seed(n_tied)
    logits = torch.randn(4, 9000)
    order = logits[1].argsort(descending=True)
    logits[1, order[19 : 19 + n_tied]] = logits[1, order[19]].clone()
    seen = torch.randint(0, 9000, (4, 12))
    seen[1, :3] = order[[0, 4, 25]]
    assert is_short(9000, config)
    *_, overflow = short_distribution(logits.clone(), history(seen), config)
    if penalty == 1.0:  # else other tokens are the k-th
        assert bool(overflow) == (n_tied > slack(20))
    assert torch.allclose(ours(logits, seen, config), theirs(logits, seen, config), atol=1e-6)


@pytest.mark.parametrize("vocabulary", [9000, 70000])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("top_p", [0.3, 0.95])
def test_nuclei_of_all_sizes(vocabulary: int, penalty: float, top_p: float) -> None:
    """Rows whose nucleus is a few tokens, hundreds, thousands, or most of the vocabulary."""
    config = SamplingConfig(temperature=0.7, top_k=0, top_p=top_p, repetition_penalty=penalty)
    torch.manual_seed(vocabulary)
    logits = torch.randn(8, vocabulary) * torch.tensor([8, 3, 2.0, 1.5, 1, 0.7, 0.3, 0.01])[:, None]
    seen = torch.randint(0, vocabulary, (8, 12))
    seen[:, 6:] = logits.topk(6).indices
    found, wanted = ours(logits, seen, config), theirs(logits, seen, config)
    n_kept = (wanted > 0).sum(dim=1)
    assert n_kept.min() < 256 < n_kept.max()
    # fp32's sum of 70,000 may end one token sooner or later, of 2e-5
    assert_same_but_for_ties(found, wanted, atol=2e-5)
    for row in range(len(logits)):  # a row does not depend on those beside it
        alone = ours(logits[row : row + 1], seen[row : row + 1], config)[0]
        assert torch.allclose(alone, found[row], rtol=1e-5, atol=2e-5 if n_kept[row] > 256 else 0)


def test_a_draw_from_all_of_the_vocabulary_reaches_both_ends() -> None:
    """Nothing is cut and nothing sorted: impossible tokens may lie between."""
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).repeat(4, 1)
    ids = torch.arange(5).repeat(4, 1)
    uniforms = torch.tensor([0.0, 0.49, 0.51, 1.0], dtype=torch.float64)
    assert draw(probs, ids, uniforms).tolist() == [1, 1, 3, 3]


def test_a_coarse_grid_of_logits_is_full_of_ties() -> None:
    config = SamplingConfig(temperature=0.8, top_k=50, top_p=0.95, repetition_penalty=1.2)
    torch.manual_seed(0)
    logits = (torch.randn(8, 9000) * 4).round() / 4
    seen = torch.randint(0, 9000, (8, 12))
    found, wanted = ours(logits, seen, config), theirs(logits, seen, config)
    assert_same_but_for_ties(found, wanted)
    config = config.model_copy(update={"top_p": 1.0})
    assert torch.allclose(ours(logits, seen, config), theirs(logits, seen, config), atol=1e-6)


@pytest.mark.parametrize("top_k", [50, 0])
def test_half_precision_logits_with_their_mean_apart(top_k: int) -> None:
    """The shift is added before the penalty and nothing is rounded twice."""
    config = SamplingConfig(temperature=0.8, top_k=top_k, top_p=0.95, repetition_penalty=1.2)
    torch.manual_seed(0)
    small, shift = (torch.randn(8, 9000) * 3).bfloat16(), torch.linspace(-90, 30, 8)
    seen = torch.randint(0, 9000, (8, 12))
    probs, ids = distribution(small.clone(), history(seen), config, shift)
    found = torch.zeros(8, 9000).scatter_add_(1, ids, probs)
    wanted = theirs(small.float() + shift[:, None], seen, config)
    assert_same_but_for_ties(found, wanted)


def assert_same_but_for_ties(found: torch.Tensor, wanted: torch.Tensor, atol: float = 1e-6) -> None:
    """Which of the tokens tied at the edge of top-p are kept is chance, in transformers too."""
    assert torch.allclose(found.sort(dim=1).values, wanted.sort(dim=1).values, atol=atol)
    above = wanted > wanted.masked_fill(wanted == 0, 2).amin(dim=1, keepdim=True) + 1e-6
    assert torch.allclose(found[above], wanted[above], atol=1e-6)


def test_room_that_is_not_filled_changes_nothing() -> None:
    config = SamplingConfig(repetition_penalty=1.5)
    torch.manual_seed(0)
    logits, seen = torch.randn(3, 9000), torch.randint(0, 9000, (3, 5))
    tight = distribution(logits.clone(), history(seen), config)
    roomy = distribution(logits.clone(), history(seen, room=20), config)
    assert torch.equal(tight[0], roomy[0]) and torch.equal(tight[1], roomy[1])


def test_tokens_tied_with_the_kth_are_kept() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    config = SamplingConfig(temperature=1.0, top_k=2, top_p=1.0, repetition_penalty=1.0)
    seen = torch.zeros(2, 1, dtype=torch.long)
    found = ours(logits, seen, config)
    assert torch.allclose(found, theirs(logits, seen, config), atol=1e-6)
    assert (found > 0).sum(dim=1).tolist() == [4, 2]


def test_sampled_frequencies_follow_the_distribution() -> None:
    config = SamplingConfig(temperature=0.7, top_k=8, top_p=0.9, repetition_penalty=1.3)
    torch.manual_seed(0)
    logits, seen, n = torch.randn(1, 30) * 2, torch.tensor([[1, 2, 3]]), 20000
    probs = theirs(logits, seen, config)[0].numpy()
    uniforms = torch.from_numpy(np.random.default_rng(0).random(n))
    found = distribution(logits.repeat(n, 1), history(seen.repeat(n, 1)), config)
    drawn = draw(*found, uniforms)
    counts = np.bincount(drawn.numpy(), minlength=30)
    kept = probs > 0
    assert counts[~kept].sum() == 0
    chi_square = ((counts[kept] - n * probs[kept]) ** 2 / (n * probs[kept])).sum()
    assert chi_square < 30  # at most 7 degrees of freedom: p < 1e-4 beyond


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_stay_inside_the_kept_tokens(uniform: float) -> None:
    config = SamplingConfig(top_k=4, top_p=0.5, repetition_penalty=1.0)
    logits = torch.tensor([[0.1, 5.0, 4.9, 0.0, -1.0]])
    found = distribution(logits.clone(), history(torch.tensor([[0]])), config)
    token = draw(*found, torch.tensor([uniform]))
    assert token.item() in (1, 2)
