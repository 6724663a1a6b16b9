"""Tasks and jobs of pretraining: replaced-token detection, masked and causal language models.

B rows, S tokens, M masked positions, V pieces.
"""

import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedTokenizerBase

from sentisynth.config.pretrain import PretrainConfig
from sentisynth.data.files import read_json, write_json
from sentisynth.errors import ModelError
from sentisynth.models.devices import hardware
from sentisynth.models.loading import (
    load_tokenizer,
    resolve_model,
    save_model,
)
from sentisynth.models.pretraining import (
    MaskedBatch,
    MaskedModel,
    OneWayModel,
    ReplacedTokenModel,
    chosen_positions,
    for_fine_tuning,
    fresh_causal_model,
    fresh_encoder,
    fresh_masked_model,
    replacements,
)
from sentisynth.seeding import derive_seed
from sentisynth.training import detection
from sentisynth.training.beginnings import (
    EMBEDDINGS,
    OBJECTIVE,
    load_masked_model,
    put_embeddings,
    start_from,
)
from sentisynth.training.checkpoint import best_weights, put_weights
from sentisynth.training.jobs import figures_of, history
from sentisynth.training.loop import Report, endless_batches, fit, seed_all
from sentisynth.training.rows import Rows, is_first_worker
from sentisynth.training.tasks import LanguageModelTask, own_batches

TRAIN, HELD_OUT = "train.arrow", "held_out.arrow"
_EVALUATION_SEED, _JUDGED_RATE = 0, 0.15


class TokenTask:
    """Replaced-token detection, or masked language modelling alone.

    Which positions are masked, and what is put there, is drawn from torch's generator, which the
    loop seeds for each step; in evaluations it is the same each time, and for a judge the same
    whatever the run.
    """

    metric = "step"  # the last weights: a better G makes D's task harder, so figures do not compare

    def __init__(
        self,
        model: ReplacedTokenModel | MaskedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Rows,
        held_out: Rows,
        mask_rate: float,
        judge: Any = None,
    ) -> None:
        self.model, self.rows, self._held_out, self._judge = model, rows, held_out, judge
        self._pad_id, self._mask_id = tokenizer.pad_token_id, tokenizer.mask_token_id
        self._special = torch.tensor(sorted(tokenizer.all_special_ids))
        self._mask_rate = mask_rate

    def weight(self, rows: np.ndarray) -> float:
        return float(self.rows.lengths[rows[rows >= 0]].sum())

    def loss(self, forward: nn.Module, rows: np.ndarray) -> torch.Tensor:
        found: torch.Tensor = forward(self._masked(self.rows, rows, self._mask_rate))
        return found

    @torch.no_grad()
    def evaluate(self, forward: nn.Module, autocast: torch.dtype | None) -> dict[str, float]:
        """G's loss in nats a masked token, and D's loss a token, F1 and average precision: on
        what its own G replaced, and on the judge's replacements (appendix A.4 of the paper on
        decoupled optimisers).
        """
        del forward  # no gradients: the bare model does
        device = self.model.device
        if self._judge is not None:
            self._judge.to(device)
        sums = torch.zeros(2, 2 + detection.WIDTH, dtype=torch.float64)
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
        ):
            for batch, counts in own_batches(self._held_out):
                found = self._counted(batch)
                if counts:
                    sums += found
        if dist.is_initialized():
            summed = sums.float().to(device)
            dist.all_reduce(summed)
            sums = summed.double().cpu()
        figures = {"masked_loss": (sums[0, 0] / sums[0, 1]).item()}
        if isinstance(self.model, ReplacedTokenModel):
            figures |= _detection(sums[0], "")
            if self._judge is not None:
                figures |= _detection(sums[1], "judged_")
        return figures

    def _counted(self, batch: np.ndarray) -> torch.Tensor:
        """Own G and judge (2, 2 + detection.WIDTH): nll, masked tokens, counts of D's logits."""
        rows = torch.zeros(2, 2 + detection.WIDTH, dtype=torch.float64)
        sides = ((self.model.masked, self._mask_rate), (self._judge, _JUDGED_RATE))
        for i, (masked, rate) in enumerate(sides):
            if masked is None:
                continue
            seed_all(derive_seed(_EVALUATION_SEED, i, int(batch[0])))
            inputs = self._masked(self._held_out, batch, rate)
            made = replacements(masked, inputs, self._mask_id)
            rows[i, :2] = torch.stack([made.nll.double(), inputs.chosen_BS.double().sum()]).cpu()
            if isinstance(self.model, ReplacedTokenModel):
                logits_BS = self.model.detector(made.ids_BS, inputs.mask_BS)
                counts = detection.counts(logits_BS, made.replaced_BS, inputs.counted_BS)
                rows[i, 2:] = counts.cpu()
        return rows

    def _masked(self, rows: Rows, batch: np.ndarray, rate: float) -> MaskedBatch:
        ids_BS, mask_BS = rows.padded(batch, self._pad_id)
        may_BS = mask_BS.bool() & ~torch.isin(ids_BS, self._special)
        chosen_BS = chosen_positions(may_BS, rate, torch.rand(ids_BS.shape))
        counted_BS = mask_BS.bool() & torch.from_numpy(batch >= 0)[:, None]
        parts = (ids_BS, mask_BS, counted_BS, chosen_BS & counted_BS)
        return MaskedBatch(*(part.to(self.model.device) for part in parts))


