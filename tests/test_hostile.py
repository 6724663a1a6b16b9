"""Recipes, data, models and run directories of a stranger: nothing is executed, nothing is read or
written where it should not be, and what is wrong is said in one sentence.
"""

import json
import pickle
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient

from sentisynth.cli import main
from sentisynth.config.load import load_config
from sentisynth.config.outside import without_secrets
from sentisynth.config.pretrain import TextConfig
from sentisynth.data.documents import read_documents
from sentisynth.data.ledger import SCORED
from sentisynth.data.manifest import read_manifest
from sentisynth.data.run_directory import RunDirectory
from sentisynth.data.sources import read_rows
from sentisynth.data.storage import download_files, location
from sentisynth.data.text import shown
from sentisynth.errors import (
    ConfigError,
    DataError,
    ModelError,
    RunDirectoryError,
    TrackingError,
)
from sentisynth.flows.console import Console
from sentisynth.models.generator import count_parameters
from sentisynth.models.loading import load_tokenizer, read_config, resolve_model
from sentisynth.runtime.tracking import Tracker, store
from sentisynth.seeding import fingerprint


class Trap:
    """What a pickle would do when it is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self._path,)


DEEP = "[" * 100_000


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """A file that is there if something of a stranger's was executed."""
    return tmp_path / "sprung"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a command that is refused."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("sentisynth: ") and error.count("\n") == 1 and "\x1b" not in error
    return error


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:pathlib.Path.touch [{path}]",
        "!!python/object/new:os.system ['touch {path}']",
        "!!python/name:os.system",
    ],
)
def test_yaml_tags_are_no_code(
    tag: str, tmp_path: Path, sprung: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: {tag.format(path=sprung)}\n")
    assert "is not valid YAML" in refused(["run", str(recipe)], capsys)
    refused(["run", "quickstart", f"name={tag.format(path=sprung)}"], capsys)
    (tmp_path / "run").mkdir()
    shutil.copy(recipe, tmp_path / "run" / "config.yaml")
    assert "is not valid YAML" in refused(["check", str(tmp_path / "run")], capsys)
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/b", "..", "x\x1b[2J"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(ConfigError, match="name is"):
        load_config("quickstart", [f"name={json.dumps(name)}"])


def test_a_recipe_chooses_no_place_to_write_or_send_to(tmp_path: Path) -> None:
    values = load_config("quickstart").model_dump(mode="json")
    recipe = tmp_path / "recipe.yaml"
    for uri in ("sqlite:////home/x/.bashrc", "/tmp/x", "https://evil.example", "databricks"):
        recipe.write_text(yaml.safe_dump({**values, "tracking": {"uri": uri}}))
        with pytest.raises(ConfigError, match="sets tracking.uri, and a recipe does not choose"):
            load_config(str(recipe))
    recipe.write_text(yaml.safe_dump({**values, "tracking": {"experiment": "x"}}))
    given = load_config(str(recipe), ["tracking.uri=https://mine.example"])
    assert given.tracking.uri == "https://mine.example"


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"tensorboard": {"output_path": "/etc"}}, "tensorboard"),
        ({"wandb": {"enabled": True}}, "wandb"),
        ({"torch_autocast": {"lower_precision_safe_modules": ["evil.Linear"]}}, "torch_autocast"),
        ({"zero_optimization": {"leaf_module": {"classes": ["evil.X"]}}}, "leaf_module"),
        ({"zero_optimization": {"offload_param": {"nvme_path": "/etc"}}}, "nvme_path"),
        ({"fp16": {"enabled": True, "evil": {"a": 1}}}, "fp16.evil"),
        ({"steps_per_print": {"a": 1}}, "steps_per_print"),
        ({"client_secret": "s3cret", "refresh_token": "s3cret"}, "client_secret"),
    ],
)
def test_deepspeeds_settings_import_send_and_copy_nothing(
    settings: dict[str, Any], key: str, tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"  # as a recipe of a stranger's may name any file
    file.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=f"teacher.train.deepspeed.*{key}") as told:
        load_config("quickstart", [f"teacher.train.deepspeed={file}"])
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:hunter2@db/mlflow",
        "https://me:hunter2@mlflow.example",
        "https://hunter2@mlflow.example",
        *(f"postgresql://me:hunter2{x}@db/mlflow" for x in ("#x", "/x", "?x", "@x", " x", "[")),
        "postgresql://db/mlflow?user=me&password=hunter2",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dhunter2",
        *(f"https://h/?a=1&{key}=hunter2" for key in ("api_key", "apiKey", "client_secret", "key")),
    ],
)
def test_no_secret_is_written_down(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(["run", "quickstart", f"tracking.uri={uri}"], capsys)
    assert "holds a password" in told and "hunter2" not in told
    assert "hunter2" not in without_secrets(f"no server at {uri}; try again")
    with pytest.raises(RunDirectoryError, match="holds a password"):
        location("s3://key:hun/ter2@bucket/run")
    for harmless in ("sqlite:////home/me@work/mlflow.db", "https://h/?experiment=1", "databricks"):
        assert without_secrets(harmless) == harmless
        assert load_config("quickstart", [f"tracking.uri={harmless}"]).tracking.uri == harmless


def test_a_password_in_the_address_of_a_cluster_is_not_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "http://me:hunter2@127.0.0.1:9"
    assert main(["submit", "run", "quickstart", "--address", address, "--out", str(tmp_path)]) == 2
    told = "".join(capsys.readouterr())
    assert "no Ray Jobs API answers at http://***@127.0.0.1:9" in told and "hunter2" not in told


def test_a_store_whose_driver_is_not_installed_is_a_sentence() -> None:
    told = pytest.raises(TrackingError, match="cannot be used .*psycopg.*set tracking.uri")
    with told, store("postgresql://db/mlflow"):
        raise ModuleNotFoundError("No module named 'psycopg'")


def test_a_tracking_password_of_the_environment_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["teacher", "quickstart", "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "the MLflow store http://***@127.0.0.1:9 cannot be used" in told
    assert "hunter2" not in told
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes()


@pytest.mark.parametrize(
    "link",
    [
        *(".lock", "config.yaml", "mlflow.json", "pool", "pool/manifest.json"),
        *("sweep/tau/shared", ".training/teacher/ray", "teacher/metrics.json"),
    ],
)
@pytest.mark.parametrize("name", ["run", "pool"])
def test_links_out_of_the_run_directory_are_not_followed(
    link: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    path = tmp_path / name / link
    path.parent.mkdir(parents=True)
    path.symlink_to(outside if link == "pool" else outside / "file")
    run = str(tmp_path / name)
    for command in (
        ["teacher", "quickstart", "--out", run],
        ["preview", "quickstart", "--out", run],
        ["report", run],
        ["check", run],
    ):
        assert "outside of the run directory" in refused(command, capsys)
    assert [p.name for p in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "precious"


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"arms": []}', '{"arms": [1]}', DEEP])
def test_figures_that_are_none_are_no_report(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.json").write_text(text)
    told = refused(["report", str(tmp_path)], capsys)
    assert "metrics.json is damaged" in told and "run `sentisynth evaluate`" in told


def test_json_without_end_is_damage(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.stage("teacher").mkdir()
    (directory.stage("teacher") / "stage.json").write_text(DEEP)
    with pytest.raises(RunDirectoryError, match="is damaged"):
        directory.read_stamp("teacher")
    (tmp_path / "manifest.json").write_text(DEEP)
    with pytest.raises(RunDirectoryError, match="is damaged"):
        read_manifest(tmp_path)


def test_a_stamp_that_lists_files_outside_reads_none(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    stage = directory.stage("teacher")
    stage.mkdir()
    directory.stamp(stage, {"a": 1})
    stamp = json.loads((stage / "stage.json").read_text())
    (tmp_path / "secret").write_text("x")
    for name in ("../secret", str(tmp_path / "secret")):
        stamp["files"] = {name: "0" * 64}
        from sentisynth.data.files import json_text

        (stage / "stage.json").write_text(json_text(stamp))
        assert "lies outside of it" in directory.damage("teacher")[0]


@pytest.mark.parametrize(
    "evil",
    [
        {"files": {"../../secret.parquet": "0" * 64}},
        {"asked": {}},
        {"asked": {"n_per_class": 1, "tau": []}},
        {"n_per_class": "x"},
        {"ledger": {"bad": dict.fromkeys(("generated", "scored", *SCORED), 1) | {"screened": 1}}},
        {"ledger": {"bad": {}}},
        {"ledger": []},
    ],
)
def test_a_manifest_of_another_shape_is_damaged(evil: dict[str, Any], tmp_path: Path) -> None:
    """One that names files outside, too."""
    manifest: dict[str, Any] = {
        "plan": "x",
        "unit_size": 1,
        "rows": 1,
        "tau": 0.5,
        "n_per_class": 1,
        "asked": {"n_per_class": 1, "tau": 0.5},
        "ledger": {},
        "files": {},
        **evil,
    }
    manifest["sha256"] = fingerprint(manifest)
    from sentisynth.data.files import write_json

    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(RunDirectoryError, match="is damaged"):
        read_manifest(tmp_path)


def test_records_of_a_stranger_send_no_file_of_yours(tmp_path: Path) -> None:
    config, run = load_config("quickstart"), tmp_path / "run"
    run.mkdir()
    (tmp_path / "secret").write_text("precious")
    tracker = Tracker(config, run)
    for path in (tmp_path / "secret", tmp_path, run / ".." / "secret"):
        tracker.outbox.put(
            {"what": "artifacts", "run": tracker.run_id, "path": str(path), "name": "x"}
        )
    assert not len(tracker.outbox) and not list((run / "mlflow").rglob("secret"))
    elsewhere = MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    elsewhere.create_experiment("evil", artifact_location=(tmp_path / "outside").as_uri())
    evil = load_config("quickstart", ["tracking.experiment=evil"])
    (run / "file").write_text("x")
    stranger = Tracker(evil, run)
    stranger.log.artifacts(run / "file", "")
    assert list((run / "mlflow" / "artifacts").rglob("file"))
    assert not (tmp_path / "outside").exists()
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    Tracker(config, moved).log.artifacts(moved / "file", "")
    assert list((moved / "mlflow" / "artifacts").rglob("file"))


def test_a_stranger_s_store_leads_no_artifact_elsewhere(tmp_path: Path) -> None:
    config, run = load_config("quickstart"), tmp_path / "a run"
    run.mkdir()
    (run / "file").write_text("x")
    Tracker(config, run).log.artifacts(run / "file", "")
    assert list((run / "mlflow" / "artifacts").rglob("file"))
    outside = (tmp_path / "outside").as_uri()
    with sqlite3.connect(run / "mlflow" / "mlflow.db") as store:
        store.execute(
            "CREATE TRIGGER evil AFTER INSERT ON runs BEGIN "
            f"UPDATE runs SET artifact_uri='{outside}' WHERE run_uuid=NEW.run_uuid; END"
        )
    (run / "mlflow.json").unlink()
    tracker = Tracker(config, run)
    tracker.log.artifacts(run / "file", "")
    assert "not in its own directory" in str(tracker.outbox.error)
    assert not (tmp_path / "outside").exists()


def test_objects_whose_names_lead_elsewhere_are_not_fetched(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name in ("stage.json", "../../../evil.txt"):
        store.store[f"/bucket/run/teacher/{name}"] = store.store.get("/x") or memory_file(store)
    with pytest.raises(RunDirectoryError, match="is no file below"):
        download_files(location("memory://bucket/run/teacher"), tmp_path / "a" / "b" / "c")
    assert not list(tmp_path.rglob("evil.txt"))


def memory_file(store: Any) -> Any:
    store.pipe_file("/x", b"{}")
    return store.store["/x"]


def test_a_pickle_named_parquet_is_not_opened(tmp_path: Path, sprung: Path) -> None:
    path = tmp_path / "reviews.parquet"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_rows(str(path), load_config("quickstart").data)
    assert not sprung.exists()


def test_pickled_weights_are_not_opened(tmp_path: Path, tiny_bert: Path, sprung: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        model = tmp_path / name.partition(".")[0]
        shutil.copytree(tiny_bert, model)
        (model / "model.safetensors").unlink()
        (model / name).write_bytes(pickle.dumps(Trap(sprung)))
        with pytest.raises(ModelError, match="is damaged|has no weights"):
            resolve_model(str(model))
    assert not sprung.exists()


def test_a_models_own_code_is_not_run(
    tmp_path: Path, tiny_bert: Path, sprung: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("a person was asked")

    monkeypatch.setattr("builtins.input", asked)
    code = f"import pathlib\npathlib.Path({str(sprung)!r}).touch()\n"
    code += "from transformers import BertConfig as Evil, BertTokenizerFast as EvilTokenizer\n"
    for kind in ("evil", "bert"):
        model = tmp_path / kind
        shutil.copytree(tiny_bert, model)
        (model / "evil.py").write_text(code)
        config = json.loads((model / "config.json").read_text())
        places = {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}
        config |= {"model_type": kind, "auto_map": places}
        (model / "config.json").write_text(json.dumps(config))
        tokenizer = json.loads((model / "tokenizer_config.json").read_text())
        tokenizer |= {"auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
        tokenizer["tokenizer_class"] = "EvilTokenizer" if kind == "evil" else "BertTokenizer"
        (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        if kind == "bert":  # of a known kind: transformers' own code reads it
            read_config(model)
            load_tokenizer(model)
            continue
        with pytest.raises(ModelError, match="does not load"):
            read_config(model)
        with pytest.raises(ModelError):
            load_tokenizer(model)
    model = tmp_path / "clip"  # of a kind that generates nothing, but for the code beside it
    model.mkdir()
    (model / "evil.py").write_text(code)
    values = {"model_type": "clip", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    (model / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match="no model of type clip can be made"):
        count_parameters(read_config(model))
    assert not sprung.exists()


def bomb(path: Path, text: str, rows: int) -> None:
    """A Parquet file of a few kilobytes whose text column would fill a memory."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [text])
    table = pa.table({"text": values, "label": pa.array([0] * rows)})
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 200_000


def test_a_corpus_that_unfolds_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_config("quickstart").data
    bomb(tmp_path / "many.parquet", "a good film " * 5000, 100_000)  # 6 GB of text
    with pytest.raises(DataError, match="holds more than 2,147,483,648 bytes"):
        read_rows(str(tmp_path / "many.parquet"), data)
    bomb(tmp_path / "long.parquet", "x" * 50_000_000, 1000)
    with pytest.raises(DataError, match="has a text of 50,000,000 bytes"):
        read_rows(str(tmp_path / "long.parquet"), data)
    monkeypatch.setattr("sentisynth.data.sources._MOST_BYTES", 2**24)
    bomb(tmp_path / "empty.parquet", "", 2_000_000)
    with pytest.raises(DataError, match="holds more than 16,777,216 bytes"):
        read_rows(str(tmp_path / "empty.parquet"), data)
    monkeypatch.setattr("sentisynth.data.documents._MOST_BYTES", 2**24)
    corpus = TextConfig(source=str(tmp_path / "many.parquet"))
    with pytest.raises(DataError, match="holds more than 16,777,216 bytes; no text of that"):
        list(read_documents(corpus))
    (tmp_path / "line.txt").write_text("x" * (2**24 + 1))
    with pytest.raises(DataError, match="line 1 has more than 16,777,216 characters"):
        next(read_documents(TextConfig(source=str(tmp_path / "line.txt"))))
    for texts, labels in (
        (pa.array([b"x" * 4096] * 2**14, pa.binary(4096)), ["0"] * 2**14),
        (["good"] * 2**14, pa.array([["0"] * 4096] * 2**14)),
        (pa.array([{"a": "good"}] * 8), ["0"] * 8),
    ):
        pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "fixed.parquet")
        assert (tmp_path / "fixed.parquet").stat().st_size < 2**15
        with pytest.raises(DataError, match="the column '(text|label)' is of type .*; give texts"):
            read_rows(str(tmp_path / "fixed.parquet"), data)
    (tmp_path / "long.csv").write_text("text,label\n" + "x" * 2_000_000 + ",0\n")
    with pytest.raises(DataError, match="row 1: the text has 2,000,000 characters"):
        read_rows(str(tmp_path / "long.csv"), data)


ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202edaed"


def test_texts_of_a_stranger_do_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(ESCAPE) == "\ufffd]0;owned\ufffd\ufffd[2J\ufffd31m\ufffddaed"
    console = Console()
    console.note(ESCAPE)
    console.table(ESCAPE, [ESCAPE, "x"], [[ESCAPE, "0.5"]])
    console.result(ESCAPE)
    with console.stage(ESCAPE):
        console.progress(ESCAPE)
    out, err = capsys.readouterr()
    for sign in "\x1b\x07\x9b\u202e":
        assert sign not in out + err
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"text": f"fine {ESCAPE} text", "label": ESCAPE}) + "\n"
    )
    told = refused(["teacher", "quickstart", f"data.source={tmp_path / 'rows.jsonl'}"], capsys)
    assert "row 1: the label" in told and not set("\x1b\x9b\u202e") & set(told)


def test_names_of_a_stranger_are_text_in_the_pages(tmp_path: Path) -> None:
    from sentisynth.evaluation.sweeps import points_of, render_sweep, verdict
    from sentisynth.training.checkpoint import Progress
    from sentisynth.training.trials import Trial, result_of

    evil = "<script>alert(1)</script>"
    results = {}
    for seed in (1, 2):
        trial = Trial(
            alpha=0.5,
            beta=0.5,
            tau=0.5,
            temperature=1.0,
            n_per_class=1,
            seed=seed,
            steps=1,
            settings={"student.model": evil},
        )
        figures = {"step": 1, "macro_f1": 0.5, "accuracy": 0.5, "validation_loss": 1.0}
        progress = Progress(step=1, best_step=1, evaluations=[figures])
        results[trial.name] = result_of(trial, progress)
    points = points_of(results, ["student.model"], {})
    summary = {
        "kind": "alpha",
        "dims": ["student.model"],
        "seeds": [1, 2],
        "points": points,
        "cut": 0,
        "trainings": 2,
        "best": points[0],
        "test": [{"trial": "x", "seed": 1, "test_macro_f1": 0.5}],
        "verdict": verdict(points[0], points, ["student.model"]),
    }
    page = render_sweep(evil, summary)
    assert "<script" not in page and "&lt;script&gt;" in page
