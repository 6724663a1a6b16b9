"""`sentisynth check` of whole runs: what it finds, whatever the checksums say."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentisynth.cli import main
from sentisynth.config.load import read_any_config
from sentisynth.data.files import json_text
from sentisynth.data.run_directory import RunDirectory
from sentisynth.seeding import fingerprint


def test_check_passes_and_then_finds_the_damage(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(finished_run)]) == 0
    damaged = shutil.copytree(finished_run, tmp_path / "copy")
    unit = next((damaged / "pool").glob("label=0/*.parquet"))
    unit.write_bytes(unit.read_bytes()[:-9])
    assert main(["check", str(damaged)]) == 1
    assert unit.name in capsys.readouterr().out


def test_check_asks_for_what_was_made_and_that_the_pool_is_the_datasets(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("n_per_class: 60", "n_per_class: 7"))
    assert (run / "config.yaml").read_text() != config
    assert main(["check", str(run)]) == 0
    manifest = json.loads((run / "pool" / "manifest.json").read_text())
    manifest["plan"] = "0" * 64
    manifest["sha256"] = fingerprint({k: v for k, v in manifest.items() if k != "sha256"})
    (run / "pool" / "manifest.json").write_text(json_text(manifest))
    assert main(["check", str(run)]) == 1
    assert "was made from another pool" in capsys.readouterr().out


def test_check_takes_the_classes_from_the_rows(run: Path) -> None:
    """config.yaml is written at a command's end, which may not have come."""
    config = (run / "config.yaml").read_text()
    other = config.replace("- positive", "- good\n  - bad")
    other = re.sub(r"control_tokens:(\n    .*)+", "control_tokens: null", other)
    (run / "config.yaml").write_text(other)
    assert read_any_config(run).data.labels == ("negative", "good", "bad")
    assert main(["check", str(run)]) == 0


@pytest.mark.parametrize("card", [None, "# a dataset\n", "---\nlicense: mit\n---\n# a dataset\n"])
def test_check_asks_for_the_card_that_names_the_splits(
    run: Path, card: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "dataset" / "README.md"
    text = file.read_text()
    file.write_text(text.replace("---\n", "---\nlicense: mit\n", 1) + "More.\n")
    assert main(["check", str(run)]) == 0
    file.unlink()
    if card is not None:
        file.write_text(card)
    assert main(["check", str(run)]) == 1
    assert "README.md does not name the splits" in capsys.readouterr().out


def changed(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(place), pa.array(values, table[column].type))


def damaged_dataset(dataset: Path, kind: str) -> None:
    train, test = (pq.read_table(dataset / f"{name}.parquet") for name in ("train", "test"))
    synthetic = train["is_synth"].to_pylist().index(True)
    if kind == "a synthetic row in a real split":
        test = changed(test, "is_synth", [True, *test["is_synth"].to_pylist()[1:]])
    elif kind == "a row too few":
        train = pa.concat_tables([train.slice(0, synthetic), train.slice(synthetic + 1)])
    elif kind == "a row twice":
        labels = train["labels"].to_pylist()
        again = next(
            i
            for i in range(synthetic + 1, len(labels))
            if train["is_synth"][i].as_py() and labels[i] == labels[synthetic]
        )
        rows = [synthetic if i == again else i for i in range(len(labels))]
        train = train.take(rows)
    else:
        train = changed(train, "text", [test["text"][0].as_py(), *train["text"].to_pylist()[1:]])
    for name, table in (("train", train), ("test", test)):
        pq.write_table(table, dataset / f"{name}.parquet")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("a synthetic row in a real split", "test.parquet holds synthetic rows"),
        ("a row too few", "has 59 synthetic rows, not 60"),
        ("a row twice", "1 candidates are in the dataset twice"),
        ("a text of the test rows", "1 texts of train.parquet are in test.parquet as well"),
    ],
)
def test_check_reads_the_dataset_whatever_its_checksums(
    kind: str, told: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = RunDirectory(run)
    parts = directory.read_stamp("dataset")
    assert parts is not None
    damaged_dataset(run / "dataset", kind)
    directory.stamp(run / "dataset", parts)
    assert main(["check", str(run)]) == 1
    assert told in capsys.readouterr().out
