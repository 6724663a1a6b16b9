"""The command line. Exit status 0: what was asked for is there; 1: `check` found damage;
2: a mistake that the message tells how to mend; 129, 130, 143: stopped by a closed terminal,
Ctrl-C, SIGTERM.
"""

import argparse
import errno
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sentisynth.arguments import parse
from sentisynth.config.keys import keys_of
from sentisynth.config.load import (
    load_any_config,
    load_config,
    load_pretrain_config,
    recipe_names,
)
from sentisynth.config.pretrain import PretrainConfig
from sentisynth.config.types import NamedConfig
from sentisynth.data.text import shown
from sentisynth.errors import ConfigError, SentisynthError
from sentisynth.signals import stoppable

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    arguments = parse(argv)
    with suppress(AttributeError):  # not every stream that stands in for one
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with stoppable(), _on_loopback():
            status = _COMMANDS[arguments.command](arguments)
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


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a session on this machine alone open its ports on the loopback, as Ray does by itself on
    Windows and macOS; it reads this when it is imported. Left as it is where a cluster is named.
    """
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    if os.environ.get("RAY_ADDRESS") or name in os.environ:
        yield
        return
    os.environ[name] = "0"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _told(sentence: str, status: int) -> int:
    with suppress(OSError):  # a terminal that was closed
        print(f"sentisynth: {shown(sentence)}", file=sys.stderr, flush=True)
    return status


def _recipes(_: argparse.Namespace) -> int:
    base = recipe_names(PretrainConfig)
    width = max(map(len, [*recipe_names(), *base]))
    for name in recipe_names():
        print(f"{name:{width}}  {load_config(name).description}")
    print("for `sentisynth pretrain`:")
    for name in base:
        print(f"{name:{width}}  {load_pretrain_config(name).description}")
    return 0


def _keys(arguments: argparse.Namespace) -> int:
    found = [k for k in keys_of(load_any_config(arguments.recipe)) if arguments.word in k.name]
    if not found:
        raise ConfigError(f"no key of {arguments.recipe} has {arguments.word!r} in its name")
    for key in found:
        choices = f" One of {', '.join(key.choices)}." if key.choices else ""
        print(shown(f"{key.name}={key.value}"))
        print(textwrap.indent(textwrap.fill(key.meaning + choices, 92), "    "))
    return 0


def _out(arguments: argparse.Namespace, name: str) -> Any:
    """The run directory; a job's must be one that outlives the job."""
    from sentisynth.data.storage import location
    from sentisynth.flows.submit import check_shared
    from sentisynth.runtime.jobs import is_job

    if is_job():
        check_shared(arguments.out or "")
    return location(arguments.out or f"runs/{name}")


def _stage(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.recipe, arguments.overrides)
    from sentisynth.flows.console import Console
    from sentisynth.flows.pipeline import STAGES, opened

    out = _out(arguments, config.name)
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


def _pretrain_config(arguments: argparse.Namespace) -> PretrainConfig:
    config = load_pretrain_config(arguments.recipe, arguments.overrides)
    if config.kind != arguments.kind:
        raise ConfigError(
            f"{arguments.recipe} makes a model of kind {config.kind!r}; run `sentisynth pretrain "
            f"{config.kind} {arguments.recipe}`"
        )
    return config


def _pretrain(arguments: argparse.Namespace) -> int:
    config = _pretrain_config(arguments)
    from sentisynth.flows.console import Console
    from sentisynth.flows.pretrain import run_pretrain

    out, console = _out(arguments, config.name), Console(arguments.progress)
    run_pretrain(config, out, console, overwrite=arguments.overwrite)
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    options, dims, rest = _sweep_overrides(arguments)
    config = load_config(arguments.recipe, rest)
    from sentisynth.config.yaml_text import parse_value
    from sentisynth.flows.console import Console
    from sentisynth.flows.pipeline import corpus_of_teacher, opened
    from sentisynth.flows.sweep import run_sweep
    from sentisynth.flows.sweep_plan import plan_sweep, refuse_store

    chosen = dict(_SWEEP_OPTIONS)
    for name, _, text in (option.partition("=") for option in options):
        chosen[name] = text if name == "register" else parse_value(text)
    plan = plan_sweep(
        arguments.kind,
        config,
        {d.partition("=")[0][4:]: parse_value(d.partition("=")[2]) for d in dims},
        seeds=arguments.seeds,
        **chosen,
    )
    refuse_store(arguments.out)
    out = _out(arguments, config.name)
    console = Console(arguments.progress)
    with opened(config, out, console, "sweep", arguments.overwrite) as session:
        corpus_of_teacher(session)
        run_sweep(session, plan)
    return 0


def _sweep_overrides(arguments: argparse.Namespace) -> tuple[list[str], list[str], list[str]]:
    """The sweep's options, its dimensions, and keys of the recipe."""
    options = [o for o in arguments.overrides if o.partition("=")[0] in _SWEEP_OPTIONS]
    dims = [o for o in arguments.overrides if o.startswith("dim.")]
    return options, dims, [o for o in arguments.overrides if o not in (*options, *dims)]


def _submit(arguments: argparse.Namespace) -> int:
    options = ["--progress", "line" if arguments.progress == "ray" else arguments.progress]
    options += ["--overwrite"] if arguments.overwrite else []
    config: NamedConfig
    if arguments.inner == "sweep":
        from sentisynth.flows.sweep_plan import refuse_store

        refuse_store(arguments.out)
        command = ["sweep", arguments.kind]
        own, dims, rest = _sweep_overrides(arguments)
        options = [*own, *dims, "--seeds", ",".join(map(str, arguments.seeds)), *options]
        config = load_config(arguments.recipe, rest)
    elif arguments.inner == "pretrain":
        command, config = ["pretrain", arguments.kind], _pretrain_config(arguments)
    else:
        command, config = [arguments.stage], load_config(arguments.recipe, arguments.overrides)
    from sentisynth.flows.submit import submit

    out = arguments.out or ""
    cluster, job, was_running = submit(config, command, options, out=out, address=arguments.address)
    what = "is running already" if was_running else "was submitted"
    print(f"job {job} {what} at {cluster.address}", file=sys.stderr)
    if arguments.detach:
        return 0
    try:
        return cluster.follow(job)
    except KeyboardInterrupt:
        stop = f"ray job stop {job} --address {cluster.address}"
        print(f"\nsentisynth: the job goes on; `{stop}` ends it", file=sys.stderr)
        raise


def _check(arguments: argparse.Namespace) -> int:
    from sentisynth.data.storage import location
    from sentisynth.flows.check import check_run

    problems = check_run(location(arguments.directory))
    for problem in problems:
        print(shown(problem))
    print(f"{arguments.directory}: " + (f"{len(problems)} problems" if problems else "all is well"))
    return 1 if problems else 0


def _report(arguments: argparse.Namespace) -> int:
    from sentisynth.data.storage import location
    from sentisynth.flows.results import rewrite_report

    print(rewrite_report(location(arguments.directory)))
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "recipes": _recipes,
    "keys": _keys,
    "stage": _stage,
    "preview": _preview,
    "plan": _plan,
    "pretrain": _pretrain,
    "sweep": _sweep,
    "submit": _submit,
    "check": _check,
    "report": _report,
}

if __name__ == "__main__":
    sys.exit(main())
