"""Kill the stream at random and compare what it made with an undisturbed run.

    python benchmarks/chaos.py --kills 200 [--seed N] [--json FILE] [--run DIR]
        [--undisturbed DIR]

A several-node Ray cluster on this machine runs `sentisynth synthesize` with tiny models that it
trains first. Workers of every stage, the plan's mailbox, raylets (whole nodes) and the driver get
SIGKILL at random moments, some of them between the write and the rename of a unit; a driver that
was hit is started again with the same command. When a run ends it is compared, file by file, with
the undisturbed one, and the next begins, until there were enough kills. Runs take turns: in one
(and the undisturbed one) each actor runs all stages, the next has a pool of actors for each stage.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from chaos_nodes import Driver, Nodes
from environment import environment

TINY = [
    "data.n_seed=96",
    "teacher.train.epochs=2",
    "generator.train.epochs=1",
    "synthesis.tau=0.5",
    "synthesis.unit_size=32",
    "synthesis.sampling.max_new_tokens=24",
]
SHARES = {"worker": 0.70, "raylet": 0.12, "driver": 0.10, "before rename": 0.08}
_BESIDE = "label=*/.unit-*.tmp"
_STUCK_S = 180
_MOST_A_RUN = 100  # so that of 200 each placement gets some


@dataclass
class Found:
    """What the kills did, over all runs."""

    kills: Counter[str] = field(default_factory=Counter)
    kills_shared: int = 0
    rounds: int = 0
    rows_lost: int = 0
    rows_twice: int = 0
    files_different: int = 0
    units_again: Counter[str] = field(default_factory=Counter)
    units: int = 0
    torn_writes: int = 0
    resumes: list[float] = field(default_factory=list)
    resumed_after: list[float] = field(default_factory=list)


def pools(actors: int) -> list[str]:
    """So many generators and teachers."""
    return [
        f"synthesis.{pool}.{key}={value}"
        for pool in ("generate_pool", "verify_pool")
        for key, value in {"min_actors": actors, "max_actors": actors, "cpus": 0.5}.items()
    ]


def torment(
    recipe: list[str],
    work: Path,
    run: Path,
    calm: Path | None,
    kills: int,
    seed: int,
    n_nodes: int,
    actors: int,
) -> Found:
    """Run, kill, restart and compare until there were `kills` kills. `run` has trained models;
    `calm` a pool and dataset that nothing disturbed, else they are made.
    """
    choose, found = random.Random(seed), Found()
    nodes = Nodes(n_nodes)
    try:
        if calm is None:
            calm = _copy(run, work / "calm")
            driver = Driver(recipe, calm, work / "trace-calm", nodes.address)
            if driver.wait() != 0:
                raise SystemExit(f"the undisturbed run failed:\n{driver.told()}")
        wanted = digests(calm)
        while found.kills.total() < kills:
            out, trace = work / f"run-{found.rounds}", work / f"trace-{found.rounds}"
            _copy(run, out)
            before, is_shared = found.kills.total(), found.rounds % 2 == 0
            most = min(kills, before + _MOST_A_RUN)
            placed = [] if is_shared else pools(actors)
            _one_run([*recipe, *placed], out, trace, nodes, choose, found, most)
            found.rounds += 1
            found.kills_shared += (found.kills.total() - before) * is_shared
            _compare(out, calm, trace, wanted, found)
            shutil.rmtree(out)
            say(f"run {found.rounds}: {found.kills.total()} kills so far, {dict(found.kills)}")
    finally:
        nodes.stop()
    return found


def _one_run(
    recipe: list[str],
    out: Path,
    trace: Path,
    nodes: Nodes,
    choose: random.Random,
    found: Found,
    kills: int,
) -> None:
    driver = Driver(recipe, out, trace, nodes.address)
    seen, newest, restarted, moved = 0, 0, False, time.monotonic()
    while driver.poll() is None:
        if time.monotonic() - moved > _STUCK_S:
            raise SystemExit(f"nothing happened for {_STUCK_S} s:\n{driver.told()}")
        n_units = sum(1 for _ in (out / "pool").glob("label=*/unit-*.parquet"))
        if n_units > newest:
            newest, moved = n_units, time.monotonic()
        if n_units <= seen or found.kills.total() >= kills:
            time.sleep(0.1)
            continue
        if restarted:
            found.resumed_after.append(time.monotonic() - driver.started)
            restarted = False
        time.sleep(choose.uniform(0, 4))
        seen = n_units
        for _ in range(choose.choice([1, 2, 3, 4, 5, 6])):
            kind = choose.choices([*SHARES], [*SHARES.values()])[0]
            if driver.poll() is not None or found.kills.total() >= kills:
                break
            if kind == "raylet":
                nodes.kill_one(choose)
            elif kind == "driver":
                driver.kill()
                _note_resume(driver, found)
                driver, restarted = Driver(recipe, out, trace, nodes.address), True
            elif kind == "worker":
                workers = nodes.workers()
                if not workers:
                    continue
                with suppress(ProcessLookupError):
                    os.kill(choose.choice(workers), signal.SIGKILL)
            elif not (killed := _kill_before_rename(out / "pool", trace, nodes, found)):
                continue
            else:
                found.kills[kind] += killed - 1
            found.kills[kind] += 1
            say(f"  kill {found.kills.total()}: {kind}")
        moved = time.monotonic()
    _note_resume(driver, found)
    if driver.wait() != 0:
        raise SystemExit(f"a run failed after {found.kills.total()} kills:\n{driver.told()}")


def _note_resume(driver: Driver, found: Found) -> None:
    found.resumes += [e["seconds"] for e in driver.events() if e["event"] == "recovered"]


def _kill_before_rename(pool: Path, trace: Path, nodes: Nodes, found: Found) -> int:
    """SIGKILL all writers while a unit lies beside its name; how many there were."""
    deadline, left = time.monotonic() + 15, {*pool.glob(_BESIDE)}  # by those who were killed before
    while time.monotonic() < deadline:
        for beside in {*pool.glob(_BESIDE)} - left:
            writers = [pid for pid in nodes.workers() if f"{pid}" in _writers(trace)]
            for pid in writers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            found.torn_writes += beside.exists()
            return len(writers)
        time.sleep(0.0005)
    return 0


def _writers(trace: Path) -> set[str]:
    return {path.name.split("-")[1] for path in trace.glob("write-*")}


def digests(run: Path) -> dict[str, str]:
    """sha256 of every file of pool and dataset; the stamps name no file of their own."""
    files = [p for part in ("pool", "dataset") for p in sorted((run / part).rglob("*"))]
    return {
        p.relative_to(run).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.is_file()
    }


def _compare(out: Path, calm: Path, trace: Path, wanted: dict[str, str], found: Found) -> None:
    made = digests(out)
    different = [f for f in sorted({*made, *wanted}) if made.get(f) != wanted.get(f)]
    found.files_different += len(different)
    for name in different:
        say(f"differs: {name}")
    for part in ("pool", "dataset"):
        ids, expected = candidates(out / part), candidates(calm / part)
        found.rows_lost += len(set(expected) - set(ids))
        found.rows_twice += len(ids) - len(set(ids))
    ends: Counter[tuple[str, str]] = Counter()
    for path in trace.glob("*-*.trace"):
        stage = path.name.split("-")[0]
        ends.update((stage, unit) for unit in path.read_text().split())
    for (stage, _), n in ends.items():
        found.units_again[stage] += n - 1
    found.units += len({unit for _, unit in ends})


def candidates(part: Path) -> list[str]:
    """Names of all synthetic rows in the Parquet files of a pool or a dataset."""
    files = part.rglob("*.parquet")
    ids = [pq.read_table(f, partitioning=None)["candidate_id"].to_pylist() for f in files]
    return [i for column in ids for i in column if i is not None]


def _copy(run: Path, out: Path) -> Path:
    out.mkdir(parents=True)
    for part in ("corpus", "teacher", "generator"):
        shutil.copytree(run / part, out / part)
    return out


def train(recipe: list[str], run: Path) -> None:
    """The tiny models, made as a user makes them."""
    for command in ("teacher", "generator"):
        args = [sys.executable, "-m", "sentisynth.cli", command, *recipe]
        subprocess.run([*args, "--out", str(run)], check=True, stderr=subprocess.DEVNULL)


def report(found: Found, seconds: float) -> dict[str, Any]:
    """The figures that are printed, in order."""
    again = {stage: n for stage, n in sorted(found.units_again.items()) if n}
    figures: dict[str, Any] = {
        **{f"kills: {kind}": found.kills[kind] for kind in SHARES},
        "kills where each actor runs all stages": found.kills_shared,
        "kills": found.kills.total(),
        "units beside their names after a kill before the rename": found.torn_writes,
        "runs": found.rounds,
        "units": found.units,
        "rows lost": found.rows_lost,
        "rows twice": found.rows_twice,
        "files that differ from the undisturbed run": found.files_different,
        "units done more than once, by stage": again,
        "seconds to read the pool at a resume, largest": _largest(found.resumes),
        "seconds from the restart to the next unit, largest": _largest(found.resumed_after),
        "seconds in all": round(seconds),
    }
    return figures


def _largest(values: list[float]) -> float | None:
    return round(max(values), 2) if values else None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-per-class", type=int, default=400)
    parser.add_argument("--actors", type=int, default=2, help="of each in a run with pools")
    parser.add_argument("--nodes", type=int, default=3, help="beside the head")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=Path, help="a run with models trained on these settings")
    parser.add_argument("--undisturbed", type=Path, help="a run of these settings that is done")
    parser.add_argument("overrides", nargs="*", default=TINY, metavar="key=value")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        work = Path(directory)
        run = arguments.run or work / "models"
        recipe = ["quickstart", *arguments.overrides]
        if arguments.run is None:
            say("training the tiny models")
            train(recipe, run)
        recipe += [f"synthesis.n_per_class={arguments.n_per_class}"]
        kills, seed = arguments.kills, arguments.seed
        calm, n_nodes, actors = arguments.undisturbed, arguments.nodes, arguments.actors
        found = torment(recipe, work, run, calm, kills, seed, n_nodes, actors)
    figures = report(found, time.monotonic() - started)
    for name, value in figures.items():
        print(f"{name:54} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**environment(), **figures}, indent=2) + "\n")
    sys.exit(any([found.rows_lost, found.rows_twice, found.files_different]))


if __name__ == "__main__":
    main()
