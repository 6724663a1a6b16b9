"""The generator's study: frozen lower blocks, LoRA, all weights, at several sampling temperatures.

    python benchmarks/generators.py RECIPE [key=value ...] --out DIR [--seeds 41 42 43]
        [--temperatures 0.7 0.8] [--samples N] [--json FILE]

For each seed the generator is fine-tuned in three ways from the same start, and writes N texts of
each class at each temperature. A teacher, fine-tuned on the same labelled rows, judges them:

- perplexity: on the real validation rows; the sampling temperature has no part in it.
- screened out: share that the screens reject (short, repetitive, not printable, a leak, repeated).
- right label: share of the others that the teacher gives the intended class, at any confidence.
- accepted: share of all with the right label and a confidence of at least τ.
- distinct-2: distinct word pairs over all, of the texts that passed the screens.

Mean ± standard deviation over the seeds. `samples.md` in DIR has the first texts side by side. No
Ray: the same jobs and stages, in this process.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from environment import environment

from sentisynth import schema
from sentisynth.config.load import load_config
from sentisynth.config.types import RunConfig
from sentisynth.data.files import read_json, write_json, write_table
from sentisynth.data.splits import load_corpus
from sentisynth.data.units import Unit
from sentisynth.evaluation.metrics import distinct_n
from sentisynth.models.classifier import load_verifier, predict_logits
from sentisynth.stages.generate import Generate
from sentisynth.stages.screen import Screen
from sentisynth.training.jobs import adapt, teach

SHOWN = 8  # samples of a class in samples.md


def ways() -> dict[str, list[str]]:
    return {
        "frozen": ["generator.lora_rank=0"],
        "LoRA, rank 8": ["generator.lora_rank=8", "generator.frozen_blocks=0"],
        "unfrozen": ["generator.lora_rank=0", "generator.frozen_blocks=0"],
    }


def trained(job: Any, config: RunConfig, corpus: Path, out: Path) -> Path:
    """A model directory, made unless it is there."""
    made_of = {"made of": config.model_dump(mode="json", exclude={"tracking", "cluster"})}
    if (out / "metrics.json").is_file() and read_json(out / "made-of.json") != made_of:
        raise SystemExit(f"{out} was made otherwise; give another --out")
    if not (out / "metrics.json").is_file():
        work = out.with_name(f"{out.name}.work")
        work.mkdir(parents=True, exist_ok=True)
        job(config, corpus, out, work, lambda entry: print(f"  {out.name}: {told(entry)}"))
        write_json(out / "made-of.json", made_of)
    return out


def told(entry: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in entry.items() if k != "epoch")


def judged(
    config: RunConfig, generator: Path, teacher: Path, splits: dict[str, pa.Table], n: int
) -> dict[str, Any]:
    """Figures of one generator at the configuration's temperature, and its first texts."""
    real = [
        *splits["validation"][schema.TEXT].to_pylist(),
        *splits["test"][schema.TEXT].to_pylist(),
    ]
    screen = Screen(config.synthesis.screens, real, splits["seed"][schema.TEXT].to_pylist())
    threads = torch.get_num_threads()
    generate = Generate(generator, config)
    torch.set_num_threads(threads)
    model, tokenizer = load_verifier(teacher, len(config.data.labels))
    counts = {"screened out": 0, "right label": 0, "accepted": 0}
    passed_texts: list[str] = []
    texts: list[list[str]] = []
    for label in range(len(config.data.labels)):
        table = screen(generate(Unit(label=label, number=0, size=n)))
        passed = table.filter(pa.compute.is_null(table[schema.REJECT_REASON]))
        found = passed[schema.TEXT].to_pylist()
        logits = predict_logits(model, tokenizer, found, max_length=config.teacher.max_length)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        right = p.argmax(axis=1) == label
        counts["screened out"] += n - len(found)
        counts["right label"] += int(right.sum())
        counts["accepted"] += int((right & (p.max(axis=1) >= config.synthesis.tau)).sum())
        passed_texts += found
        texts.append(found[:SHOWN])
    total = n * len(config.data.labels)
    return {
        "screened out": counts["screened out"] / total,
        "right label": counts["right label"] / max(1, len(passed_texts)),
        "accepted": counts["accepted"] / total,
        "distinct-2": distinct_n(passed_texts, 2),
        "texts": texts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[41, 42, 43])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.7, 0.8])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_intermixed_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in arguments.seeds:
        base = load_config(arguments.recipe, [*arguments.overrides, f"seed={seed}"])
        out = arguments.out / str(seed)
        splits = load_corpus(base.data, seed).splits()
        for name, table in splits.items():
            write_table(out / "corpus" / f"{name}.parquet", table)
        teacher = trained(teach, base, out / "corpus", out / "teacher")
        for way, overrides in ways().items():
            settings = [*arguments.overrides, f"seed={seed}", *overrides]
            config = load_config(arguments.recipe, settings)
            path = trained(adapt, config, out / "corpus", out / way.replace(", ", "-"))
            perplexity = read_json(path / "metrics.json")["perplexity"]
            for t in arguments.temperatures:
                at = load_config(
                    arguments.recipe, [*settings, f"synthesis.sampling.temperature={t}"]
                )
                found = judged(at, path, teacher, splits, arguments.samples)
                entry = {"seed": seed, "perplexity": perplexity, **found}
                results.setdefault(f"{way}, {t:g}", []).append(entry)
    show(results)
    write_samples(arguments.out / "samples.md", results, arguments.seeds[0])
    for entries in results.values():
        for entry in entries:
            del entry["texts"]
    if arguments.json:
        head = {**environment(), "recipe": arguments.recipe, "samples": arguments.samples}
        arguments.json.write_text(json.dumps({**head, "results": results}, indent=2) + "\n")


def show(results: dict[str, list[dict[str, Any]]]) -> None:
    figures = ("perplexity", "screened out", "right label", "accepted", "distinct-2")
    print("| trained, temperature | " + " | ".join(figures) + " |")
    print("| --- |" + " --- |" * len(figures))
    for name, entries in results.items():
        cells = []
        for figure in figures:
            values = [entry[figure] for entry in entries]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            form = "{:.1f} ± {:.1f}" if figure == "perplexity" else "{:.3f} ± {:.3f}"
            cells.append(form.format(statistics.mean(values), spread))
        print(f"| {name} | " + " | ".join(cells) + " |")


def write_samples(path: Path, results: dict[str, list[dict[str, Any]]], seed: int) -> None:
    """The first texts of each class that passed the screens, of one seed, side by side."""
    lines = [f"# Samples, seed {seed}"]
    for i in range(len(next(iter(results.values()))[0]["texts"])):
        head = [
            "",
            f"## class {i}",
            "",
            f"| {' | '.join(results)} |",
            "| --- " * len(results) + "|",
        ]
        columns = [entries[0]["texts"][i] for entries in results.values()]
        rows = zip(*columns, strict=False)
        lines += head + [f"| {' | '.join(t.replace('|', '/') for t in row)} |" for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
