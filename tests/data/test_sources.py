"""Each kind of file, and each bad input: a sentence that names the file, the row, the value."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentisynth.config.types import DataConfig
from sentisynth.data.sources import read_rows
from sentisynth.errors import DataError

TEXTS = ['A  fine\tfilm , "really" .', "dull , then worse", "it works"]
LABELS = ["good", "bad", "good"]


def config(**changes: object) -> DataConfig:
    values = {"source": "x", "validation": 1, "test": 1, "labels": ("bad", "good")}
    return DataConfig.model_validate({**values, **changes})


def write(path: Path, rows: list[tuple[object, object]]) -> str:
    """The rows in the file's own format."""
    if path.suffix == ".parquet":
        texts, labels = zip(*rows, strict=True)
        pq.write_table(pa.table({"text": list(texts), "label": list(labels)}), path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"text": t, "label": y}) for t, y in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".csv":
        quoted = ['"' + str(t).replace('"', '""') + f'",{y}' for t, y in rows]
        path.write_text("text,label\n" + "\n".join(quoted) + "\n", encoding="utf-8")
    else:
        lines = [f"{str(t).replace(chr(9), ' ')}\t{y}" for t, y in rows]
        path.write_text("text\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"rows{suffix}", list(zip(TEXTS, LABELS, strict=True)))
    table = read_rows(file, config())
    assert table["labels"].to_pylist() == [1, 0, 1]
    assert table["text"].to_pylist() == [
        'a fine film , "really" .',
        "dull , then worse",
        "it works",
    ]


@pytest.mark.parametrize("labels", [[1, 0, 1], [1.0, 0.0, 1.0], ["1", "0", "1"]])
def test_labels_may_be_positions(tmp_path: Path, labels: list[object]) -> None:
    file = write(tmp_path / "rows.parquet", list(zip(TEXTS, labels, strict=True)))
    assert read_rows(file, config())["labels"].to_pylist() == [1, 0, 1]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("names", [("1", "0"), ("1", "2"), ("01", "00"), ("2024", "2025")])
def test_names_that_are_numbers_are_names(
    tmp_path: Path, suffix: str, names: tuple[str, str]
) -> None:
    file = write(tmp_path / f"rows{suffix}", [("fine", names[0]), ("dull", names[1])])
    assert read_rows(file, config(labels=names))["labels"].to_pylist() == [0, 1]


def test_stars_are_counted_from_one_if_they_are_named_so(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", [("fine", 5), ("dull", 1)])
    stars = ("1", "2", "3", "4", "5")
    assert read_rows(file, config(labels=stars))["labels"].to_pylist() == [4, 0]


def test_texts_and_labels_of_a_csv_are_texts(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", [("2024", "true"), ("7.5", "false")])
    table = read_rows(file, config(labels=("false", "true")))
    assert table["text"].to_pylist() == ["2024", "7.5"]
    assert table["labels"].to_pylist() == [1, 0]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_file_that_is_not_utf8(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path, [("caf\u00e9", "good"), ("x", "bad")])
    path.write_bytes(
        path.read_text(encoding="utf-8").encode("latin-1").replace(b"\\u00e9", b"\xe9")
    )
    with pytest.raises(DataError, match=name):
        read_rows(str(path), config())


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_disk_that_fails_is_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / name, [("fine", "good")])

    def fails(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pyarrow.csv.read_csv", fails)
    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(DataError, match=f"{name} cannot be read as .*Input/output error"):
        read_rows(file, config())


def test_a_name_of_a_column_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"gr\xf6\xdfe,text,label\n1,fine,good\n")
    with pytest.raises(DataError, match="is not UTF-8; convert it"):
        read_rows(str(tmp_path / "rows.csv"), config())


def test_what_other_columns_of_json_hold_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"text": "fine", "label": 1, "id": 1}\n\n{"id": "x", "label": "0", "text": "2024-01-01"}\n'
    )
    table = read_rows(str(path), config())
    assert table.to_pylist() == [
        {"text": "fine", "labels": 1},
        {"text": "2024-01-01", "labels": 0},
    ]


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label,text\na,good,b\n")
    with pytest.raises(DataError, match="has the column 'text' twice"):
        read_rows(str(tmp_path / "rows.csv"), config())


