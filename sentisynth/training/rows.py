"""Training rows as flat arrays in a memory-mapped Arrow file: N rows, B in a batch, S tokens.

A file is written once and mapped by every worker; a batch is cut out of it by a few array
operations, with no Python work a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from sentisynth.data.files import aside

_IDS, _LABELS, _WEIGHTS, _SOFT = "ids", "labels", "weights", "soft_labels"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Token rows end to end, and what belongs to each row.

    A batch names rows by position. A negative name `~i` is a filler: row i, which weighs nothing;
    it makes the workers' shares of a batch equally long.
    """

    ids: np.ndarray
    """Token ids of all rows, (tokens,) int32."""
    starts: np.ndarray
    """Where each row begins in `ids`, and the end of the last, (N + 1,) int64."""
    labels: np.ndarray
    """(N,) int64."""
    weights: np.ndarray
    """(N,) float32."""
    soft_labels: np.ndarray | None = None
    """(N, K) float32."""

    @staticmethod
    def of(
        ids: Sequence[Sequence[int]],
        labels: np.ndarray,
        weights: np.ndarray | None = None,
        soft_labels: np.ndarray | None = None,
    ) -> "Rows":
        """Rows of token lists; without weights each row weighs 1."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return Rows(
            ids=np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())),
            starts=np.concatenate(([0], np.cumsum(lengths))),
            labels=np.asarray(labels, np.int64),
            weights=np.ones(len(ids), np.float32) if weights is None else weights,
            soft_labels=soft_labels,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row (N,)."""
        return np.diff(self.starts)

    def padded(self, rows: np.ndarray, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 tensors (B, S): ids padded on the right to the longest row, and the mask."""
        index = positions(rows)
        first, length = self.starts[index], self.starts[index + 1] - self.starts[index]
        column = np.arange(length.max())
        inside = column < length[:, None]
        ids = np.full(inside.shape, pad_id, np.int64)
        ids[inside] = self.ids[(first[:, None] + column)[inside]]
        return torch.from_numpy(ids), torch.from_numpy(inside.astype(np.int64))

    def weights_of(self, rows: np.ndarray) -> np.ndarray:
        """Weights (B,); fillers weigh nothing."""
        return np.where(rows < 0, np.float32(0), self.weights[positions(rows)])

    def take(self, rows: np.ndarray) -> "Rows":
        """Some of the rows, in the order given."""
        lengths = self.lengths[rows]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        return Rows(
            ids=self.ids[np.repeat(self.starts[:-1][rows], lengths) + within],
            starts=starts,
            labels=self.labels[rows],
            weights=self.weights[rows],
            soft_labels=None if self.soft_labels is None else self.soft_labels[rows],
        )

    def save(self, path: Path) -> None:
        """Write one Arrow file, whole or not at all."""
        columns = {
            _IDS: pa.LargeListArray.from_arrays(self.starts, self.ids),
            _LABELS: self.labels,
            _WEIGHTS: self.weights,
        }
        if self.soft_labels is not None:
            flat = np.ascontiguousarray(self.soft_labels, np.float32).ravel()
            columns[_SOFT] = pa.FixedSizeListArray.from_arrays(flat, self.soft_labels.shape[1])
        table = pa.table(columns)
        with (
            aside(path) as temporary,
            pa.OSFile(str(temporary), "wb") as stream,
            pa.ipc.new_file(stream, table.schema) as writer,
        ):
            writer.write_table(table)

    @staticmethod
    def map(path: Path) -> "Rows":
        """The rows of a file, mapped into memory: pages are read when a batch needs them."""
        (batch,) = [pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)]
        ids = batch[_IDS]
        soft = None
        if _SOFT in batch.schema.names:
            column = batch[_SOFT]
            soft = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
        return Rows(
            ids=ids.values.to_numpy(),
            starts=ids.offsets.to_numpy(),
            labels=batch[_LABELS].to_numpy(),
            weights=batch[_WEIGHTS].to_numpy(),
            soft_labels=soft,
        )


def positions(rows: np.ndarray) -> np.ndarray:
    """Row numbers of a batch, fillers included."""
    return np.where(rows < 0, ~rows, rows)


def shared_rows(path: Path, make: Callable[[], Rows]) -> Rows:
    """Rows that the first worker makes and all map."""
    if is_first_worker() and not path.is_file():
        make().save(path)
    if dist.is_initialized():
        dist.barrier()
    return Rows.map(path)


def is_first_worker() -> bool:
    """Whether this is the only training process, or rank 0 of several."""
    return not dist.is_initialized() or dist.get_rank() == 0


def world() -> tuple[int, int]:
    """Rank of this training process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_out(batch: np.ndarray, rank: int, world_size: int, parts: int) -> list[np.ndarray]:
    """A worker's rows of a batch (B,) in `parts` forward passes, equally many for each worker.

    Every row is in one worker's share once; fillers make up for what is missing.
    """
    size = max(-(-len(batch) // world_size), parts)
    own = batch[rank::world_size]
    filled = np.concatenate((own, np.full(size - len(own), ~batch[0])))
    return np.array_split(filled, parts)
