"""The studies of the method on one data set: every sweep, its table and its figures.

    python benchmarks/studies.py NAME RECIPE [key=value ...] --out DIR [--seeds 41 42 43] [--short]

Fine-tunes teacher and generator and fills the pool once, then runs each sweep of STUDIES through
the command line, in DIR. Writes studies/NAME.md (tables, with the sentence of each sweep),
studies/NAME/*.svg and *.csv beside this file. What is done is not done again. Settings are those
of METHOD (α 0.5, β 0.3, T 2, τ 0.8) at a fifth of its number of rows, unless varied.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from environment import environment

from sentisynth.evaluation.plots import COLOURS
from sentisynth.evaluation.sweeps import sweep_plots, told

MOST, USUAL = 4000, 2000  # synthetic rows a class: of the size study, of the others
SETTINGS = ("distil.alpha=0.5", "distil.beta=0.3", "distil.temperature=2.0", "synthesis.tau=0.8")
STUDIES = {
    "size": ("Number of synthetic rows a class", ["dim.size=[0,500,1000,2000,4000]"]),
    "alpha": ("α, the share of the soft labels", ["dim.alpha=[0.1,0.3,0.5,0.7,0.9]"]),
    "beta": ("β, the weight of a synthetic row", ["dim.beta=[0.1,0.3,0.5,0.7,1.0]"]),
    "temperature": ("T, the temperature of the soft labels", ["dim.temperature=[1,2,4,8]"]),
    "tau": ("τ, the least confidence", ["dim.tau=[0.5,0.6,0.7,0.8,0.9,0.95]"]),
    "arms": ("What is learned from the synthetic rows", ["dim.arm=[soft,hard,unverified]"]),
    "alpha-beta": ("α × β", ["dim.alpha=[0.2,0.5,0.8,1.0]", "dim.beta=[0.1,0.3,0.5,1.0]"]),
}
SHORT = {  # fewer points of each
    "size": ["dim.size=[0,500,2000]"],
    "alpha": ["dim.alpha=[0.1,0.5,0.9]"],
    "beta": ["dim.beta=[0.1,0.3,1.0]"],
    "temperature": ["dim.temperature=[1,2,8]"],
    "tau": ["dim.tau=[0.5,0.8,0.95]"],
    "alpha-beta": ["dim.alpha=[0.2,0.5,0.8]", "dim.beta=[0.1,0.3]"],
}
HERE = Path(__file__).parent / "studies"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[41, 42, 43])
    parser.add_argument("--short", action="store_true", help="fewer points of each study")
    arguments = parser.parse_args()
    out, recipe = arguments.out, [arguments.recipe, *arguments.overrides, *SETTINGS]
    for stage in ("teacher", "generator", "synthesize"):
        sentisynth(stage, *recipe, f"synthesis.n_per_class={MOST}", "--out", str(out))
    seeds = ["--seeds", ",".join(map(str, arguments.seeds))]
    minutes = {}
    for kind, (_, dims) in STUDIES.items():
        dims = SHORT.get(kind, dims) if arguments.short else dims
        n = MOST if kind == "size" else USUAL
        if not (out / "sweep" / kind / "summary.json").is_file():
            started = time.monotonic()
            sized = f"synthesis.n_per_class={n}"
            sentisynth("sweep", kind, *recipe, sized, *dims, *seeds, "--out", str(out))
            minutes[kind] = (time.monotonic() - started) / 60
        keep(out / "sweep" / kind, arguments.name, kind)
    page = "\n".join(text(arguments.name, out, minutes))
    (HERE / f"{arguments.name}.md").write_text(page, encoding="utf-8")


def sentisynth(*arguments: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-m", "sentisynth.cli", *arguments], check=True)


def keep(sweep: Path, name: str, kind: str) -> None:
    """The table and the figures of a sweep, in light colours, for readers of the repository."""
    target = HERE / name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(sweep / "results.csv", target / f"{kind}.csv")
    for i, plot in enumerate(sweep_plots(json.loads((sweep / "summary.json").read_text()))):
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        svg = str(plot.svg).replace("<svg ", f'<svg {names} font-family="sans-serif" width="540" ')
        for colour, (light, _) in COLOURS.items():
            svg = svg.replace(f"var(--{colour})", light)
        start = svg.index(">") + 1
        white = '<rect width="100%" height="100%" fill="#ffffff"/>'
        (target / f"{kind}{f'-{i}' if i else ''}.svg").write_text(svg[:start] + white + svg[start:])


def text(name: str, out: Path, minutes: dict[str, float]) -> list[str]:
    """A page of tables: mean ± standard deviation over the seeds, 95 % bootstrap interval."""
    made = environment()
    versions = ", ".join(f"{k} {made['versions'][k]}" for k in ("torch", "transformers", "ray"))
    lines = [f"`{made['command']}`", "", f"{made['date']}, {made['hardware']}, {versions}.", ""]
    for kind, (title, _) in STUDIES.items():
        summary = json.loads((out / "sweep" / kind / "summary.json").read_text())
        lines += [f"## {title}", "", *table(summary), "", summary["verdict"]]
        tested = [entry["test_macro_f1"] for entry in summary["test"]]
        mean = sum(tested) / len(tested)
        listed = ", ".join(f"{value:.3f}" for value in tested)
        lines += [f"On the rows to report on, the best setting has {mean:.3f} ({listed}).", ""]
        pictures = sorted((HERE / name).glob(f"{kind}.svg"))
        pictures += sorted((HERE / name).glob(f"{kind}-[0-9].svg"))
        lines += [f"![{title}]({name}/{picture.name})" for picture in pictures]
        lines += [f"\n{minutes[kind]:.1f} minutes."] if kind in minutes else []
        lines.append("")
    return lines


def table(summary: dict[str, Any]) -> list[str]:
    dims, points = summary["dims"], summary["points"]
    is_diverse = dims[0] in ("tau", "n_per_class", "arm")
    more = ["distinct-1", "distinct-2", "soft-label entropy"] if is_diverse else []
    heads = ["setting", "macro-F1 validation", "95 % interval", *more]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for point in points:
        figures = [f"{point['mean']:.3f} ± {point['std'] or 0:.3f}"]
        figures.append(f"{point['low']:.3f} to {point['high']:.3f}" if point["low"] else "–")
        if is_diverse:
            measured = point["diversity"] or {}
            keys = ("distinct_1", "distinct_2", "soft_label_entropy")
            figures += [f"{measured[k]:.3f}" if k in measured else "–" for k in keys]
        lines.append("| " + " | ".join([told(point["point"], dims), *figures]) + " |")
    return lines


if __name__ == "__main__":
    main()
