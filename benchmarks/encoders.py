"""Encoders of a benchmark: trained once, fine-tuned once, and kept in a directory."""

import argparse
from pathlib import Path

from fine_tuning import fine_tuned

from sentisynth.config.load import load_config, load_pretrain_config
from sentisynth.data.files import directory_aside, read_json, write_json
from sentisynth.training.pretraining import pretrain


def add_arguments(parser: argparse.ArgumentParser, steps: int) -> None:
    """What `trained` asks for."""
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--json", type=Path)


def trained(arguments: argparse.Namespace, name: str, overrides: list[str]) -> Path:
    """The directory of a model that was pretrained on the tokenizer, rows and embeddings of a run,
    and evaluated at the end alone.
    """
    final: Path = arguments.out / name
    if final.is_dir():
        steps = read_json(final / "metrics.json")["steps"]
        if steps != arguments.steps:
            raise SystemExit(
                f"{final} made {steps} steps, not {arguments.steps}; give another --out"
            )
        return final
    steps = [f"train.steps={arguments.steps}", f"train.eval_every={arguments.steps}"]
    config = load_pretrain_config("reviews-electra-mini", [*steps, *overrides])
    work = arguments.out / f".{name}"
    work.mkdir(parents=True, exist_ok=True)
    inputs = [arguments.run / "tokenizer", arguments.run / "rows"]
    if config.embeddings == "cooccurrence":
        inputs.append(arguments.run / "embeddings")
    with directory_aside(final) as out:
        pretrain(config, *inputs, out=out, work=work, report=lambda _: None)
    return final


def tuned(place: Path, rate: float, seed: int) -> dict[str, float]:
    """Figures of a teacher of the quickstart that begins with this encoder."""
    file = place / f"fine-tuned-{rate:g}-{seed}.json"
    if not file.is_file():
        settings = [f"teacher.train.learning_rate={rate}", f"seed={seed}"]
        write_json(file, fine_tuned(load_config("quickstart", settings), str(place)))
    found: dict[str, float] = read_json(file)
    return {k: v for k, v in found.items() if k != "seconds"}