def test_a_label_that_is_a_list(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [("fine", ["good"])])
    with pytest.raises(DataError, match="the label \\['good'\\] is not one of"):
        read_rows(file, config())


def test_a_quoted_text_may_hold_a_line_break(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", [("two\nlines", "good"), ("one, two", "bad")])
    assert read_rows(file, config())["text"].to_pylist() == ["two lines", "one, two"]


def test_a_tab_separated_quote_is_a_character(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.tsv", [('a " stray quote', "good"), ("x", "bad")])
    assert read_rows(file, config())["text"].to_pylist() == ['a " stray quote', "x"]


@pytest.mark.parametrize(
    ("name", "rows", "told"),
    [
        ("rows.csv", [("   ", "good")], "row 1: the text is empty"),
        ("rows.jsonl", [("fine", "good"), (None, "bad")], "row 2: the text is None"),
        ("rows.parquet", [(3, "good")], "row 1: the text is 3, which is no text"),
        ("rows.csv", [("fine", "great")], "row 1: the label 'great' is not one of data.labels"),
        (
            "rows.parquet",
            [("fine", 2)],
            "row 1: the label 2 is not one of data.labels: bad, good (or 0 to 1)",
        ),
        ("rows.parquet", [("fine", None)], "row 1: the label None"),
        ("rows.jsonl", [("fine", True)], "row 1: the label True"),
        ("rows.parquet", [("fine", 0.5)], "row 1: the label 0.5"),
    ],
)
def test_a_bad_row_is_named(
    tmp_path: Path, name: str, rows: list[tuple[object, object]], told: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(write(tmp_path / name, rows), config())
    assert told in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        read_rows(str(path), config())


def test_a_header_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n")
    with pytest.raises(DataError, match="has no rows"):
        read_rows(str(tmp_path / "rows.csv"), config())


@pytest.mark.parametrize("name", ["./absent.csv", "absent.parquet", "/absent/dir"])
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_rows(name, config())


def test_a_missing_column_names_those_that_are_there(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", [("fine", "good")])
    with pytest.raises(DataError, match="no column 'sentence'; its columns are text, label"):
        read_rows(file, config(text_column="sentence"))


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_rows(str(tmp_path / "rows.parquet"), config())


def test_package_data_that_is_not_there_names_what_is() -> None:
    with pytest.raises(DataError, match="rotten_tomatoes"):
        read_rows("package:imdb/train", config())


def test_the_embedded_reviews_have_their_fixed_split() -> None:
    for split, n in (("train", 8530), ("validation", 1066), ("test", 1066)):
        table = read_rows(f"package:rotten_tomatoes/{split}", config())
        assert table.num_rows == n
        assert sum(table["labels"].to_pylist()) * 2 == n


def test_a_hub_dataset_that_is_a_script_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found old.py")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match="'org/old:train' .*scripts are no longer supported"):
        read_rows("org/old:train", config())


def test_classes_of_a_hub_dataset_are_known_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are of its own order, which need not be that of data.labels."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["good", "bad"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["fine", "dull"], "label": [0, 1]}, features)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    found = [
        read_rows("org/name", config(labels=labels))["labels"].to_pylist()
        for labels in (("bad", "good"), ("good", "bad"), ("dire", "fine"))
    ]
    assert found == [[1, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("text;label\nfine;good\n", r"no column 'text'.*parted by ';': save it with commas"),
        ("text;label\nfine, or so;good\n", r"parted by ';': save it with commas"),
        ("text,label\n\udcfcbel,good\n", "it is not UTF-8: convert it, e.g. with iconv"),
    ],
)
def test_a_table_of_a_spreadsheet_is_told_what_is_the_matter(
    text: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=told):
        read_rows(str(path), config())


def test_all_empty_texts_are_told_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", [("fine", "good"), *[(" ", "bad")] * 7])
    with pytest.raises(DataError, match=r"rows 2, 3, 4, 5, 6, …: 7 texts are empty"):
        read_rows(str(file), config())
