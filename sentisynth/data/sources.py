"""Labelled rows from Parquet, CSV, TSV, JSONL or a Hugging Face dataset, checked and cleaned."""

import math
import os
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from sentisynth import schema
from sentisynth.config.types import DataConfig
from sentisynth.data.json_lines import json_lines, whole
from sentisynth.data.parquet import pieces
from sentisynth.data.text import clean
from sentisynth.errors import DataError

_PIECE = 16384  # rows read at once
_TOLD = 5  # rows that a sentence names
_LONGEST_TEXT, _MOST_BYTES = 2**20, 2**31
FORMATS = (".parquet", ".csv", ".tsv", ".jsonl")


def read_rows(reference: str, config: DataConfig) -> pa.Table:
    """All rows of a reference as a `schema.CORPUS` table of cleaned texts and label positions.

    Raises DataError with one sentence: file, row (from 1), value.
    """
    try:
        values = _read_columns(reference, config)
    except UnicodeDecodeError:
        raise DataError(f"{reference} is not UTF-8; convert it, e.g. with iconv") from None
    if not values[0]:
        raise DataError(f"{reference} has no rows; give a file with labelled texts")
    texts = [_text(value, reference, row, config) for row, value in enumerate(values[0], start=1)]
    empty = [row for row, text in enumerate(texts, start=1) if not text]
    if empty:
        told = f"row {empty[0]}: the text is empty; mend or remove the row"
        if len(empty) > 1:
            rows = ", ".join(map(str, empty[:_TOLD])) + (", …" if len(empty) > _TOLD else "")
            told = f"rows {rows}: {len(empty):,} texts are empty; mend or remove these rows"
        raise DataError(f"{reference}, {told}")
    labels = _labels(values[1], reference, config)
    return pa.table({schema.TEXT: texts, schema.LABELS: labels}, schema=schema.CORPUS)


def _text(value: Any, reference: str, row: int, config: DataConfig) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{reference}, row {row}: the text is {value!r}, which is no text; "
            f"mend the row or set data.text_column (now {config.text_column!r})"
        )
    if len(value) > _LONGEST_TEXT:
        raise DataError(
            f"{reference}, row {row}: the text has {len(value):,} characters; at most "
            f"{_LONGEST_TEXT:,} are read: cut it"
        )
    return clean(value, config.lowercase)


def _labels(values: list[Any], reference: str, config: DataConfig) -> list[int]:
    """Positions of the classes: of their names, and where no name is a number, of 0, 1, … too."""
    known = {name: i for i, name in enumerate(config.labels)}
    told = ", ".join(config.labels)
    if not any(_is_number(name) for name in config.labels):
        known |= {str(i): i for i in range(len(config.labels))}
        told += f" (or 0 to {len(config.labels) - 1})"
    found = []
    for row, value in enumerate(values, start=1):
        position = known.get(_label_text(value))
        if position is None:
            raise DataError(
                f"{reference}, row {row}: the label {value!r} is not one of data.labels: {told}"
            )
        found.append(position)
    return found


