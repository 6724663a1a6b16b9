"""How fast the pretraining of an encoder is, beside a plain loop over transformers' own models.

    python benchmarks/pretraining.py --run RUN [--steps N] [--repeats N] [--json FILE]

RUN is a directory of `sentisynth pretrain encoder`: its configuration, tokenizer and rows are used.
Both train the same two models on the same batches, in turn; the first steps are not counted.
"""

import argparse
import json
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from environment import environment
from plain_replaced_tokens import PlainReplacedTokens

from sentisynth.config.load import read_pretrain_config
from sentisynth.config.pretrain import PretrainConfig
from sentisynth.models.devices import autocast_dtype, best_device
from sentisynth.models.loading import load_tokenizer
from sentisynth.models.pretraining import encoder_config
from sentisynth.training.engine import TorchEngine
from sentisynth.training.loop import endless_batches, take_step
from sentisynth.training.pretraining import HELD_OUT, TRAIN, pretraining_task
from sentisynth.training.rows import Rows

WARM = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = read_pretrain_config(arguments.run)
    rows = Rows.map(arguments.run / "rows" / TRAIN)
    size = config.train.batch_size
    batches = list(islice(endless_batches(rows.lengths, size, 1), arguments.steps))
    tokens = sum(int(rows.lengths[batch].sum()) for batch in batches)
    if (config.chosen_objective, config.optimizer) != ("replaced", "decoupled"):
        parser.error(
            f"{arguments.run} is of another objective; the peer is for decoupled optimisers"
        )
    sides = {
        "ours": ours(config, arguments.run, rows, batches),
        "plain": plain(config, arguments.run, rows, batches),
    }
    for run in sides.values():
        run(WARM)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, run in sides.items():
            started = time.perf_counter()
            run(len(batches))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            rates[name].append(tokens / (time.perf_counter() - started))
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    result: dict[str, Any] = {
        **environment(),
        "precision": config.train.precision,
        "batch_size": size,
        "tokens_per_second": {k: statistics.median(v) for k, v in rates.items()},
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def ours(config: PretrainConfig, run: Path, rows: Rows, batches: list[Any]) -> Any:
    tokenizer = load_tokenizer(run / "tokenizer")
    task = pretraining_task(config, tokenizer, rows, Rows.map(run / "rows" / HELD_OUT))
    engine = TorchEngine(task.model, config.train, 0, 1)

    def steps(n: int) -> None:
        for batch in batches[:n]:
            take_step(engine, task, [batch], task.weight(batch), config.train.learning_rate)

    return steps


def plain(config: PretrainConfig, run: Path, rows: Rows, batches: list[Any]) -> Any:
    tokenizer = load_tokenizer(run / "tokenizer")
    shapes = (config.masked.shape, config.shape)
    masked, encoder = (
        encoder_config(shape, tokenizer, config.positions, config.dropout) for shape in shapes
    )
    rates = (config.masked.learning_rate, config.train.learning_rate)
    device = best_device()
    peer = PlainReplacedTokens(
        masked, encoder, rates, tokenizer.mask_token_id, config.masked.mask_rate, device
    )
    dtype = autocast_dtype(config.train.precision, device)
    special = torch.tensor(sorted(tokenizer.all_special_ids), device=device)

    def steps(n: int) -> None:
        for batch in batches[:n]:
            ids, mask = (x.to(device) for x in rows.padded(batch, tokenizer.pad_token_id))
            peer.step(ids, mask, torch.isin(ids, special), dtype)

    return steps


if __name__ == "__main__":
    main()
