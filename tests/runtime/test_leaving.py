"""Processes that hang when their last line of Python is done, as Ray's workers may."""

import os
import signal
import subprocess
import sys
import time

import psutil

# pause() waits for a signal, and exit() calls it after Python is gone.
_HANG = "import ctypes as c; l = c.CDLL(None); getattr(l, '__cxa_atexit')(l.pause, None, None)"


def test_a_process_that_hangs_as_it_leaves_is_ended() -> None:
    code = f"{_HANG}; from sentisynth.runtime.leaving import leave_in_time; leave_in_time(1)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -signal.SIGALRM
    assert time.monotonic() - started > 1


def test_a_process_that_leaves_is_left_alone() -> None:
    code = "from sentisynth.runtime.leaving import leave_in_time; leave_in_time(1)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


# A session whose worker leaves a hanging process behind; says that process' number.
_SESSION = f"""
import time

from sentisynth.runtime import leaving
from sentisynth.runtime.ray_cluster import connected

leaving._LONGEST_S = 1
with connected():
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def hang(self):
            import os
            {_HANG}
            return os.getpid()

    worker = Worker.remote()
    print(ray.get(worker.hang.remote()))
    del worker  # which leaves, by itself
    time.sleep(2)
print("ended")
"""


def test_no_process_outlives_a_local_session() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SESSION],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    pid, ended = done.stdout.split()
    assert ended == "ended"
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == "zombie"
