"""The stream's promises on real actors: the same bytes for any actors, order and kills."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from chaos import digests

from sentisynth.cli import main
from sentisynth.flows import synthesize as flow
from sentisynth.runtime.stream import UnitStream

MORE = ["synthesis.n_per_class=60", "synthesis.max_candidates_per_class=6400"]


@pytest.fixture
def models(finished_run: Path, tmp_path: Path) -> Path:
    """A run that has its models and no pool yet."""
    return copied(finished_run, tmp_path / "models")


def copied(run: Path, out: Path) -> Path:
    for part in ("corpus", "teacher", "generator"):
        shutil.copytree(run / part, out / part)
    return out


def command(overrides: list[str], out: Path) -> list[str]:
    return ["synthesize", "quickstart", *overrides, *MORE, "--out", str(out)]


def actors(n: int) -> list[str]:
    pools = ("generate", "verify")
    return [f"synthesis.{p}_pool.{k}_actors={n}" for p in pools for k in ("min", "max")] + [
        f"synthesis.{p}_pool.cpus=0.2" for p in pools
    ]


def start(arguments: list[str], **options: object) -> subprocess.Popen:
    """The command line in a process of its own, as a shell starts it."""
    settings = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": interruptible, **options}
    return subprocess.Popen([sys.executable, "-m", "sentisynth.cli", *arguments], **settings)


def interruptible() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def wait_for_units(run: Path, process: subprocess.Popen, n: int) -> None:
    deadline = time.monotonic() + 120
    while len(list((run / "pool").glob("label=*/unit-*.parquet"))) < n:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "n", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_placement_and_order_change_no_byte(
    n: int,
    models: Path,
    finished_run: Path,
    quick_overrides: list[str],
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The finished run's actors ran all stages; here are n of each stage, in shuffled order."""
    wanted = digests(finished_run)
    apart = ["synthesize", "quickstart", *quick_overrides, *actors(n), "--out", str(models)]
    monkeypatch.setattr(flow, "UnitStream", partial(UnitStream, shuffle=7))
    assert main(apart) == 0
    assert digests(models) == wanted


@pytest.mark.timeout(900)
def test_nothing_is_lost_or_made_twice_when_ten_things_are_killed(
    models: Path, finished_run: Path, tmp_path: Path, quick_overrides: list[str]
) -> None:
    """A small `benchmarks/chaos.py`; in a process of its own, since it has a cluster of its own.

    Its actors run all stages, as on any machine without a GPU; `make chaos` kills both kinds.
    """
    json_file = tmp_path / "chaos.json"
    options = ["--kills", "10", "--n-per-class", "60", "--seed", "3", "--actors", "1"]
    options += ["--nodes", "2", "--run", str(models), "--undisturbed", str(finished_run)]
    options += ["--json", str(json_file), *quick_overrides]
    done = subprocess.run(
        [sys.executable, "benchmarks/chaos.py", *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(json_file.read_text())
    assert figures["kills"] >= 10
    assert figures["rows lost"] == figures["rows twice"] == 0
    assert figures["files that differ from the undisturbed run"] == 0
