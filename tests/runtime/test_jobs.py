"""Following a job whose cluster is a stub: what is said here, and the exit status."""

import errno
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from sentisynth.runtime.jobs import Cluster

ESCAPE = "\x1b[2J"


class Jobs:
    """A client with one job, which has said a line and ended."""

    def __init__(self, ended: str, code: int | None, message: str) -> None:
        status = SimpleNamespace(value=ended, is_terminal=lambda: True)
        self._info = SimpleNamespace(status=status, driver_exit_code=code, message=message)

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        yield f"a line{ESCAPE}\n"

    def get_job_info(self, _: str) -> Any:
        return self._info


def cluster(ended: str, code: int | None = None, message: str = "") -> Cluster:
    found = object.__new__(Cluster)
    found.address, found._client = "http://head:8265", Jobs(ended, code, message)
    return found


@pytest.mark.parametrize(
    ("ended", "code", "status", "is_told"),
    [
        ("SUCCEEDED", 0, 0, False),
        ("FAILED", 2, 2, False),  # the driver said itself why
        ("FAILED", -9, 137, True),
        ("FAILED", 137, 137, True),
        ("FAILED", None, 1, True),
        ("STOPPED", None, 130, True),
    ],
)
def test_the_status_is_the_drivers_and_what_it_cannot_say_is_told(
    ended: str, code: int | None, status: int, is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"killed {ESCAPE}\nthe log: " + "x" * 20_000 + " the end"
    assert cluster(ended, code, message).follow("job-1") == status
    out, err = capsys.readouterr()
    assert out == "a line\ufffd[2J\n"
    assert err.startswith("sentisynth: job job-1: killed \ufffd[2J the log") == is_told
    assert err.endswith("the end\n") == is_told and len(err) < 1100 and err.count("\n") == is_told


@pytest.mark.parametrize("reason", [errno.EPIPE, errno.ENOSPC])
def test_an_output_that_takes_no_more_is_not_the_clusters_fault(
    reason: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: str) -> None:
        raise OSError(reason, "no")

    monkeypatch.setattr("sys.stdout", SimpleNamespace(write=write))
    with pytest.raises(OSError, match="no") as caught:
        cluster("SUCCEEDED").follow("job-1")
    assert caught.value.errno == reason
