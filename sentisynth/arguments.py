"""The arguments of the command line: what can be typed, and what it is taken for."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, get_args

from sentisynth import __version__
from sentisynth.config.pretrain import Kind
from sentisynth.config.types import SweepKind

_EPILOG = """\
RECIPE is a built-in name (see `sentisynth recipes`) or a YAML file. Any key of it can be set
(see `sentisynth keys RECIPE`):
    sentisynth run quickstart synthesis.n_per_class=500 distil.alpha=0.5
The same command again does nothing that is done, and goes on where it was interrupted.
"""
_SWEEP_EPILOG = """\
A KIND has a grid of its own; each of its points is trained for each of --seeds:
    alpha-beta 10 x 10   alpha 10   beta 10   tau 6   temperature 4   size 5   arms 3
Beside keys of the recipe:
    dim.KEY=[a,b,c]          other values, or a dimension more: alpha, beta, tau, temperature,
                             size, arm, student.model, student.train.learning_rate and others
    search=grid|optuna       optuna draws samples=N points from ranges, dim.KEY=uniform(a,b) or
                             loguniform(a,b), of alpha, beta, temperature and student.train's rates
    stopping=none|asha|median
    register=NAME            the best student becomes a version of that registered model
"""
_SUBMIT = "the same command as a Ray job: submit COMMAND ... --address URL --out DIR [--detach]"
_PRETRAIN = "a base model from unlabelled text alone: an encoder, or a generator"
_STAGE_HELP = {
    "run": "the whole pipeline: teacher, generator, synthesis, dataset, student, evaluation",
    "teacher": "stage A: fine-tune the teacher on the seed rows",
    "generator": "stage B: fine-tune the generator on the seed rows",
    "synthesize": "stages C and D: generate and verify up to the quota, select the dataset",
    "distil": "stage E: train the student with and without the synthetic rows",
    "evaluate": "metrics.json and report.html from what is there",
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed arguments; argparse leaves a key=value that follows an option, it is put back."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["submit"]:
        return _parse_submit(given[1:])
    parser = _parser()
    arguments, rest = parser.parse_known_args(given)
    unknown = [a for a in rest if a.startswith("-") or not hasattr(arguments, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides += rest
    return arguments


def _parse_submit(given: list[str]) -> argparse.Namespace:
    """`submit` is a command with options of its own around it, in any order."""
    parser = _submit_parser()
    own, rest = parser.parse_known_args(given)
    arguments = parse(rest)
    if arguments.command not in ("stage", "sweep", "pretrain"):
        parser.error(f"{rest[0]} needs no cluster; run it here")
    arguments.inner, arguments.command = arguments.command, "submit"
    arguments.address, arguments.detach = own.address, own.detach
    return arguments


def _submit_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sentisynth submit",
        usage="sentisynth submit COMMAND ... --address URL --out DIR [--detach]",
        description=_SUBMIT,
    )
    default = os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    parser.add_argument("--address", default=default, help=f"of the Jobs API ({default})")
    parser.add_argument("--detach", action="store_true", help="do not follow the job")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sentisynth",
        description="A few labelled texts in, a small, fast, accurate text classifier out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sentisynth {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    recipes = commands.add_parser("recipes", help="built-in recipes, one line each")
    recipes.set_defaults(command="recipes")
    text = "all keys of a recipe: value, meaning, choices"
    keys = commands.add_parser("keys", help=text, description=text)
    keys.add_argument("recipe", metavar="RECIPE", help="a built-in recipe or a YAML file")
    keys.add_argument("word", metavar="WORD", nargs="?", default="", help="keys with it alone")
    keys.set_defaults(command="keys")
    for name, text in _STAGE_HELP.items():
        stage = _recipe_command(commands, name, text)
        stage.add_argument(
            "--overwrite", action="store_true", help="replace stages that were made otherwise"
        )
        stage.add_argument(
            "--progress",
            choices=("line", "json", "ray"),
            default="line",
            help="a line for people, JSON lines for machines, or Ray Data's own for the stream",
        )
        stage.set_defaults(command="stage", stage=name)
    preview = _recipe_command(
        commands, "preview", "a few candidates with the teacher's verdicts; nothing is written"
    )
    preview.add_argument("-n", type=_positive, default=20, help="candidates (default 20)")
    preview.set_defaults(command="preview")
    plan = _recipe_command(
        commands, "plan", "memory by part, disk and placement that `run` would need; trains nothing"
    )
    plan.add_argument("--gpus", type=int, help="GPUs of a cluster that is not at hand")
    plan.add_argument("--gpu-memory", type=float, help="GiB of each of them (default 80)")
    plan.set_defaults(command="plan")
    _add_sweep(commands)
    _add_pretrain(commands)
    commands.add_parser("submit", help=_SUBMIT)
    for name, text in (
        ("check", "verify checksums, ledger and splits of a run"),
        ("report", "write DIR/report.html anew from DIR"),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("directory", metavar="DIR", help="a run directory, a path or a URI")
        sub.set_defaults(command=name)
    return parser


def _add_sweep(commands: Any) -> None:
    sweep = _recipe_command(
        commands, "sweep", "many students from one pool, on Ray Tune: α×β, τ, T, size, arms"
    )
    sweep.add_argument(
        "--seeds", type=_integers, default=[41, 42, 43], help="of each point (41,42,43)"
    )
    sweep.add_argument(
        "--overwrite", action="store_true", help="replace trials that were made otherwise"
    )
    sweep.add_argument("--progress", choices=("line", "json"), default="line")
    sweep.set_defaults(command="sweep")


def _add_pretrain(commands: Any) -> None:
    pretrain = commands.add_parser("pretrain", help=_PRETRAIN, description=_PRETRAIN)
    made = get_args(Kind)
    pretrain.add_argument("kind", metavar="KIND", choices=made, help=", ".join(made))
    _recipe_arguments(pretrain)
    pretrain.add_argument(
        "--overwrite", action="store_true", help="replace what was made otherwise"
    )
    pretrain.add_argument("--progress", choices=("line", "json"), default="line")
    pretrain.set_defaults(command="pretrain")


def _recipe_command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=_SWEEP_EPILOG if name == "sweep" else _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if name == "sweep":
        kinds = get_args(SweepKind)
        sub.add_argument("kind", metavar="KIND", choices=kinds, help=", ".join(kinds))
    _recipe_arguments(sub)
    assert isinstance(sub, argparse.ArgumentParser)
    return sub


def _recipe_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", metavar="RECIPE", help="a built-in recipe or a YAML file")
    sub.add_argument("overrides", metavar="key=value", nargs="*", help="set a key of the recipe")
    sub.add_argument("--out", help="run directory, a path or a URI (default runs/NAME)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no list such as 41,42,43") from None
