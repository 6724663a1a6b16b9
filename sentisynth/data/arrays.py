"""Flat arrays that grow: a list of numbers, and a map from hashed keys to items."""

import numpy as np


class Growing:
    """An array that is appended to; it grows by a quarter."""

    def __init__(self, dtype: type) -> None:
        self._buffer: np.ndarray = np.empty(1024, dtype=dtype)
        self._n = 0

    @property
    def values(self) -> np.ndarray:
        return self._buffer[: self._n]

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes

    def extend(self, values: np.ndarray) -> None:
        n = self._n + len(values)
        if n > len(self._buffer):
            grown = np.empty(max(n, len(self._buffer) * 5 // 4), dtype=self._buffer.dtype)
            grown[: self._n] = self.values
            self._buffer = grown
        self._buffer[self._n : n] = values
        self._n = n


class Multimap:
    """Hashed keys to items in one flat array: linear probing, whole arrays at a time.

    A key is known by its high 32 bits alone; two keys may be mistaken for one, which is harmless,
    since a pair that is found is compared afterwards. A cell holds those bits and the item + 1; a
    free one holds 0. Of a large map each look at a cell waits for the memory, so it is looked at
    once.
    """

    _FULLEST = 0.6

    def __init__(self) -> None:
        self._n = 0
        self._resize(12)

    @property
    def nbytes(self) -> int:
        return self._cells.nbytes

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in `keys` and the items found under them, one entry a find."""
        prints = _print(keys)
        slots = self._slots(prints)
        active = np.arange(len(keys))
        places, items = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while len(active):
            cells = self._cells[slots[active]]
            active, cells = active[cells > 0], cells[cells > 0]
            hits = cells >> np.uint64(32) == prints[active]
            places.append(active[hits])
            items.append((cells[hits] & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1)
            slots[active] = (slots[active] + 1) & self._mask
        return np.concatenate(places), np.concatenate(items)

    def insert(self, keys: np.ndarray, items: np.ndarray) -> None:
        """Put each item under its key, beside those that are there."""
        self._n += len(keys)
        if self._n > self._FULLEST * len(self._cells):
            held = self._cells[self._cells > 0]
            self._resize(int(np.ceil(np.log2(self._n / self._FULLEST))))
            self._place(held)
        self._place(_print(keys) << np.uint64(32) | items.astype(np.uint64) + np.uint64(1))

    def _place(self, new: np.ndarray) -> None:
        slots = self._slots(new >> np.uint64(32))
        active = np.arange(len(new))
        while len(active):
            here = slots[active]
            free = self._cells[here] == 0
            self._cells[here[free]] = new[active[free]]  # of several, the last stays
            active = active[self._cells[here] != new[active]]
            slots[active] = (slots[active] + 1) & self._mask

    def _slots(self, prints: np.ndarray) -> np.ndarray:
        spread = (prints * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
        return (spread >> np.uint64(32 - self._bits)).astype(np.int64)

    def _resize(self, bits: int) -> None:
        self._bits, self._mask = bits, (1 << bits) - 1
        self._cells = np.zeros(1 << bits, dtype=np.uint64)


def _print(keys: np.ndarray) -> np.ndarray:
    return keys >> np.uint64(32)
