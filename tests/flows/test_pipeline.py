"""The whole pipeline on real text with the embedded models, as its user sees it."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sentisynth import schema
from sentisynth.cli import main
from sentisynth.data.ledger import adds_up
from sentisynth.data.text import normal_form
from sentisynth.errors import PlacementError

INTERRUPTIBLE = """
import signal, sys
from sentisynth.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


def stamps(run: Path) -> dict[str, int]:
    """When each file of a run was last written."""
    kept = ["corpus", "teacher", "generator", "pool", "dataset"]
    kept += ["student", "student_labels", "student_real"]
    return {str(p): p.stat().st_mtime_ns for name in kept for p in (run / name).rglob("*")}


def read(run: Path, name: str) -> pa.Table:
    return pq.read_table(run / "dataset" / f"{name}.parquet")


def read_pool(run: Path) -> list[dict[str, Any]]:
    files = sorted((run / "pool").glob("label=*/*.parquet"))
    return [row for f in files for row in pq.read_table(f, partitioning=None).to_pylist()]


def test_every_artefact_is_there(finished_run: Path) -> None:
    for name in ("config.yaml", "metrics.json", "report.html", "pool/manifest.json"):
        assert (finished_run / name).is_file(), name
    for name in ("teacher", "generator", "student"):
        for file in (
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "metrics.json",
            "README.md",
        ):
            assert (finished_run / name / file).is_file(), f"{name}/{file}"
    assert not list(finished_run.glob(".*.tmp"))


def test_exactly_n_synthetic_rows_a_class_and_a_ledger_that_adds_up(finished_run: Path) -> None:
    parts = [read(finished_run, n) for n in ("train", "synthetic_validation", "synthetic_test")]
    rows = pa.concat_tables(parts)
    synthetic = rows.filter(rows[schema.IS_SYNTH])
    assert np.bincount(synthetic[schema.LABELS].to_numpy()).tolist() == [60, 60]
    assert len(set(synthetic[schema.CANDIDATE_ID].to_pylist())) == 120
    manifest = json.loads((finished_run / "pool" / "manifest.json").read_text())
    for entry in manifest["ledger"].values():
        assert adds_up(entry) and entry["accepted"] >= 60
    generated = sum(entry["generated"] for entry in manifest["ledger"].values())
    assert len(read_pool(finished_run)) == generated == manifest["rows"]


def test_no_synthetic_row_is_in_a_real_split(finished_run: Path) -> None:
    train = read(finished_run, "train")
    learned = set(map(normal_form, train[schema.TEXT].to_pylist()))
    for name in ("validation", "test"):
        table = read(finished_run, name)
        assert table.num_rows == 40
        assert not any(table[schema.IS_SYNTH].to_pylist())
        assert table[schema.CANDIDATE_ID].null_count == 40
        assert not learned & set(map(normal_form, table[schema.TEXT].to_pylist()))


def test_every_accepted_row_is_right_and_sure_and_its_soft_labels_are_the_teachers(
    finished_run: Path,
) -> None:
    facts = {row[schema.CANDIDATE_ID]: row for row in read_pool(finished_run)}
    train = read(finished_run, "train")
    for row in train.filter(train[schema.IS_SYNTH]).to_pylist():
        fact = facts[row[schema.CANDIDATE_ID]]
        z = np.array(fact[schema.TEACHER_LOGITS], dtype=np.float64)
        p = np.exp(z) / np.exp(z).sum()
        assert p.argmax() == fact[schema.LABEL] == row[schema.LABELS] and p.max() >= 0.5
        soft = np.exp(z / 2) / np.exp(z / 2).sum()
        assert np.allclose(soft, row[schema.SOFT_LABELS], atol=1e-6)
        assert row[schema.WEIGHTS] == pytest.approx(0.3)
        assert row[schema.TEXT] == fact[schema.TEXT] and fact[schema.N_TOKENS] > 6


