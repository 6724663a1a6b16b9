"""Records that a store does not take are kept, in order, also for the next process."""

from pathlib import Path
from typing import Any

import pytest

from sentisynth.errors import RunDirectoryError, TrackingError
from sentisynth.runtime import outbox
from sentisynth.runtime.outbox import Outbox


class Store:
    """Takes entries while it is `up`."""

    def __init__(self) -> None:
        self.up, self.asked = True, 0
        self.taken: list[Any] = []

    def send(self, entry: dict[str, Any]) -> None:
        self.asked += 1
        if not self.up:
            raise TrackingError("no answer")
        self.taken.append(entry["n"])


def entry(n: int, what: str = "metrics") -> dict[str, Any]:
    return {"what": what, "run": "r", "n": n}


def test_entries_go_out_at_once_and_leave_no_file(tmp_path: Path) -> None:
    store = Store()
    box = Outbox(tmp_path / "pending", store.send)
    for n in range(3):
        box.put(entry(n))
    assert store.taken == [0, 1, 2] and not (tmp_path / "pending").exists()


@pytest.mark.parametrize(("seconds", "rest"), [(0.1, 60), (16, 320)])
def test_a_store_that_is_away_is_not_asked_each_time_and_gets_all_in_order(
    seconds: float, rest: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes long to say nothing is asked the more seldom."""
    now, store = [1000.0], Store()

    def send(entry: dict[str, Any]) -> None:
        now[0] += 0 if store.up else seconds
        store.send(entry)

    monkeypatch.setattr(outbox.time, "monotonic", lambda: now[0])
    box = Outbox(tmp_path / "pending", send)
    box.put(entry(0))
    store.up = False
    for n in range(1, 5):
        box.put(entry(n))
    store.up = True
    now[0] += rest - 1
    box.put(entry(5))
    assert store.asked == 2 and len(box) == 5 and str(box.error) == "no answer"
    now[0] += 1
    box.put(entry(6))
    assert store.taken == [*range(7)] and box.error is None
    assert not (tmp_path / "pending").exists()


def test_what_was_kept_is_sent_by_the_next_process(tmp_path: Path) -> None:
    store = Store()
    store.up = False
    box = Outbox(tmp_path / "pending", store.send)
    for n in range(4):
        box.put(entry(n))
    with (tmp_path / "pending").open("a") as stream:
        stream.write('{"n": 4, "cut o')  # the process was killed in the writing
    store.up = True
    again = Outbox(tmp_path / "pending", store.send)
    assert len(again) == 4 and again.flush()
    assert store.taken == [0, 1, 2, 3] and not (tmp_path / "pending").exists()


def test_files_that_a_store_refuses_keep_nothing_else_back(tmp_path: Path) -> None:
    taken = []

    def send(sent: dict[str, Any]) -> None:
        if sent["what"] == "artifacts":
            raise TrackingError("too large")
        taken.append(sent["n"])

    box = Outbox(tmp_path / "pending", send)
    box.put(entry(0, "artifacts"))
    box.put(entry(1))
    assert box.flush() is False and taken == [1] and len(box) == 1
    again = Outbox(tmp_path / "pending", taken.append)  # type: ignore[arg-type]
    assert again.flush() and taken[1]["again"] is True


def test_a_file_of_something_else_is_a_sentence(tmp_path: Path) -> None:
    for text in ("nonsense\n", '{"what": "metrics"}\n', "[1]\n"):
        (tmp_path / "pending").write_text(text)
        with pytest.raises(RunDirectoryError, match="records that MLflow did not take yet"):
            Outbox(tmp_path / "pending", Store().send)
    (tmp_path / "pending").write_text("nonsense\n")
    with pytest.raises(RunDirectoryError, match="records that MLflow did not take yet"):
        Outbox(tmp_path / "pending", Store().send)