def _detection(counted: torch.Tensor, prefix: str) -> dict[str, float]:
    found = detection.figures(counted[2:])
    shown = {f"{prefix}detection_{name}": found[name] for name in ("loss", "f1", "ap")}
    return shown | {f"{prefix}replaced": found["replaced"] / counted[1].item()}


def pretrain(
    config: PretrainConfig,
    tokenizer: Path,
    rows: Path,
    *begun: Path,
    out: Path,
    work: Path,
    report: Report,
) -> None:
    """Train the base model on packed rows; the first worker writes a `save_pretrained` directory
    with metrics.json, and what proposed replacements beside it, in `masked`.

    `begun` are the directories of what it begins with, if its configuration says so: embeddings,
    then the language model that an encoder starts from.
    """
    train, pieces = config.train, load_tokenizer(tokenizer)
    shown, held_out = Rows.map(rows / TRAIN), Rows.map(rows / HELD_OUT)
    task = pretraining_task(config, pieces, shown, held_out)
    start = None
    if config.embeddings == "cooccurrence":
        put_embeddings(task.model, begun[0] / EMBEDDINGS)
    if config.start is not None:
        start = begun[-1] if config.start.model is None else resolve_model(config.start.model)
        start_from(task.model, start, config, pieces)
    seed = seed_of(config)
    progress = fit(task, train, seed, report, work, total_steps=train.steps)
    if not is_first_worker():
        return
    last = progress.evaluations[-1]
    if not all(map(math.isfinite, last.values())):
        raise ModelError(
            f"the figures on the held-out documents are no numbers at step {progress.step}: "
            f"{last}; lower train.learning_rate (now {train.learning_rate:g}) or set "
            f"train.precision=fp32"
        )
    del task
    model = _fresh(config, pieces)
    put_weights(model, best_weights(work), work)
    finished = model
    if isinstance(model, ReplacedTokenModel):
        finished = model.detector.encoder
    elif isinstance(model, MaskedModel | OneWayModel):
        finished = model.masked
    _save(finished, pieces, out, config, config.chosen_objective)
    if config.chosen_objective == "replaced":
        _save(model.masked, pieces, out / "masked", config, "masked")
    order = endless_batches(shown.lengths, train.batch_size, derive_seed(seed, "order"))
    tokens = sum(int(shown.lengths[batch].sum()) for batch in islice(order, progress.step))
    figures = {
        "parameters": sum(p.numel() for p in finished.parameters()),
        "rows": len(shown),
        "corpus_tokens": int(shown.lengths.sum()),
        "tokens_seen": tokens,
        "hardware": hardware(),
        **figures_of(progress),
    }
    if start is not None and (start / "metrics.json").is_file():
        before = read_json(start / "metrics.json")
        figures |= {f"start_{key}": before[key] for key in ("tokens_seen", "seconds")}
    write_json(out / "metrics.json", {**figures, **history(progress, train)})


def pretraining_task(
    config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, shown: Rows, held_out: Rows
) -> Any:
    """The task of a configuration, its model with the random weights of the seed."""
    seed_all(seed_of(config))
    model = _fresh(config, tokenizer)
    if config.chosen_objective == "causal":
        return LanguageModelTask(model, tokenizer, shown, held_out)
    judge = None
    if config.masked.judge is not None:
        path = resolve_model(config.masked.judge)
        judge = load_masked_model(path, tokenizer, "masked.judge")
    return TokenTask(model, tokenizer, shown, held_out, config.masked.mask_rate, judge)


def seed_of(config: PretrainConfig) -> int:
    """Of weights, order and masks: another for each objective, or a judge would be the twin of a
    masked model that it is to judge beside.
    """
    return derive_seed(config.seed, "pretrain", config.chosen_objective)


def _save(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    config: PretrainConfig,
    objective: str,
) -> None:
    model = for_fine_tuning(model)
    setattr(model.config, OBJECTIVE, objective)
    save_model(model.half() if config.weights == "fp16" else model, tokenizer, out)


def _fresh(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    """What is trained, with random weights."""
    if config.kind == "generator":
        return fresh_causal_model(config, tokenizer)
    is_alone = config.chosen_objective != "replaced"
    shape = config.shape if is_alone else config.masked.shape
    masked = fresh_masked_model(shape, config, tokenizer)
    if config.chosen_objective == "causal":
        return OneWayModel(masked)
    if config.chosen_objective == "masked":
        return MaskedModel(masked, config, tokenizer.mask_token_id)
    encoder = fresh_encoder(config, tokenizer)
    return ReplacedTokenModel(masked, encoder, config, tokenizer.mask_token_id)