def test_models_and_dataset_load_where_sentisynth_was_never_heard_of(
    finished_run: Path, tmp_path: Path
) -> None:
    script = f"""
import sys
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import pipeline
import datasets, torch
run = {str(finished_run)!r}
for name in ("teacher", "student"):
    model = AutoModelForSequenceClassification.from_pretrained(f"{{run}}/{{name}}")
    tokenizer = AutoTokenizer.from_pretrained(f"{{run}}/{{name}}")
    out = model(**tokenizer("a fine film", return_tensors="pt")).logits
    assert out.shape == (1, 2) and model.config.id2label == {{0: "negative", 1: "positive"}}
classify = pipeline("text-classification", f"{{run}}/student", truncation=True)
assert classify.tokenizer.model_max_length == 64
assert classify("a fine film " * 100)[0]["label"] in ("negative", "positive")
tokenizer = AutoTokenizer.from_pretrained(f"{{run}}/generator")
model = AutoModelForCausalLM.from_pretrained(f"{{run}}/generator")
ids = tokenizer("<POS>", add_special_tokens=False, return_tensors="pt").input_ids
assert ids.shape == (1, 1)
assert model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0).shape[1] > 1
rows = datasets.load_dataset("parquet", data_files=f"{{run}}/dataset/train.parquet", split="train")
assert set(rows.column_names) >= {{"text", "labels", "soft_labels", "weights", "is_synth"}}
splits = datasets.load_dataset(f"{{run}}/dataset")
assert {{name: len(rows) for name, rows in splits.items()}} == {{
    "train": len(rows), "validation": 40, "test": 40
}}
assert any(splits["train"]["is_synth"])
assert not any(splits["validation"]["is_synth"]) and not any(splits["test"]["is_synth"])
drift = datasets.load_dataset(f"{{run}}/dataset", "drift")
assert set(drift) == {{"validation", "test"}} and all(drift["test"]["is_synth"])
assert "sentisynth" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr


def test_metrics_hold_what_the_method_asks_for(finished_run: Path) -> None:
    metrics = json.loads((finished_run / "metrics.json").read_text())
    names = [arm["name"] for arm in metrics["arms"]]
    assert names == ["teacher", "student_labels", "student_real", "student"]
    for arm in metrics["arms"]:
        for split in ("validation", "test"):
            assert set(arm[split]) >= {"macro_f1", "accuracy", "precision", "recall", "confusion"}
            assert np.sum(arm[split]["confusion"]) == 40
    assert metrics["generator"]["perplexity"] > 1
    synthesis = metrics["synthesis"]
    assert synthesis["rows"] == {"negative": 60, "positive": 60}
    assert 0 < synthesis["distinct_1"] < synthesis["distinct_2"] <= 1
    assert 0 < synthesis["soft_label_entropy"] <= np.log(2)
    assert metrics["gain"]["low"] <= metrics["gain"]["macro_f1"] <= metrics["gain"]["high"]


def test_config_yaml_says_what_made_the_run(finished_run: Path) -> None:
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert config["seed"] == 41 and len(config["fingerprint"]) == 64
    assert {"python", "torch", "ray", "transformers"} <= set(config["versions"])


def test_mlflow_has_one_parent_and_a_child_a_stage(finished_run: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished_run / 'mlflow' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'sentisynth'")
    runs = client.search_runs([experiment.experiment_id])
    children = {r.data.tags["stage"]: r for r in runs if "mlflow.parentRunId" in r.data.tags}
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    stages = ["corpus", "teacher", "generator", "pool", "dataset"]
    assert set(children) >= {*stages, "student", "student_real", "student_labels"}
    assert {r.data.tags["mlflow.parentRunId"] for r in children.values()} == {parent.info.run_id}
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert parent.data.params["synthesis.tau"] == "0.5"
    assert parent.data.metrics["student.test.macro_f1"] > 0
    inputs = children["dataset"].inputs.dataset_inputs
    assert {entry.dataset.name for entry in inputs} >= {"train", "validation", "test"}
    assert all(len(entry.dataset.digest) >= 32 for entry in inputs)
    files = client.list_artifacts(children["student"].info.run_id, "student")
    assert "student/model.safetensors" in [file.path for file in files]


def test_the_same_command_again_does_nothing_again(
    finished_run: Path, quick_overrides: list[str], ray_session: None
) -> None:
    before = stamps(finished_run)
    assert main(["run", "quickstart", *quick_overrides, "--out", str(finished_run)]) == 0
    assert stamps(finished_run) == before


def test_another_setting_is_refused_and_named(
    finished_run: Path,
    quick_overrides: list[str],
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = stamps(finished_run)
    changed = [*quick_overrides, "teacher.train.batch_size=16", "--out", str(finished_run)]
    assert main(["run", "quickstart", *changed]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "teacher.train.batch_size was 32, is now 16" in message and "--overwrite" in message
    assert stamps(finished_run) == before


def test_the_stream_screens_by_all_real_rows(
    run: Path,
    quick_overrides: list[str],
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Held-out texts are leaks, seed texts are copies; a stage of its own screens by them."""
    given: dict[str, Any] = {}

    def stopped(*_: Any, **texts: Any) -> Any:
        given.update(texts)
        raise PlacementError("seen enough")

    monkeypatch.setattr("sentisynth.flows.synthesize.stream_pools", stopped)
    shutil.rmtree(run / "pool")
    assert main(["synthesize", "quickstart", *quick_overrides, "--out", str(run)]) == 2
    real = {
        name: pq.read_table(run / "corpus" / f"{name}.parquet")["text"].to_pylist()
        for name in ("seed", "validation", "test")
    }
    for told, names in (("seed_texts", ["seed"]), ("evaluation_texts", ["validation", "test"])):
        texts = [text for name in names for text in real[name]]
        assert set(texts) < set(given[told])  # and what begins the long ones
        assert all(any(t.startswith(g.strip()[:40]) for t in texts) for g in given[told])


