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
    """Hashed keys to items, in two flat arrays: linear probing, whole arrays at a time.

    A key is known by its high 32 bits alone; two keys may be mistaken for one, which is harmless,
    since a pair that is found is compared afterwards.
    """

    _FULLEST = 0.6

    def __init__(self) -> None:
        self._n = 0
        self._resize(12)

    @property
    def nbytes(self) -> int:
        return self._items.nbytes + self._prints.nbytes

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in `keys` and the items found under them, one entry a find."""
        prints = _print(keys)
        slots = self._slots(prints)
        active = np.arange(len(keys))
        places, items = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while len(active):
            held = self._items[slots[active]]
            active, held = active[held > 0], held[held > 0]
            hits = self._prints[slots[active]] == prints[active]
            places.append(active[hits])
            items.append(held[hits].astype(np.int64) - 1)
            slots[active] = (slots[active] + 1) & self._mask
        return np.concatenate(places), np.concatenate(items)

    def insert(self, keys: np.ndarray, items: np.ndarray) -> None:
        """Put each item under its key, beside those that are there."""
        self._n += len(keys)
        if self._n > self._FULLEST * len(self._items):
            used = self._items > 0
            prints, held = self._prints[used], self._items[used]
            self._resize(int(np.ceil(np.log2(self._n / self._FULLEST))))
            self._place(prints, held)
        self._place(_print(keys), items + np.uint32(1))

    def _place(self, prints: np.ndarray, held: np.ndarray) -> None:
        slots = self._slots(prints)
        active = np.arange(len(prints))
        while len(active):
            here = slots[active]
            free = self._items[here] == 0
            at, by = here[free], active[free]
            self._items[at], self._prints[at] = held[by], prints[by]  # of several, the last stays
            placed = (self._items[here] == held[active]) & (self._prints[here] == prints[active])
            active = active[~placed]
            slots[active] = (slots[active] + 1) & self._mask

    def _slots(self, prints: np.ndarray) -> np.ndarray:
        return (prints * np.uint32(0x9E3779B1) >> np.uint32(32 - self._bits)).astype(np.int64)

    def _resize(self, bits: int) -> None:
        self._bits, self._mask = bits, (1 << bits) - 1
        self._items = np.zeros(1 << bits, dtype=np.uint32)  # 0: free; else the item + 1
        self._prints = np.zeros(1 << bits, dtype=np.uint32)


def _print(keys: np.ndarray) -> np.ndarray:
    return (keys >> np.uint64(32)).astype(np.uint32)
