"""Encoders of a benchmark: trained once, fine-tuned once, and kept in a directory."""

import argparse
import shutil
from pathlib import Path
from typing import Any

from fine_tuning import fine_tuned

from sentisynth.config.load import load_config, load_pretrain_config
from sentisynth.config.pretrain import PretrainConfig
from sentisynth.data.files import directory_aside, read_json, write_json
from sentisynth.models.loading import model_digest
from sentisynth.seeding import fingerprint
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
    counts = [f"train.steps={wanted}", f"train.eval_every={wanted}"]
    config = load_pretrain_config("reviews-electra-mini", [*counts, *overrides])
    made_of = _made_of(arguments.run, config)
    if final.is_dir():
        if read_json(final / "made-of.json") != made_of:
            raise SystemExit(f"{final} was made otherwise; give another --out")
        return final
    work = arguments.out / f".{name}-{fingerprint(made_of)[:8]}"
    work.mkdir(parents=True, exist_ok=True)
    inputs = [arguments.run / "tokenizer", arguments.run / "rows"]
    if config.embeddings == "cooccurrence":
        inputs.append(arguments.run / "embeddings")
    with directory_aside(final) as out:
        pretrain(config, *inputs, out=out, work=work, report=lambda _: None)
        write_json(out / "made-of.json", made_of)
    shutil.rmtree(work)
    return final


def _made_of(run: Path, config: PretrainConfig) -> dict[str, Any]:
    """What decides the weights: the settings, the run's tokenizer, and models that are named."""
    models = (config.masked.judge, config.start and config.start.model, str(run / "tokenizer"))
    digests = [model_digest(Path(model)) for model in models if model]
    return {"config": config.model_dump(mode="json"), "models": digests}


def tuned(place: Path, rate: float, seed: int) -> dict[str, float]:
    """Figures of a teacher of the quickstart that begins with this encoder."""
    file = place / f"fine-tuned-{rate:g}-{seed}.json"
    if not file.is_file():
        settings = [f"teacher.train.learning_rate={rate}", f"seed={seed}"]
        write_json(file, fine_tuned(load_config("quickstart", settings), str(place)))
    found: dict[str, float] = read_json(file)
    return {k: v for k, v in found.items() if k != "seconds"}
