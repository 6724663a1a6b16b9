"""Reading Parquet files that may claim to hold more than any memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sentisynth.errors import DataError

_PLAIN_KINDS = {"BYTE_ARRAY", "BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE"}


def pieces(
    path: Path, columns: Sequence[str], *, rows: int, longest: int, most: int, remedy: str
) -> Iterator[pa.RecordBatch]:
    """The columns, in pieces of at most so many rows, each measured before it is unfolded.

    Raises DataError at a text of more than `longest` bytes, where the file comes to more than
    `most`, and for columns whose size is not known before: nested ones, texts of one length.
    """
    file = pq.ParquetFile(path)
    for name in columns:
        _check_kind(path, file, name)
    file, total = pq.ParquetFile(path, read_dictionary=[*columns]), 0
    for piece in file.iter_batches(batch_size=rows, columns=[*dict.fromkeys(columns)]):
        for i, column in enumerate(piece.columns):
            total += 8 * piece.num_rows
            if not pa.types.is_dictionary(column.type):
                total += column.nbytes
                continue
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            total += pc.sum(lengths).as_py() or 0
            if (found := pc.max(lengths).as_py() or 0) > longest:
                raise DataError(
                    f"{path} has a text of {found:,} bytes; at most {longest:,} are read: cut it"
                )
            _check_total(path, total, most, remedy)
            piece = piece.set_column(i, piece.schema.names[i], column.dictionary_decode())
        _check_total(path, total, most, remedy)
        yield piece


def _check_total(path: Path, total: int, most: int, remedy: str) -> None:
    if total > most:
        raise DataError(f"{path} holds more than {most:,} bytes; {remedy}")


def _check_kind(path: Path, file: pq.ParquetFile, name: str) -> None:
    columns = map(file.schema.column, range(len(file.schema)))
    kinds = {c.path: c.physical_type for c in columns if not c.max_repetition_level}
    if kinds.get(name) not in _PLAIN_KINDS:
        raise DataError(
            f"{path}: the column {name!r} is of type {file.schema_arrow.field(name).type}; give "
            f"texts as strings, labels as strings or numbers"
        )
