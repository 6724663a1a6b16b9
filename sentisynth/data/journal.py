"""The journal of a pool at work: receipts of finished units, so that a restart is quick.

It is a cache. Every receipt can be made again from its unit's file, and one is believed only where
the file still has the sha256 that it names.
"""

import hashlib
import time
from pathlib import Path

import pyarrow as pa

from sentisynth.data.files import write_bytes
from sentisynth.data.receipts import Receipt
from sentisynth.data.storage import children, remove_tree
from sentisynth.data.units import Unit

DIRECTORY = ".receipts"
_SUFFIX, _DIGEST = ".receipts", 32  # the file begins with the sha256 of the rest
_PLAN = b"sentisynth.plan"
_FLUSH_UNITS, _FLUSH_S = 256, 5.0


class Journal:
    """Receipts in Arrow files of up to 256, written every few seconds.

    A crash loses the receipts of the last seconds, not the units.
    """

    def __init__(self, pool: Path, plan: str) -> None:
        self._directory, self._plan = pool / DIRECTORY, plan
        self._known: dict[Unit, tuple[str, pa.Table, int]] = {}
        self._new: list[pa.Table] = []
        self._flushed = time.monotonic()
        self._next = 0
        self.read(0)

    @property
    def n_files(self) -> int:
        """Files so far; they are numbered."""
        return self._next

    def read(self, first: int) -> None:
        """Take in the receipts of the files from this number on."""
        for path in children(self._directory):
            is_ours = path.suffix == _SUFFIX and path.stem.isdecimal()
            if is_ours and int(path.stem) >= first:
                self._read(path)

    def get(self, unit: Unit) -> Receipt | None:
        """The receipt of a unit, if it was read and not let go of."""
        if unit not in self._known:
            return None
        _, table, row = self._known[unit]
        return Receipt.from_arrow(table.slice(row, 1))

    def sha256(self, unit: Unit) -> str | None:
        """What `get`'s receipt says of the unit's file."""
        return self._known[unit][0] if unit in self._known else None

    def drop(self, unit: Unit) -> None:
        """Let go of a unit's receipt; its file stays."""
        self._known.pop(unit, None)

    def add(self, receipt: Receipt) -> None:
        """Keep a receipt, which an older one of the unit gives way to; it is on disk within
        seconds, if receipts keep coming.
        """
        self.drop(receipt.unit)
        self._new.append(receipt.to_arrow())
        if len(self._new) >= _FLUSH_UNITS or time.monotonic() - self._flushed > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what is kept."""
        self._flushed = time.monotonic()
        if not self._new:
            return
        table = pa.concat_tables(self._new).replace_schema_metadata({_PLAN: self._plan.encode()})
        self._new = []
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        digest = hashlib.sha256(data).digest()
        write_bytes(self._directory / f"{self._next:06d}{_SUFFIX}", digest + data)
        self._next += 1

    def clear(self) -> None:
        """Remove the files: the pool's manifest holds what they were for."""
        if self._directory.is_dir():
            remove_tree(self._directory)

    def _read(self, path: Path) -> None:
        self._next = int(path.stem) + 1
        data = path.read_bytes()
        digest, data = data[:_DIGEST], data[_DIGEST:]
        if hashlib.sha256(data).digest() != digest:
            return  # torn or altered: the receipts are made again from the units
        with pa.ipc.open_file(pa.BufferReader(data)) as reader:
            table = reader.read_all()
        if (table.schema.metadata or {}).get(_PLAN) == self._plan.encode():
            units = table.select(["label", "number", "size"]).to_pylist()
            digests = table["sha256"].to_pylist()
            for row, (unit, sha256) in enumerate(zip(units, digests, strict=True)):
                self._known[Unit(**unit)] = (sha256, table, row)
