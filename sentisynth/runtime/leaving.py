"""Processes of Ray that hang as they leave.

A worker of Ray 2.60 may wait for ever while its core is destroyed, after its last line of Python
(`CoreWorkerProcess::HandleAtExit`: a publisher posts to a scheduler that is gone). Nobody looks
after it then: it keeps its memory, and its GPU, until the machine is restarted.
"""

import atexit
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil

_LONGEST_S, _TICK_S = 10, 0.1


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
    raylets = [child for child in _below(psutil.Process()) if _told(child.name) == "raylet"]
    workers = [worker for raylet in raylets for worker in _below(raylet)]
    yield
    until = time.monotonic() + _LONGEST_S
    while (left := [w for w in workers if _is_alive(w)]) and time.monotonic() < until:
        time.sleep(_TICK_S)
    for worker in left:
        _told(worker.kill)


def _below(process: psutil.Process) -> list[psutil.Process]:
    return _told(partial(process.children, recursive=True)) or []


def _is_alive(process: psutil.Process) -> bool:
    """A zombie is not: not every machine's first process takes orphans in."""
    return process.is_running() and _told(process.status) not in (None, psutil.STATUS_ZOMBIE)


def _told(ask: Callable[[], Any]) -> Any:
    """The answer of a process; None from one that is gone."""
    try:
        return ask()
    except psutil.NoSuchProcess:
        return None
