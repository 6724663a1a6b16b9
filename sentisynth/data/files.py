"""Files under their final name are whole: written aside, synced, renamed."""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sentisynth.data.storage import is_remote, put, put_file
from sentisynth.errors import RunDirectoryError


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A file to write to, which takes its final name if the block ends well: written beside it
    and renamed, or on an object store written here and uploaded.

    Raises RunDirectoryError, with the reason, where it cannot be written.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="sentisynth-") as directory:
            local = Path(directory) / path.name
            yield local
            put_file(local, path)
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise RunDirectoryError(f"{path} cannot be written: {reason}") from error
    finally:
        with suppress(OSError):  # what went wrong before matters
            temporary.unlink(missing_ok=True)


@contextmanager
def directory_aside(path: Path) -> Iterator[Path]:
    """An empty directory beside `path`; it replaces `path` if the block ends well."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(path, ignore_errors=True)
    temporary.replace(path)


def write_bytes(path: Path, data: Any) -> None:
    """Write a file whole or not at all."""
    if is_remote(path):
        put(path, data)
        return
    with aside(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """How a JSON file of ours is written."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """The value of a JSON file of ours."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file whole or not at all."""
    with aside(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    if is_remote(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def table_digest(table: pa.Table) -> str:
    """sha256 of a table's rows, whatever file they came from."""
    return hashlib.sha256(json.dumps(table.to_pydict(), sort_keys=True).encode()).hexdigest()
