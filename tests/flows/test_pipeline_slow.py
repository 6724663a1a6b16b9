"""The pipeline where it differs from the quickstart: three classes, two workers, another engine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentisynth.cli import main
from sentisynth.data.storage import location
from tests.conftest import QUICK, reviews


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_classes_two_workers_and_transformers_engine(
    tmp_path: Path, ray_session: None
) -> None:
    texts = reviews("train", 90)["text"].to_pylist()
    labels = ["0", "c++", "so so"] * 60  # a number, an operator and a space
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "rows.parquet")
    out = tmp_path / "run"
    settings = [
        f"data.source={tmp_path / 'rows.parquet'}",
        "data.validation=30",
        "data.test=30",
        'data.labels=["0", c++, so so]',
        "generator.control_tokens=null",
        "teacher.train.workers=2",
        "generator.train.workers=2",
        "student.train.workers=2",
        "synthesis.engine=transformers",
        "synthesis.n_per_class=9",
        "synthesis.tau=0.34",
    ]
    kept = [s for s in QUICK if "n_per_class" not in s and "tau" not in s]
    assert main(["run", "quickstart", *kept, *settings, "--out", str(out)]) == 0
    assert main(["check", str(out)]) == 0
    parts = ("train", "synthetic_validation", "synthetic_test")
    rows = pa.concat_tables(pq.read_table(out / "dataset" / f"{name}.parquet") for name in parts)
    synthetic = rows.filter(rows["is_synth"])
    assert np.bincount(synthetic["labels"].to_numpy()).tolist() == [9, 9, 9]
    assert all(len(row) == 3 for row in rows["soft_labels"].to_pylist())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_s3_has_the_bytes_of_one_on_disk(
    bucket: str,
    tmp_path: Path,
    quick_overrides: list[str],
    finished_run: Path,
) -> None:
    out = f"{bucket}/quick"
    environment = {**os.environ, "SENTISYNTH_CACHE": str(tmp_path / "cache")}
    for command in (["run", "quickstart", *quick_overrides, "--out", out], ["check", out]):
        done = subprocess.run(
            [sys.executable, "-m", "sentisynth.cli", *command],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("MLflow's records stay on this machine" in done.stderr) == (command[0] == "run")
    manifest = (location(out) / "pool" / "manifest.json").read_bytes()
    assert manifest == (finished_run / "pool" / "manifest.json").read_bytes()
    assert (location(out) / "report.html").is_file()
