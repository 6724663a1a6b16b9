import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from sentisynth.signals import Stopped, kept, stoppable

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """Handlers that are known, and afterwards those that were there."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in ALL}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def told(*signals: signal.Signals) -> None:
    """Let the process be told, and give it time to hear."""
    for signum in signals:
        os.kill(os.getpid(), signum)
    time.sleep(0.05)


def handlers() -> list[object]:
    return [signal.getsignal(signum) for signum in ALL]


@pytest.mark.parametrize("signum", ALL)
def test_a_signal_stops_what_goes_on_and_says_which_it_was(signum: signal.Signals) -> None:
    before = handlers()
    with pytest.raises(Stopped) as stop, stoppable():
        told(signum)
    assert stop.value.signum == signum and isinstance(stop.value, KeyboardInterrupt)
    assert handlers() == before


@pytest.mark.parametrize("signum", ALL)
def test_a_signal_that_is_ignored_stays_ignored(signum: signal.Signals) -> None:
    signal.signal(signum, signal.SIG_IGN)
    with stoppable():
        told(signum)
        assert signal.getsignal(signum) is signal.SIG_IGN
    assert signal.getsignal(signum) is signal.SIG_IGN


def test_handlers_come_back_whatever_the_end() -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)
    before = handlers()
    with stoppable():
        assert handlers() != before
    assert handlers() == before
    with pytest.raises(ValueError, match="wrong"), stoppable():
        raise ValueError("wrong")
    assert handlers() == before


def test_a_second_signal_does_not_disturb_the_answer_to_the_first() -> None:
    answered = []

    def work() -> None:
        try:
            told(signal.SIGTERM)
        finally:
            told(*ALL)
            answered.append(True)

    with pytest.raises(Stopped) as stop, stoppable():
        work()
    assert answered and stop.value.signum == signal.SIGTERM


def test_a_library_that_takes_the_handlers_gives_them_back() -> None:
    before = handlers()
    with kept():
        for signum in ALL:
            signal.signal(signum, lambda *_: None)
    assert handlers() == before


def test_in_another_thread_nothing_is_done() -> None:
    before, found = handlers(), []

    def work() -> None:
        with stoppable(), kept():
            found.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_under_nohup_a_closed_terminal_is_no_reason_to_stop() -> None:
    script = """
import os, signal
from sentisynth.signals import stoppable
with stoppable():
    os.kill(os.getpid(), signal.SIGHUP)
    print("still here")
"""
    done = subprocess.run(
        ["nohup", sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout == "still here\n"
