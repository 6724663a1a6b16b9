"""Freed blocks stay with a process that is told to keep them."""

import os
import platform
import subprocess
import sys

import pytest

from sentisynth.models.allocator import VARIABLES

# Page faults of a block of 128 MiB that is made and freed again and again, once that is usual.
_FAULTS = """
import resource, sys, threading, torch
def work():
    for _ in range(12):  # until there is a hole that holds an aligned one
        torch.ones(2**25)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**25)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start() if sys.argv[1] == "thread" else work()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(
    ("how", "variables", "is_kept"),
    [("", {}, False), ("", VARIABLES, True), ("thread", VARIABLES, True)],
)
def test_freed_blocks_are_kept(how: str, variables: dict[str, str], is_kept: bool) -> None:
    found = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, how],
        env=found | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    pages = 5 * 2**27 // os.sysconf("SC_PAGE_SIZE")
    assert (int(done.stdout) < pages // 100) == is_kept
