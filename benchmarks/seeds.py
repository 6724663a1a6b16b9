"""A recipe over several seeds: the arms' figures on real rows as mean ± standard deviation.

    python benchmarks/seeds.py RECIPE [key=value ...] [--seeds 41 42 43] [--out DIR] [--json FILE]

Each seed is a whole run in DIR/seed-<n> (the seed draws the labelled rows, the initial weights, the
order and the candidates); runs that are done are not done again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from environment import environment

FIGURES = ("macro_f1", "accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[41, 42, 43])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    runs = [run(arguments, seed) for seed in arguments.seeds]
    print(table(runs))
    if arguments.json:
        result = {
            **environment(),
            "versions": runs[0]["versions"],
            "seeds": arguments.seeds,
            "runs": [{k: v for k, v in r.items() if k != "versions"} for r in runs],
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One seed through the command line; what it left in metrics.json, and how long it took."""
    import yaml

    out = arguments.out / f"seed-{seed}"
    command = ["run", arguments.recipe, *arguments.overrides, f"seed={seed}", "--out", str(out)]
    is_done, started = (out / "metrics.json").is_file(), time.monotonic()
    subprocess.run([sys.executable, "-m", "sentisynth.cli", *command], check=True)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    arms = {
        arm["name"]: {
            "title": arm["title"],
            "parameters": arm["parameters"],
            **{
                f"{split}_{figure}": arm[split][figure]
                for split in ("validation", "test")
                for figure in FIGURES
            },
        }
        for arm in metrics["arms"]
    }
    return {
        "seed": seed,
        "seconds": None if is_done else round(time.monotonic() - started, 1),
        "arms": arms,
        "gain": metrics["gain"],
        "perplexity": metrics["generator"]["perplexity"],
        "synthesis": metrics["synthesis"],
        "versions": config["versions"],
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: an arm a line, mean ± sample standard deviation over the seeds."""
    lines = [
        "| arm | macro-F1 validation | macro-F1 test | accuracy test |",
        "| --- | --- | --- | --- |",
    ]
    for name, arm in runs[0]["arms"].items():
        cells = [
            spread([r["arms"][name][key] for r in runs])
            for key in ("validation_macro_f1", "test_macro_f1", "test_accuracy")
        ]
        lines.append(f"| {arm['title']} | " + " | ".join(cells) + " |")
    gains = [100 * r["gain"]["macro_f1"] for r in runs]
    lines.append("")
    lines.append(
        f"Synthetic rows gave the student {spread(gains, 1)} points of test macro-F1 "
        f"(by seed: {', '.join(f'{g:+.1f}' for g in gains)})."
    )
    rates = {
        name: spread([r["synthesis"]["acceptance"][name] for r in runs], 2)
        for name in runs[0]["synthesis"]["acceptance"]
    }
    lines.append("Acceptance: " + ", ".join(f"{n} {rate}" for n, rate in rates.items()) + ".")
    for key, title in (
        ("distinct_1", "distinct-1"),
        ("distinct_2", "distinct-2"),
        ("soft_label_entropy", "soft-label entropy (nats)"),
    ):
        lines.append(f"{title}: {spread([r['synthesis'][key] for r in runs])}.")
    lines.append(f"Generator perplexity: {spread([r['perplexity'] for r in runs], 1)}.")
    seconds = [r["seconds"] for r in runs if r["seconds"] is not None]
    if seconds:
        lines.append(f"Seconds a run: {spread(seconds, 0)}.")
    return "\n".join(lines)


def spread(values: list[float], digits: int = 3) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


if __name__ == "__main__":
    main()