def test_a_dataset_is_not_made_from_another_plans_pool(
    run: Path,
    quick_overrides: list[str],
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = stamps(run)
    shutil.rmtree(run / "dataset")
    other = [*quick_overrides, "synthesis.sampling.top_k=7", "--out", str(run)]
    assert main(["distil", "quickstart", *other]) == 2
    assert "was made under other settings; run `sentisynth synthesize" in capsys.readouterr().err
    assert {k: v for k, v in before.items() if "/dataset/" not in k} == stamps(run)


def test_a_student_of_another_teacher_is_not_shown_beside_this_one(
    run: Path, quick_overrides: list[str], ray_session: None
) -> None:
    config = json.loads((run / "teacher" / "config.json").read_text())
    (run / "teacher" / "config.json").write_text(json.dumps({**config, "retrained": True}))
    assert main(["evaluate", "quickstart", *quick_overrides, "--out", str(run)]) == 0
    arms = json.loads((run / "metrics.json").read_text())["arms"]
    assert [arm["name"] for arm in arms] == ["teacher"]


@pytest.mark.parametrize("command", [["synthesize"], ["distil"], ["sweep", "alpha"]])
def test_models_of_other_rows_are_refused_even_to_overwrite(
    command: list[str],
    run: Path,
    quick_overrides: list[str],
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Soft labels would be those of other rows, and rows that were learned from may be test rows;
    what lies there stays as it is.
    """
    before = {path: path.read_bytes() for path in (run / "corpus").iterdir()}
    other = [*quick_overrides, "data.n_seed=50", "--overwrite", "--out", str(run)]
    assert main([*command, "quickstart", *other]) == 2
    assert "was trained on other rows" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (run / "corpus").iterdir()} == before


def test_figures_are_of_models_of_the_rows_that_lie_there(
    run: Path, quick_overrides: list[str], ray_session: None
) -> None:
    other = [*quick_overrides, "data.n_seed=50", "--overwrite", "--out", str(run)]
    assert main(["evaluate", "quickstart", *other]) == 0
    found = json.loads((run / "metrics.json").read_text())
    assert found["arms"] == [] and not {"generator", "gain", "synthesis"} & found.keys()


def test_folders_of_ones_own_are_not_written_over(
    tmp_path: Path,
    quick_overrides: list[str],
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "corpus").mkdir()
    for file in ("corpus/mine.csv", "config.yaml"):
        (tmp_path / file).write_text("mine: 1")
    command = ["teacher", "quickstart", *quick_overrides]
    for name in ("config.yaml", "corpus"):
        assert main([*command, "--out", str(tmp_path)]) == 2
        assert f"{tmp_path / name} is in the way" in capsys.readouterr().err
        (tmp_path / "config.yaml").unlink(missing_ok=True)
    assert (tmp_path / "corpus" / "mine.csv").read_text() == "mine: 1"


def test_a_damaged_unit_is_made_again_alone_with_the_same_bytes(
    run: Path, quick_overrides: list[str], ray_session: None
) -> None:
    wanted = (run / "pool" / "manifest.json").read_bytes()
    units = sorted((run / "pool").glob("label=*/*.parquet"))
    others = {p: p.stat().st_mtime_ns for p in units[1:]}
    units[0].write_bytes(b"not a unit")
    assert main(["synthesize", "quickstart", *quick_overrides, "--out", str(run)]) == 0
    assert {p: p.stat().st_mtime_ns for p in units[1:]} == others
    assert (run / "pool" / "manifest.json").read_bytes() == wanted
    assert main(["check", str(run)]) == 0


def test_a_larger_quota_extends_the_pool(
    run: Path, quick_overrides: list[str], ray_session: None
) -> None:
    first = {p: p.stat().st_mtime_ns for p in (run / "pool").glob("label=*/*.parquet")}
    two_actors = ["synthesis.generate_pool.max_actors=2", "synthesis.verify_pool.max_actors=2"]
    more = [*quick_overrides, *two_actors, "synthesis.n_per_class=100", "--out", str(run)]
    assert main(["synthesize", "quickstart", *more]) == 2  # the dataset would be another
    more.append("--overwrite")
    assert main(["synthesize", "quickstart", *more]) == 0
    assert {p: p.stat().st_mtime_ns for p in first} == first
    manifest = json.loads((run / "pool" / "manifest.json").read_text())
    assert all(entry["accepted"] >= 100 for entry in manifest["ledger"].values())


def test_a_quota_out_of_reach_ends_with_the_cause_and_keeps_what_was_made(
    run: Path,
    quick_overrides: list[str],
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(run / "pool")
    shutil.rmtree(run / "dataset")
    hopeless = ["synthesis.tau=1", "synthesis.max_candidates_per_class=64"]
    command = ["synthesize", "quickstart", *quick_overrides, *hopeless, "--out", str(run)]
    assert main(command) == 2
    told = "accepted rows of 60 after 64 .*; the commonest reason is (below_tau|wrong_label)"
    told += ".*: .*train a better generator.*; what was made is kept"
    assert re.search(told, capsys.readouterr().err.splitlines()[-1])
    assert not (run / "pool" / "manifest.json").exists() and not (run / "dataset").exists()
    assert len(list((run / "pool").glob("label=*/*.parquet"))) in (3, 4)
    assert main(command) == 2  # known from what was made: nothing is waited for
    assert re.search(told, capsys.readouterr().err.splitlines()[-1])


def test_distil_follows_the_settings_of_the_dataset(
    run: Path,
    quick_overrides: list[str],
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = [*quick_overrides, "distil.temperature=4", "--out", str(run)]
    assert main(["distil", "quickstart", *changed]) == 2
    assert "temperature was 2.0, is now 4.0" in capsys.readouterr().err


def test_evaluate_tells_what_was_made_not_what_is_asked(
    finished_run: Path, run: Path, quick_overrides: list[str], ray_session: None
) -> None:
    config = (run / "config.yaml").read_text()
    changed = [*quick_overrides, "synthesis.tau=0.8", "synthesis.n_per_class=7"]
    assert main(["evaluate", "quickstart", *changed, "--out", str(run)]) == 0
    assert (run / "config.yaml").read_text() == config
    wanted = json.loads((finished_run / "metrics.json").read_text())
    assert json.loads((run / "metrics.json").read_text()) == wanted


def test_a_model_that_was_altered_is_not_taken_for_done(
    run: Path,
    quick_overrides: list[str],
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = run / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["check", str(run)]) == 1
    assert main(["distil", "quickstart", *quick_overrides, "--out", str(run)]) == 2
    assert "model.safetensors was altered" in capsys.readouterr().err


@pytest.mark.chaos
def test_ctrl_c_in_a_training_stops_with_130_and_the_same_command_goes_on(
    run: Path, quick_overrides: list[str]
) -> None:
    shutil.rmtree(run / "student")
    command = ["distil", "quickstart", *quick_overrides, "--out", str(run)]
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *command], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        told = []
        for line in process.stderr:
            told.append(line)
            if "real + synthetic" in line:
                time.sleep(1)
                process.send_signal(signal.SIGINT)
                break
        told += process.stderr.readlines()
    assert process.returncode == 130, told
    assert told[-1] == "sentisynth: stopped by SIGINT; the same command goes on from here\n"
    assert not (run / "student").exists()
    assert main(command) == 0
    assert main(["check", str(run)]) == 0


def test_preview_shows_verdicts_and_writes_nothing(
    finished_run: Path, quick_overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(finished_run)
    arguments = ["preview", "quickstart", *quick_overrides, "-n", "6", "--out", str(finished_run)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "verdict" in shown and "of 6" in shown
    assert stamps(finished_run) == before


def test_report_is_written_anew(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = finished_run / "report.html"
    wanted = page.read_text()
    page.unlink()
    assert main(["report", str(finished_run)]) == 0
    assert page.read_text() == wanted