def _label_text(value: Any) -> str:
    """How a label reads in a text file; empty for what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    is_whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
    return str(int(value) if is_whole else value).strip()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_columns(reference: str, config: DataConfig) -> tuple[list[Any], list[Any]]:
    """Texts and labels as they stand there."""
    wanted = (config.text_column, config.label_column)
    if Path(reference).suffix == ".jsonl":
        columns, names = _read_json_lines(_file(reference), wanted)
    else:
        table = _read_table(reference, config)
        names = table.column_names
        columns = [table[c].to_pylist() if names.count(c) == 1 else [] for c in wanted]
    for column in wanted:
        if names.count(column) > 1:
            raise DataError(f"{reference} has the column {column!r} twice; keep one of them")
        if column not in names:
            remedy = _remedy(Path(reference)) if os.path.isfile(reference) else ""
            raise DataError(
                f"{reference} has no column {column!r}; its columns are {', '.join(names)}"
                + (remedy or ": set data.text_column and data.label_column")
            )
    return columns[0], columns[1]


def _read_json_lines(path: Path, wanted: tuple[str, str]) -> tuple[list[list[Any]], list[str]]:
    """The wanted columns, whatever the others hold, and the names of all."""
    columns, names = list[list[Any]]([[], []]), dict[str, None]()
    try:
        for _, row in json_lines(path, 2 * _LONGEST_TEXT):
            names |= dict.fromkeys(row)
            for column, name in zip(columns, wanted, strict=True):
                column.append(whole(row.get(name)))
    except OSError as error:
        raise DataError(f"{path} cannot be read as jsonl: {error.strerror}") from None
    return columns, [*names] or [*wanted]


def _file(reference: str) -> Path:
    if not os.path.isfile(reference):  # no error where a name is too long
        raise DataError(f"there is no file {reference}; check the path in the data section")
    return Path(reference)


def _read_table(reference: str, config: DataConfig) -> pa.Table:
    if reference.startswith("package:") and ".." not in Path(reference).parts:
        return pq.read_table(_package_file(reference.removeprefix("package:")))
    if Path(reference).suffix in FORMATS:
        return _read_file(_file(reference), config)
    if os.path.exists(reference):
        raise DataError(f"{reference} is not a file of a known kind; use {', '.join(FORMATS)}")
    if reference.startswith((".", "/", "~")):
        raise DataError(f"there is no file {reference}; check the path in the data section")
    return _read_hub(reference, config)


def _read_file(path: Path, config: DataConfig) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path, (config.text_column, config.label_column))
        delimiter = "\t" if path.suffix == ".tsv" else ","
        quote = False if path.suffix == ".tsv" else '"'
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, quote_char=quote, newlines_in_values=bool(quote)
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                strings_can_be_null=False,
                column_types={config.text_column: pa.string(), config.label_column: pa.string()},
            ),
        )
    except (pa.ArrowException, OSError) as error:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; give a file with labelled texts") from None
        reason = " ".join(str(error).split())[:200]
        remedy = _remedy(path, reason)
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {reason}{remedy}") from None


def _remedy(path: Path, reason: str = "") -> str:
    """What is the matter with many a table that a spreadsheet wrote; maybe nothing."""
    if "invalid UTF8" in reason:
        return "; it is not UTF-8: convert it, e.g. with iconv"
    if path.suffix != ".csv":
        return ""
    try:
        with path.open("rb") as stream:
            first = stream.readline(2**16)
    except OSError:
        return ""
    is_parted = first.count(b";") > first.count(b",")
    return "; its columns are parted by ';': save it with commas" if is_parted else ""


def _read_parquet(path: Path, wanted: tuple[str, str]) -> pa.Table:
    """The wanted columns, in pieces: a small file may claim to hold more than any memory."""
    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    if any(names.count(name) != 1 for name in wanted):  # the caller says which
        return file.schema_arrow.empty_table()
    found = [
        *pieces(
            path,
            wanted,
            rows=_PIECE,
            longest=_LONGEST_TEXT,
            most=_MOST_BYTES,
            remedy="give a smaller part of it, data.n_seed rows and some to hold out are enough",
        )
    ]
    return pa.Table.from_batches(found) if found else file.schema_arrow.empty_table()


def _package_file(name: str) -> Path:
    path = Path(str(resources.files("sentisynth") / "resources" / f"{name}.parquet"))
    if not os.path.isfile(path):
        known = sorted(p.parent.name for p in path.parent.parent.glob("*/train.parquet"))
        raise DataError(
            f"there is no package data {name!r}; write package:NAME/SPLIT with NAME one of "
            f"{', '.join(known)} and SPLIT train, validation or test"
        )
    return path


def _read_hub(reference: str, config: DataConfig) -> pa.Table:
    import datasets
    from huggingface_hub import errors

    name, _, split = reference.partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except (
        *(OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError),
        errors.HTTPError,  # type: ignore[attr-defined]  # httpx's, or httpx2's, which is no OSError
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"no file and no Hub dataset could be read as {reference!r} ({reason}); "
            f"give a local file, or check the name and the network"
        ) from None
    table: pa.Table = rows.with_format("arrow")[:]
    label = rows.features.get(config.label_column)
    if isinstance(label, datasets.ClassLabel) and {*label.names} == {*config.labels}:
        # numbers of the data set's order, which need not be that of data.labels
        numbers = table[config.label_column].to_pylist()
        names = [label.names[n] if n is not None and n >= 0 else None for n in numbers]
        place = table.column_names.index(config.label_column)
        table = table.set_column(place, config.label_column, pa.array(names, pa.string()))
    return table
