"""Processes of Ray that hang as they leave.

A worker of Ray 2.60 may wait for ever while its core is destroyed, after its last line of Python
(`CoreWorkerProcess::HandleAtExit`: a publisher posts to a scheduler that is gone). Nobody looks
after it then: it keeps its memory, and its GPU, until the machine is restarted.
"""

import atexit
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_LONGEST_S = 10


def leave_in_time(seconds: int = _LONGEST_S) -> None:
    """Have the kernel end this process (SIGALRM) if it takes longer than that to leave, from the
    end of Python on. For every process that holds a model.
    """

    def wake() -> None:  # in the main thread, whichever registered it
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)

    atexit.register(wake)


@contextmanager
def workers_ended() -> Iterator[None]:
    """Around the end of a local session: its workers are killed if they outlive it for long."""
    workers = [
        worker
        for child in psutil.Process().children(recursive=True)
        if _is_raylet(child)
        for worker in child.children(recursive=True)
    ]
    yield
    _, left = psutil.wait_procs(workers, timeout=_LONGEST_S)
    for worker in left:
        worker.kill()  # does nothing where another process has the number now


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return bool(process.name() == "raylet")
    except psutil.NoSuchProcess:
        return False
