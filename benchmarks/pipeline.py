"""Accepted rows a second: the stream, its stages, and a plain loop with the same models.

    python benchmarks/pipeline.py --run DIR [--units N] [--plain-rows N] [--repeats N]
        [--precisions auto int8] [--without-ray] [--json FILE]

The models of a finished run, real ends. In turn in each repetition:

- plain loop: `generate` in batches of 32, `pipeline("text-classification")` with batches of 32, as
  transformers' documentation has them, in fp32; a text is accepted if the teacher gives the
  intended label with τ or more, it has enough words, and it is new. The other screens, which cost
  it nothing, are left out.
- one process: our stages without Ray, for each `synthesis.precision`.
- the stream: units in the middle of a longer stream, with Ray, files, receipts, ledger; the same
  (not with `--without-ray`).

The share of time of each stage is that of its own seconds in the stream.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from environment import environment
from transformers import AutoModelForSequenceClassification, GenerationConfig, pipeline

from sentisynth import schema
from sentisynth.config.load import read_run_config
from sentisynth.config.types import RunConfig
from sentisynth.data.ledger import judge
from sentisynth.data.text import clean
from sentisynth.data.units import Unit
from sentisynth.models.generator import control_token_id, load_sampler, prompt_ids
from sentisynth.models.loading import load_tokenizer
from sentisynth.stages.generate import Generate
from sentisynth.stages.screen import Screen
from sentisynth.stages.verify import Verify
from sentisynth.training.jobs import read_splits

BATCH = 32


def plain_loop(run: Path, config: RunConfig, n_rows: int) -> float:
    """Accepted rows a second."""
    model, tokenizer = load_sampler(run / "generator")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    teacher = AutoModelForSequenceClassification.from_pretrained(run / "teacher").eval()
    verifier = pipeline(
        "text-classification",
        model=teacher,
        tokenizer=load_tokenizer(run / "teacher"),
        device=device,
    )
    sampling = config.synthesis.sampling
    settings = GenerationConfig(
        do_sample=True,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    screens = config.synthesis.screens
    accepted: set[str] = set()
    n_labels = len(config.data.labels)
    torch.manual_seed(config.seed)
    for start in range(-BATCH, n_rows, BATCH):
        if not start:  # the first batch, untimed, pays for what is done once
            accepted.clear()
            started = time.perf_counter()
        label = start // BATCH % n_labels
        control = control_token_id(tokenizer, config.control_token(label))
        ids = torch.tensor([prompt_ids(tokenizer, control, "")] * BATCH, device=device)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )[:, ids.shape[1] :]
        texts = [
            clean(text, config.data.lowercase)
            for text in tokenizer.batch_decode(out, skip_special_tokens=True)
        ]
        texts = [text for text in texts if text]
        for text, verdict in zip(texts, verifier(texts, batch_size=BATCH), strict=True):
            long_enough = len(text.split()) >= screens.min_tokens
            right = verdict["label"] == config.data.labels[label]
            if right and verdict["score"] >= config.synthesis.tau and long_enough:
                accepted.add(text)
    return len(accepted) / (time.perf_counter() - started)


def one_process(run: Path, config: RunConfig, texts: Any, n_units: int) -> float:
    config = with_threads(config, torch.get_num_threads())
    generate, verify = Generate(run / "generator", config), Verify(run / "teacher", config)
    screen = Screen(config.synthesis.screens, *texts)
    size, n_labels = config.synthesis.unit_size, len(config.data.labels)

    def accepted(n: int) -> int:
        table = verify(screen(generate(Unit(n % n_labels, n // n_labels, size))))
        return judge(table, config.synthesis.tau).count(schema.ACCEPTED)

    accepted(0)
    started = time.perf_counter()
    total = sum(accepted(n) for n in range(n_units))
    return total / (time.perf_counter() - started)


def in_precision(config: RunConfig, precision: str) -> RunConfig:
    synthesis = config.synthesis.model_copy(update={"precision": precision})
    return config.model_copy(update={"synthesis": synthesis})


def with_threads(config: RunConfig, threads: int) -> RunConfig:
    pools = {
        name: getattr(config.synthesis, name).model_copy(update={"threads": threads})
        for name in ("generate_pool", "verify_pool")
    }
    return config.model_copy(update={"synthesis": config.synthesis.model_copy(update=pools)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--units", type=int, default=24)
    parser.add_argument("--plain-rows", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["auto"])
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    run = arguments.run.resolve()
    config = read_run_config(run)
    if not config.synthesis.unit_size:
        sys.exit("set synthesis.unit_size in the run's config.yaml")
    endless = {"n_per_class": 10**9, "max_candidates_per_class": 10**9}
    config = config.model_copy(update={"synthesis": config.synthesis.model_copy(update=endless)})
    splits = read_splits(run / "corpus")
    held_out = [t for n in ("validation", "test") for t in splits[n][schema.TEXT].to_pylist()]
    texts = (held_out, splits["seed"][schema.TEXT].to_pylist())
    rates: dict[str, list[float]] = {}
    stages: dict[str, Counter[str]] = {name: Counter() for name in arguments.precisions}
    for _ in range(arguments.repeats):
        found = {"plain loop": plain_loop(run, config, arguments.plain_rows)}
        for precision in arguments.precisions:
            own = in_precision(config, precision)
            found[f"one process, {precision}"] = one_process(run, own, texts, arguments.units)
            if not arguments.without_ray:
                from stream_efficiency import streamed

                from sentisynth.runtime.ray_cluster import connected

                with connected():
                    middle = streamed(run, own, texts, arguments.units)
                found[f"stream, {precision}"] = middle.accepted / middle.seconds
                stages[precision].update(middle.stage_seconds)
        print({name: round(rate, 1) for name, rate in found.items()}, file=sys.stderr, flush=True)
        for name, rate in found.items():
            rates.setdefault(name, []).append(rate)
    print(f"{'':20} {'accepted rows/s':>16} {'min':>8} {'max':>8}  to plain loop (min to max)")
    for name, values in rates.items():
        ratios = [rate / plain for rate, plain in zip(values, rates["plain loop"], strict=True)]
        print(
            f"{name:20} {statistics.median(values):16.1f} {min(values):8.1f} {max(values):8.1f}"
            f"{statistics.median(ratios):12.1f}x ({min(ratios):.1f} to {max(ratios):.1f})"
        )
    shares = {
        precision: {name: round(s / spent.total(), 3) for name, s in spent.items()}
        for precision, spent in stages.items()
    }
    print(f"share of the stages' seconds: {shares}")
    result = {**environment(), "accepted rows per second": rates, "share of time": shares}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
