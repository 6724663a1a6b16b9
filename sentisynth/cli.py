"""The command line. Exit status 0: what was asked for is there; 1: `check` found damage;
2: a mistake that the message tells how to mend; 129, 130, 143: stopped by a closed terminal,
Ctrl-C, SIGTERM.
"""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, get_args

from sentisynth import __version__
from sentisynth.config.load import load_config, recipe_names
from sentisynth.config.types import SweepKind
from sentisynth.errors import SentisynthError
from sentisynth.signals import stoppable

_EPILOG = """\
RECIPE is a built-in name (see `sentisynth recipes`) or a YAML file. Any key of it can be set:
    sentisynth run quickstart synthesis.n_per_class=500 distil.alpha=0.5
The same command again does nothing that is done, and goes on where it was interrupted.
"""
# Read when these packages are imported: what they would print beside our own progress.
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "killed by `ray.kill`",  # how a stream with enough rows ends
}
_SWEEP_OPTIONS: dict[str, Any] = {
    "search": "grid",
    "samples": 32,
    "stopping": "none",
    "register": "",
}
_STAGE_HELP = {
    "run": "the whole pipeline: teacher, generator, synthesis, dataset, student, evaluation",
    "teacher": "stage A: fine-tune the teacher on the seed rows",
    "generator": "stage B: fine-tune the generator on the seed rows",
    "synthesize": "stages C and D: generate and verify up to the quota, select the dataset",
    "distil": "stage E: train the student with and without the synthetic rows",
    "evaluate": "metrics.json and report.html from what is there",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    arguments = _parse(argv)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with stoppable():
            status = int(arguments.command(arguments))
            sys.stdout.flush()
            return status
    except SentisynthError as error:
        return _told(str(error), 2)
    except KeyboardInterrupt as stop:
        signum = getattr(stop, "signum", signal.SIGINT)
        name = signal.Signals(signum).name
        return _told(f"stopped by {name}; the same command goes on from here", 128 + signum)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno == errno.EIO:  # what a closed terminal answers, or a disk
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _told(f"an input or output failed: {error}", 128 + signal.SIGHUP)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" ({error.filename})" if error.filename else ""
        return _told(f"no space is left to write to{place}; free some and run it again", 2)


def _told(sentence: str, status: int) -> int:
    with suppress(OSError):  # a terminal that was closed
        print(f"sentisynth: {sentence}", file=sys.stderr, flush=True)
    return status


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed arguments; argparse leaves a key=value that follows an option, it is put back."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    unknown = [a for a in rest if a.startswith("-") or not hasattr(arguments, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides += rest
    return arguments


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
    recipes.set_defaults(command=_recipes)
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
        stage.set_defaults(command=_stage, stage=name)
    preview = _recipe_command(
        commands, "preview", "a few candidates with the teacher's verdicts; nothing is written"
    )
    preview.add_argument("-n", type=_positive, default=20, help="candidates (default 20)")
    preview.set_defaults(command=_preview)
    plan = _recipe_command(
        commands, "plan", "memory by part, disk and placement that `run` would need; starts nothing"
    )
    plan.add_argument("--gpus", type=int, help="GPUs of a cluster that is not at hand")
    plan.add_argument("--gpu-memory", type=float, help="GiB of each of them (default 80)")
    plan.set_defaults(command=_plan)
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
    sweep.set_defaults(command=_sweep)
    for name, text, command in (
        ("check", "verify checksums, ledger and splits of a run", _check),
        ("report", "write DIR/report.html anew from DIR", _report),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("directory", metavar="DIR", help="a run directory, a path or a URI")
        sub.set_defaults(command=command)
    return parser


def _recipe_command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if name == "sweep":
        kinds = get_args(SweepKind)
        sub.add_argument("kind", metavar="KIND", choices=kinds, help=", ".join(kinds))
    sub.add_argument("recipe", metavar="RECIPE", help="a built-in recipe or a YAML file")
    sub.add_argument("overrides", metavar="key=value", nargs="*", help="set a key of the recipe")
    sub.add_argument("--out", help="run directory, a path or a URI (default runs/NAME)")
    assert isinstance(sub, argparse.ArgumentParser)
    return sub


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


def _recipes(_: argparse.Namespace) -> int:
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        print(f"{name:{width}}  {load_config(name).description}")
    return 0


def _stage(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.recipe, arguments.overrides)
    from sentisynth.data.storage import location
    from sentisynth.flows.console import Console
    from sentisynth.flows.pipeline import STAGES, opened

    out = location(arguments.out or f"runs/{config.name}")
    console = Console(arguments.progress)
    with opened(config, out, console, arguments.stage, arguments.overwrite) as session:
        for step in STAGES[arguments.stage]:
            step(session)
    return 0


def _preview(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.recipe, arguments.overrides)
    from sentisynth.data.storage import location
    from sentisynth.flows.preview import preview

    preview(config, location(arguments.out or f"runs/{config.name}"), arguments.n)
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.recipe, arguments.overrides)
    from sentisynth.flows.console import Console
    from sentisynth.flows.plan import plan

    plan(config, Console(), arguments.gpus, arguments.gpu_memory)
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    options = [o for o in arguments.overrides if o.partition("=")[0] in _SWEEP_OPTIONS]
    dims = [o for o in arguments.overrides if o.startswith("dim.")]
    rest = [o for o in arguments.overrides if o not in (*options, *dims)]
    config = load_config(arguments.recipe, rest)
    from sentisynth.config.load import parse_value
    from sentisynth.data.storage import location
    from sentisynth.flows.console import Console
    from sentisynth.flows.pipeline import opened
    from sentisynth.flows.sweep import run_sweep
    from sentisynth.flows.sweep_plan import plan_sweep

    chosen = dict(_SWEEP_OPTIONS)
    chosen |= {o.partition("=")[0]: parse_value(o.partition("=")[2]) for o in options}
    plan = plan_sweep(
        arguments.kind,
        config,
        {d.partition("=")[0][4:]: parse_value(d.partition("=")[2]) for d in dims},
        seeds=arguments.seeds,
        **chosen,
    )
    out = location(arguments.out or f"runs/{config.name}")
    console = Console(arguments.progress)
    with opened(config, out, console, "sweep", arguments.overwrite) as session:
        run_sweep(session, plan)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from sentisynth.data.storage import location
    from sentisynth.flows.check import check_run

    problems = check_run(location(arguments.directory))
    for problem in problems:
        print(problem)
    print(f"{arguments.directory}: " + (f"{len(problems)} problems" if problems else "all is well"))
    return 1 if problems else 0


def _report(arguments: argparse.Namespace) -> int:
    from sentisynth.data.storage import location
    from sentisynth.flows.results import rewrite_report

    print(rewrite_report(location(arguments.directory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
