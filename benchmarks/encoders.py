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


def trained(
    arguments: argparse.Namespace, name: str, overrides: list[str], steps: int | None = None
) -> Path:
    """The directory of a model that was pretrained on the tokenizer, rows and embeddings of a run,
    and evaluated at the end alone; `steps`: another number than the command line's.
    """
    final: Path = arguments.out / name
    wanted = steps or arguments.steps
    if final.is_dir():
        made = read_json(final / "metrics.json")["steps"]
        if made != wanted:
            raise SystemExit(f"{final} made {made} steps, not {wanted}; give another --out")
        return final
    counts = [f"train.steps={wanted}", f"train.eval_every={wanted}"]
    config = load_pretrain_config("reviews-electra-mini", [*counts, *overrides])
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
