"""What .ci/run makes of the answers of `make audit`; the other targets are stubs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SKIPPED = "torch  Dependency not found on PyPI and could not be audited: torch (2.13.0)"


@pytest.mark.parametrize(
    ("said", "audit", "status", "told"),
    [
        ("Found 2 known vulnerabilities in 1 package", 1, 1, "Found 2 known vulnerabilities"),
        ("No known vulnerabilities found", 0, 0, "none known; 0 of 2 packages"),
        (f"No known vulnerabilities found\n{SKIPPED}", 0, 0, "none known; 1 of 2 packages"),
        (
            "no known vulnerabilities?\nthe index is away\nmake: *** [Makefile:45: audit] Error 1",
            *(1, 0, "not checked: the index is away\n"),
        ),
    ],
)
def test_advisories_fail_a_change_and_an_index_that_is_away_is_said(
    said: str, audit: int, status: int, told: str, tmp_path: Path
) -> None:
    done = ci(tmp_path, f"[ $1 = audit ] || exit 0\necho '{said}'\nexit {audit}\n")
    assert done.returncode == status and told in done.stdout


@pytest.mark.parametrize("fails", ["nothing", "install", "check", "test"])
def test_a_change_is_checked_and_tested(fails: str, tmp_path: Path) -> None:
    done = ci(tmp_path, f'echo "$1" >> {tmp_path}/asked\necho "says $1"\n[ "$1" != {fails} ]\n')
    asked = (tmp_path / "asked").read_text().split()
    assert asked[0] == "install"
    assert ({*asked} >= {"check", "test"}) == (fails != "install")
    assert (done.returncode == 0) == (fails == "nothing")
    assert ("says check" in done.stdout) == (fails == "check")


def ci(path: Path, make: str) -> subprocess.CompletedProcess[str]:
    """.ci/run in a directory where `make` is this script."""
    (path / ".ci").mkdir()
    shutil.copy(REPOSITORY / ".ci" / "run", path / ".ci")
    (path / "constraints.txt").write_text("torch==2.13.0\nray==2.60.0\n")
    (path / "make").write_text(f"#!/bin/sh\n{make}")
    (path / "make").chmod(0o755)
    return subprocess.run(
        [path / ".ci" / "run"],
        env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
