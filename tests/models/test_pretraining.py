"""G and D: what is masked, what is put there, and the two optimisers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sentisynth.config.pretrain import PretrainConfig
from sentisynth.models.pretraining import (
    MaskedBatch,
    ReplacedTokenModel,
    chosen_positions,
    fresh_encoder,
    fresh_masked_model,
    replacements,
)
from sentisynth.training.engine import TorchEngine, parts_of

MASK, PIECES = 4, 60


class Pieces(SimpleNamespace):
    pad_token_id, mask_token_id = 0, MASK

    def __len__(self) -> int:
        return PIECES


def settings(**more: Any) -> PretrainConfig:
    shape = {"layers": 1, "width": 32, "heads": 2}
    values = {"name": "x", "kind": "encoder", "text": {"source": "x"}, "shape": shape}
    masked = {"shape": shape, "learning_rate": 2e-4, **more.pop("masked", {})}
    return PretrainConfig.model_validate({**values, "masked": masked, **more})


def model(config: PretrainConfig) -> ReplacedTokenModel:
    torch.manual_seed(0)
    parts = (
        fresh_masked_model(config.masked.shape, config, Pieces()),
        fresh_encoder(config, Pieces()),
    )
    return ReplacedTokenModel(*parts, config, MASK)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 22, 12 and 3 tokens."""
    lengths = torch.tensor([22, 12, 3])
    mask = (torch.arange(22) < lengths[:, None]).long()
    return torch.randint(5, PIECES, (3, 22)) * mask, mask


def chosen(mask: torch.Tensor, rate: float = 0.15) -> torch.Tensor:
    column = torch.arange(mask.shape[1])
    inside = (column > 0) & (column < mask.sum(dim=1, keepdim=True) - 1)
    return chosen_positions(inside, rate, torch.rand(mask.shape))


@pytest.mark.parametrize(("rate", "wanted"), [(0.15, [3, 2, 1]), (0.5, [10, 5, 1])])
def test_so_many_are_masked_in_each_row_and_never_a_special_token(
    rate: float, wanted: list[int]
) -> None:
    _, mask = batch()
    seen = torch.zeros_like(mask)
    for _ in range(200):
        found = chosen(mask, rate)
        assert found.sum(dim=1).tolist() == wanted
        seen += found
    may = torch.zeros_like(mask, dtype=torch.bool)
    for row, length in enumerate((22, 12, 3)):
        may[row, 1 : length - 1] = True
    assert bool((seen > 0)[may].all()) and not (seen > 0)[~may].any()


@torch.no_grad()
def test_replacements_are_drawn_from_the_masked_model() -> None:
    """The loss is the one of the whole forward pass; draws have the model's own frequencies."""
    config = settings()
    masked = model(config).masked.eval()
    for parameter in masked.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids, mask = batch()
    at = chosen(mask)
    logits = masked(input_ids=ids.masked_fill(at, MASK), attention_mask=mask).logits
    wanted = F.cross_entropy(logits[at], ids[at], reduction="sum")
    n = 600
    many = [tensor.repeat(n, 1) for tensor in (ids, mask, at)]
    made = replacements(masked, MaskedBatch(many[0], many[1], many[1].bool(), many[2]), MASK)
    torch.testing.assert_close(made.nll / n, wanted, atol=1e-3, rtol=1e-4)
    assert made.ids_BS[~many[2]].equal(many[0][~many[2]])
    assert made.replaced_BS.equal(made.ids_BS != many[0])
    first = made.ids_BS[many[2]].reshape(n, -1)[:, 0]
    found = torch.bincount(first, minlength=PIECES) / n
    assert (found - logits[at][0].softmax(dim=0)).abs().max() < 0.08


def test_decoupled_parts_learn_apart() -> None:
    """Each at its own rate, clipped by its own norm, and no gradient from D to G."""
    config = settings()
    both = model(config)
    assert [factor for factor, _ in parts_of(both)] == pytest.approx([2e-4 / 1.5e-3, 1.0])
    names = {name.partition(".")[0] for name, _ in both.named_parameters()}
    assert names == {"masked", "detector"}
    own = both.masked.get_input_embeddings().weight
    assert own is not both.detector.encoder.get_input_embeddings().weight
    ids, mask = batch()
    inputs = MaskedBatch(ids, mask, mask.bool(), chosen(mask))
    torch.manual_seed(1)
    both(inputs).backward()
    alone = own.grad.clone()
    both.zero_grad()
    both._coupling = 50.0
    torch.manual_seed(1)
    both(inputs).backward()
    assert own.grad.equal(alone)
    engine = TorchEngine(both, config.train, 0, 1)  # type: ignore[arg-type]
    for weights in (p for _, part in parts_of(both) for p in part):
        weights.grad = torch.full_like(weights, 1e3 if weights is own else 1e-6)
    engine._optimizer.zero_grad = lambda set_to_none: None  # type: ignore[method-assign,assignment]
    engine.step(1e-3)
    score = both.detector.score.weight
    assert own.grad.norm() < 2.01 and score.grad.max() == pytest.approx(1e-6)


def test_coupled_parts_share_embeddings_and_one_rate() -> None:
    both = model(settings(optimizer="coupled", coupling=50.0))
    shared = both.masked.get_input_embeddings().weight
    assert both.detector.encoder.get_input_embeddings().weight is shared
    assert [factor for factor, _ in parts_of(both)] == [1.0]
    ids, mask = batch()
    inputs = MaskedBatch(ids, mask, mask.bool(), chosen(mask))
    losses = []
    for coupling in (1.0, 2.0, 50.0):
        same = model(settings(optimizer="coupled", coupling=coupling))
        torch.manual_seed(1)
        losses.append(same(inputs).item())
    of_detector = losses[1] - losses[0]
    assert of_detector > 1
    assert losses[2] - losses[0] == pytest.approx(49 * of_detector, rel=1e-4)


def test_a_filler_row_is_not_learned_from() -> None:
    both = model(settings())
    ids, mask = batch()
    counted = mask.bool() & torch.tensor([True, True, False])[:, None]
    at = chosen(mask) & counted
    found = []
    for rows in (slice(None), slice(2)):
        torch.manual_seed(1)
        found.append(both(MaskedBatch(ids[rows], mask[rows], counted[rows], at[rows])).item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_loss_weighs_masked_positions_by_their_share() -> None:
    config = settings(masked={"mask_rate": 0.2})
    both = model(config).eval()
    ids = torch.randint(5, PIECES, (4, 12))  # 10 tokens of each may be masked: 2 are
    mask = torch.ones_like(ids)
    at = chosen(mask, 0.2)
    torch.manual_seed(3)
    inputs = MaskedBatch(ids, mask, mask.bool(), at)
    loss = both(inputs)
    torch.manual_seed(3)
    made = replacements(both.masked, inputs, MASK)
    logits = both.detector(made.ids_BS, mask)
    bce = F.binary_cross_entropy_with_logits(logits, made.replaced_BS.float())
    n_masked, n_tokens = 8, 48
    assert loss.item() / n_tokens == pytest.approx(
        made.nll.item() / n_masked * (n_masked / 0.2 / n_tokens) + bce.item(), rel=1e-5
    )
