"""What a machine does to a run: one clear sentence, and the same command then finishes."""

import fcntl
import os
import pty
import shutil
import signal
import subprocess
import sys
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


def test_a_disk_that_is_full_from_the_start(
    finished_run: Path,
    small_disk: Path,
    calm: dict[str, str],
    quick_overrides: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copied(finished_run, small_disk / "run")
    filler = fill(small_disk, 600_000)  # not enough for MLflow's store
    assert main(command(quick_overrides, run)) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("sentisynth: ") and "is full" in told[-1], told
    assert not any("Traceback" in line for line in told), "\n".join(told)
    filler.unlink()
    assert main(command(quick_overrides, run)) == 0
    assert digests(run) == calm


def test_a_disk_that_becomes_full(
    finished_run: Path, small_disk: Path, calm: dict[str, str], quick_overrides: list[str]
) -> None:
    run = copied(finished_run, small_disk / "run")
    with start(command(quick_overrides, run)) as process:
        wait_for_units(run, process, 1)
        filler = fill(small_disk, 0)
        told = process.stderr.read().splitlines()
    assert process.returncode == 2, told[-20:]
    assert told[-1].startswith("sentisynth: "), told[-20:]
    assert any(said in told[-1] for said in ("No space left", "is full", "no space is left")), told[
        -20:
    ]
    assert not any("Traceback" in line for line in told), "\n".join(told)
    filler.unlink()
    assert main(command(quick_overrides, run)) == 0
    assert digests(run) == calm


def fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes of the disk."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        for size in (2**20, 2**12):
            while shutil.disk_usage(disk).free - left >= size:
                file.write(bytes(size))
                file.flush()
    return filler


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) {
    struct stat found;
    return stat(CLOCK_FILE, &found) == 0 ? -3600 : 0;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += shift();
    return status;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    int status = clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return status;
}
time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""


def test_a_clock_that_is_set_back(
    models: Path, calm: dict[str, str], quick_overrides: list[str], tmp_path: Path
) -> None:
    """The driver, its actors and Ray see an hour earlier from one moment to the next."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library, switch = (tmp_path / name for name in ("clock.c", "clock.so", "switch"))
    source.write_text(CLOCK)
    build = [compiler, "-shared", "-fPIC", "-O1", f'-DCLOCK_FILE="{switch}"', "-o", str(library)]
    subprocess.run([*build, str(source), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    now = [sys.executable, "-c", "import time; print(time.time())"]
    before = float(subprocess.check_output(now, env=environment))
    with start(command(quick_overrides, models), env=environment) as process:
        wait_for_units(models, process, 2)
        switch.touch()
        assert float(subprocess.check_output(now, env=environment)) < before
        told = process.stderr.read()
    assert process.returncode == 0, told[-2000:]
    assert digests(models) == calm
