"""The benchmarks of the stream run to their end: a change of the stream's parts shows here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def result(tmp_path: Path, script: str, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "result.json"
    command = [sys.executable, str(BENCHMARKS / script), *arguments, "--json", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: dict[str, Any] = json.loads(out.read_text())
    assert "torch" in found["versions"] and found["hardware"]
    return found


def test_scaling(tmp_path: Path) -> None:
    quick = ["--generate-s", "0.4", "--verify-s", "0.1", "--unit-size", "64"]
    found = result(tmp_path, "scaling.py", "--gpus", "2", *quick, "--units-a-gpu", "3")
    (row,) = found["rows"]
    assert row["units"] == 6 and row["units_per_s"] > 0 and not row["restarts"]


def test_overhead(tmp_path: Path) -> None:
    found = result(tmp_path, "stream.py", "overhead", "--candidates", "20000")
    assert found["candidates per second"] > 1000


def test_efficiency(tmp_path: Path, finished_run: Path) -> None:
    size = ["--units", "4", "--repeats", "1"]
    found = result(tmp_path, "stream.py", "efficiency", "--run", str(finished_run), *size)
    assert "±" in found["efficiency: (generation + verification) / stream"]
