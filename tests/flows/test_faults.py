"""What a machine does to a run: one clear sentence, and the same command then finishes."""

import fcntl
import os
import pty
import shutil
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import digests

from sentisynth.cli import main
from tests.flows.test_stream import command, copied, start, wait_for_units

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
GOES_ON = "the same command goes on from here"


@pytest.fixture(scope="module")
def calm(
    finished_run: Path, quick_overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What an undisturbed run makes."""
    out = copied(finished_run, tmp_path_factory.mktemp("calm") / "run")
    assert main(command(quick_overrides, out)) == 0
    return digests(out)


@pytest.fixture
def models(finished_run: Path, tmp_path: Path) -> Path:
    return copied(finished_run, tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 MB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "none", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal(
    models: Path, calm: dict[str, str], quick_overrides: list[str], signum: signal.Signals
) -> None:
    with start(command(quick_overrides, models)) as process:
        wait_for_units(models, process, 2)
        process.send_signal(signum)
        told = process.stderr.read().splitlines()
    assert process.returncode == 128 + signum
    assert told[-1] == f"sentisynth: stopped by {signum.name}; {GOES_ON}"
    assert not any("Traceback" in line for line in told)
    assert main(command(quick_overrides, models)) == 0
    assert digests(models) == calm


def test_a_closed_terminal(models: Path, calm: dict[str, str], quick_overrides: list[str]) -> None:
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    process = start(
        command(quick_overrides, models),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    shown = bytearray()
    os.set_blocking(ours, False)
    while not list((models / "pool").glob("label=*/unit-*.parquet")):
        try:
            shown += os.read(ours, 65536)
        except BlockingIOError:
            assert process.poll() is None, shown.decode()[-2000:]
    os.close(ours)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert main(command(quick_overrides, models)) == 0
    assert digests(models) == calm


def test_a_full_disk(
    finished_run: Path,
    small_disk: Path,
    calm: dict[str, str],
    quick_overrides: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copied(finished_run, small_disk / "run")
    filler = small_disk / "filler"
    room = shutil.disk_usage(small_disk).free - 600_000  # for the store of MLflow and few units
    with filler.open("wb") as file:
        file.write(bytes(room))
    assert main(command(quick_overrides, run)) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("sentisynth: ") and "No space left on device" in told[-1], told
    assert not any("Traceback" in line for line in told)
    filler.unlink()
    assert main(command(quick_overrides, run)) == 0
    assert digests(run) == calm


def test_a_clock_that_is_set_back(
    models: Path, calm: dict[str, str], quick_overrides: list[str], tmp_path: Path
) -> None:
    """The driver and its actors see an hour earlier from one moment to the next (libfaketime)."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("needs libfaketime")
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    settings = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with start(command(quick_overrides, models), env={**os.environ, **settings}) as process:
        wait_for_units(models, process, 2)
        clock.write_text("-3600\n")
        told = process.stderr.read()
    assert process.returncode == 0, told[-2000:]
    assert digests(models) == calm
