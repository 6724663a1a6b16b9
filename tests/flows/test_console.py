"""What is seen while a run goes on, on a terminal that is one (a pseudo-terminal) and elsewhere."""

import errno
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sentisynth.config.outside import ClusterConfig
from sentisynth.config.types import TrainConfig
from sentisynth.data.run_directory import RunDirectory
from sentisynth.flows import training
from sentisynth.flows.console import Console, Style, duration, training_line
from sentisynth.flows.sweep import _follower

STYLES: list[Style] = ["line", "json", "ray"]


def at_work(console: Console) -> None:
    """A stage with everything that one shows."""
    console.skipped("A  before")
    with console.stage("C  synthesis"):
        console.note("a note")
        console.progress("3 of 4", {"accepted": {"negative": 3}, "rows_per_s": 1.5})
    console.table("title", ["arm", "F1"], [["student", "0.750"]])
    console.result("  done [not markup]")


def entries(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_for_machines_each_line_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    at_work(Console("json"))
    out, err = capsys.readouterr()
    told = entries(err)
    assert [e["event"] for e in told] == ["skipped", "started", "note", "progress", "finished"]
    c = "C  synthesis"
    assert [entry.get("stage") for entry in told] == ["A  before", c, None, c, c]
    assert all(abs(entry["time"] - time.time()) < 60 for entry in told)
    assert told[3] | {"time": 0, "seconds": 0} == {
        "event": "progress",
        "time": 0,
        "stage": "C  synthesis",
        "seconds": 0,
        "accepted": {"negative": 3},
        "rows_per_s": 1.5,
    }
    assert told[4]["seconds"] >= told[3]["seconds"] >= 0
    assert entries(out) == [
        {
            "event": "table",
            "title": "title",
            "columns": ["arm", "F1"],
            "rows": [["student", "0.750"]],
        },
        {"event": "result", "text": "done [not markup]"},
    ]


def test_for_machines_progress_comes_at_most_once_a_second_and_the_last_of_a_stage_always(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console("json")
    with console.stage("C"):
        for i in range(100):
            console.progress("", {"i": i})
        console.progress("words alone")
    console.progress("", {"i": 100})
    console.progress("", {"i": 101})
    with console.stage("D"):
        pass
    told = entries(capsys.readouterr().err)
    assert [(e["event"], e["stage"], e.get("i")) for e in told] == [
        ("started", "C", None),
        ("progress", "C", 0),
        ("progress", "C", 99),
        ("finished", "C", None),
        ("progress", "C", 101),
        ("started", "D", None),
        ("finished", "D", None),
    ]
    assert [e["time"] for e in told] == sorted(e["time"] for e in told)


def test_for_machines_what_stays_is_told_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console("json")
    with console.stage("A"):
        for i in range(4):
            console.progress("", {"i": i}, stays=i % 2 == 1)
    told = entries(capsys.readouterr().err)
    assert [e["i"] for e in told if e["event"] == "progress"] == [0, 1, 3]


def test_for_machines_a_training_tells_its_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pulse = {"step": 10, "total_steps": 100, "train_loss": 0.6}
    entry = {"step": 20, "total_steps": 100, "epoch": 1, "macro_f1": 0.75, "train_loss": 0.5}
    told_of = (pulse, pulse, entry, {**entry, "step": 40})

    def run_training(*given: Any, **_: Any) -> None:
        for entry in told_of:
            given[3](entry)

    monkeypatch.setattr(training, "run_training", run_training)
    console, log = Console("json"), SimpleNamespace(metrics=lambda *_, **__: None)

    def do(name: str, title: str, parts: Any, build: Any) -> None:
        (tmp_path / "metrics.json").write_text("{}")
        with console.stage(title):
            build(tmp_path, log)

    directory = RunDirectory(tmp_path)
    place: Any = SimpleNamespace(
        console=console,
        directory=directory,
        do=do,
        gather=lambda: None,
        cluster=ClusterConfig(),
    )
    train, job, card = TrainConfig(), cast(Any, None), lambda _: "card"
    notes = {"start": "org/name"}
    training.train_on_ray(place, "teacher", "A", {}, train, job, [], card, None, notes)
    told = entries(capsys.readouterr().err)
    assert [e["event"] for e in told] == ["started", *["progress"] * 3, "finished"]
    assert [e["step"] for e in told[1:-1]] == [10, 20, 40]
    assert told[2].items() >= entry.items()
    assert json.loads((tmp_path / "metrics.json").read_text()) == notes


def test_for_machines_a_sweep_tells_how_far_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    session: Any = SimpleNamespace(console=Console("json"))
    log: Any = SimpleNamespace(record=lambda _: None)
    _follower(session, log, tmp_path, 1, 4)({"trial_name": "t", "macro_f1": 0.5, "done": True})
    (told,) = entries(capsys.readouterr().err)
    wanted = {"event": "progress", "done": 2, "of": 4, "trial": "t", "macro_f1": 0.5}
    assert told.items() >= wanted.items()


def test_for_people_a_stage_is_a_line_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    at_work(Console("line"))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert lines[0] == "= A  before  done before" and "a note" in lines
    assert lines[-1] == "✓ C  synthesis  0:00  3 of 4"
    assert "student  0.750" in out and "done [not markup]" in out
    assert "\x1b" not in out + err


def test_with_rays_progress_ours_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console("ray")
    with console.stage("C"):
        for _ in range(3):
            console.progress("3 of 4", {"accepted": 3})
    assert console.shows_ray and capsys.readouterr().err == "✓ C  0:00  3 of 4\n"


@pytest.mark.parametrize("style", STYLES)
def test_a_stage_that_fails_says_so(style: Style, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="wrong"), Console(style).stage("C  synthesis"):
        raise ValueError("wrong")
    err = capsys.readouterr().err
    if style == "json":
        assert [(e["event"], e["stage"]) for e in entries(err)][1:] == [("failed", "C  synthesis")]
    else:
        assert err.splitlines()[-1] == "x C  synthesis  0:00  "


class Terminal:
    """A pseudo-terminal as standard error, that can be closed while it is written to."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self.stream = os.fdopen(slave, "w")

    def read(self) -> str:
        """All that was written; no more can be. A single read may return a part of it."""
        self.stream.close()
        shown = b""
        with suppress(OSError):  # the end
            while part := os.read(self._master, 1 << 16):
                shown += part
        return shown.decode()

    def close(self) -> None:
        os.close(self._master)


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    made = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", made.stream)
        yield made
    with suppress(OSError):
        made.stream.close()


def test_on_a_terminal_the_line_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        console = Console("line")
        with console.stage("C  synthesis"):
            console.progress("3 of 4")
            time.sleep(0.4)
        shown = screen.read()
        screen.close()
    assert "\x1b[2K" in shown and shown.count("3 of 4") >= 2
    assert shown.splitlines()[-1].endswith("C  synthesis\x1b[0m  0:00  3 of 4")


def test_on_a_terminal_a_stage_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        with pytest.raises(ValueError, match="wrong"), Console("line").stage("C  synthesis"):
            raise ValueError("wrong")
        shown = screen.read()
        screen.close()
    assert shown.splitlines()[-1].endswith("x \x1b[0m\x1b[1mC  synthesis\x1b[0m  0:00  ")


def test_for_machines_a_terminal_shows_no_more_than_the_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with terminal(monkeypatch) as screen:
        console = Console("json")
        with console.stage("C"):
            console.progress("1 of 2", {"accepted": 1})
            time.sleep(0.4)  # in which a line for people would be redrawn
        shown = screen.read()
        screen.close()
    assert [e["event"] for e in entries(shown)] == ["started", "progress", "finished"]


@pytest.mark.parametrize("style", STYLES)
def test_a_terminal_that_is_closed_stops_nothing(
    style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(monkeypatch) as screen:
        console = Console(style)
        with console.stage("C"):
            console.progress("2 of 4", {"accepted": 2})
            screen.close()
            with pytest.raises(OSError, match="Input/output error"):
                print("gone", file=screen.stream, flush=True)
            for _ in range(3):
                console.progress("3 of 4", {"accepted": 3})
                console.note("a note" * 1000)
                time.sleep(0.3)
        at_work(console)


def test_a_terminal_that_was_closed_does_not_change_the_exit_status() -> None:
    script = """
import sys
from sentisynth.flows.console import Console
sys.stdin.readline()
with Console().stage("C"):
    pass
sys.exit(7)
"""
    screen = Terminal()
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=screen.stream,
        stderr=screen.stream,
        start_new_session=True,
    ) as process:
        screen.stream.close()
        screen.close()
        process.communicate(b"go on\n")
    assert process.returncode == 7


class Full(io.StringIO):
    """A file on a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_no_closed_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    with pytest.raises(OSError, match="No space left"):
        Console("json").note("a note")


def test_a_line_of_training_has_what_the_entry_has() -> None:
    entry = {"step": 20, "total_steps": 100, "macro_f1": 0.75, "train_loss": 0.5}
    assert training_line(entry) == "step 20/100  macro-F1 0.750  loss 0.500"


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.9, "0:00"), (61, "1:01"), (3599, "59:59"), (7384, "2:03:04")]
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told
