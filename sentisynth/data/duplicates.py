"""Which texts are the same text: equal after normalisation, or near by word shingles.

Candidate pairs come from MinHash with locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman,
Ullman, "Mining of Massive Datasets", section 3.4) and are confirmed by their exact Jaccard
similarity, so an estimate never rejects a text by itself. Signatures are those of the `datasketch`
library, computed for many texts at once. An index costs at most about 400 bytes a text of up to 30
words, and 5 for each word more.

N texts, B bands of R permutations each.
"""

import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from sentisynth.data.arrays import Growing, Multimap
from sentisynth.data.text import normal_form, words

_SHINGLE = 3  # words
_MOST_ROWS, _MOST_BANDS = 4, 16
_MISSES = 0.005  # share of pairs at the threshold that bands may miss


@dataclass(frozen=True, kw_only=True)
class Sketches:
    """What is compared of N texts; computed once, looked up in any number of indexes."""

    keys: np.ndarray
    """uint64 (N,): hash of the normal form."""
    shingles: np.ndarray
    """uint32: hashes of the texts' shingles (runs of three words of the normal form; a shorter
    text is one shingle), text after text, ascending and distinct within a text."""
    ends: np.ndarray
    """int64 (N,): where each text's shingles end."""

    def __len__(self) -> int:
        return len(self.keys)

    def of(self, i: int) -> np.ndarray:
        """The shingles of text i."""
        return self.shingles[self.ends[i - 1] if i else 0 : self.ends[i]]


def sketch(texts: Sequence[str], threshold: float) -> Sketches:
    """The sketches of texts, for indexes of this `threshold`; for 1, shingles are left out."""
    forms = [normal_form(text) for text in texts]
    keys = np.array([_hash_64(form) for form in forms], dtype=np.uint64)
    shingles, ends = np.empty(0, dtype=np.uint32), np.zeros(len(forms), dtype=np.int64)
    if threshold < 1:
        shingles, ends = _shingles(forms)
    return Sketches(keys=keys, shingles=shingles, ends=ends)


def band_shape(threshold: float) -> tuple[int, int]:
    """(B, R): as many permutations a band as can be, with few pairs at the threshold missed.

    A pair of Jaccard similarity J shares a band with probability 1 − (1 − J^R)^B.
    """
    for rows in range(_MOST_ROWS, 0, -1):
        bands = math.ceil(math.log(_MISSES) / math.log1p(-(threshold**rows)))
        if bands <= _MOST_BANDS:
            break
    return bands, rows


def _hash_64(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _shingles(forms: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct shingle hashes of all texts, and where each text's end."""
    split = [words(form) for form in forms]
    counts = np.array([len(items) for items in split], dtype=np.int64)
    hashed = np.fromiter(
        (zlib.crc32(w.encode("utf-8", "surrogatepass")) for ws in split for w in ws),
        dtype=np.uint64,
        count=int(counts.sum()),
    )
    runs = np.maximum(counts - _SHINGLE + 1, 1)
    owner = np.repeat(np.arange(len(forms)), runs)
    position = np.arange(int(runs.sum())) - np.repeat(np.cumsum(runs) - runs, runs)
    start = np.repeat(np.cumsum(counts) - counts, runs) + position
    length = np.minimum(np.repeat(counts, runs) - position, _SHINGLE)
    padded = np.concatenate([hashed, np.zeros(_SHINGLE, dtype=np.uint64)])
    mixed = length.astype(np.uint64)
    for k in range(_SHINGLE):
        word = np.where(k < length, padded[start + k], np.uint64(0))
        mixed = _mix_64(mixed * np.uint64(0x9E3779B97F4A7C15) + word)
    hashes = _mix_32((mixed >> np.uint64(32)).astype(np.uint32))
    distinct = np.unique(owner.astype(np.uint64) << np.uint64(32) | hashes)
    found = np.bincount((distinct >> np.uint64(32)).astype(np.int64), minlength=len(forms))
    return distinct.astype(np.uint32), np.cumsum(found)


def _bands(sketches: Sketches, threshold: float) -> np.ndarray:
    """uint64 (N, B): texts that share one are candidates for near-duplicates."""
    if threshold >= 1:  # the key says it all
        return sketches.keys[:, None]
    n_bands, n_rows = band_shape(threshold)
    bands = np.empty((len(sketches), n_bands), dtype=np.uint64)
    if not len(sketches):
        return bands
    a, b = _permutations(n_bands * n_rows)
    starts = np.concatenate([[0], sketches.ends[:-1]])
    for band in range(n_bands):
        key = np.full(len(sketches), band + 1, dtype=np.uint64)
        for p in range(band * n_rows, (band + 1) * n_rows):
            smallest = np.minimum.reduceat(sketches.shingles * a[p] + b[p], starts)
            key = _mix_64(key * np.uint64(0x9E3779B97F4A7C15) + smallest)
        bands[:, band] = key
    return bands


@cache
def _permutations(n: int) -> tuple[np.ndarray, np.ndarray]:
    from datasketch import MinHash  # here: half a second, which most processes need not wait

    a, b = MinHash(num_perm=n, scheme="affine32").permutations
    return a, b


def _mix_32(x: np.ndarray) -> np.ndarray:
    """MurmurHash3's finalizer, as datasketch applies it before the permutations."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _mix_64(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


class DuplicateIndex:
    """Texts seen so far; `threshold` is the Jaccard similarity of a match, 1 for exact alone."""

    def __init__(self, threshold: float, texts: Sequence[str] = ()) -> None:
        self.threshold = threshold
        self._table = Multimap()
        self._keys = Growing(np.uint64)
        self._shingles = Growing(np.uint32)
        self._ends = Growing(np.int64)
        self._bits = Growing(np.uint64)
        if len(texts):  # all of them: what is near to one need not be near to one that it is like
            sketches = sketch(texts, threshold)
            rows = np.sort(np.unique(sketches.keys, return_index=True)[1])
            self._remember(sketches, _bands(sketches, threshold), rows)

    def __len__(self) -> int:
        return len(self._keys.values)

    @property
    def nbytes(self) -> int:
        """Memory that the index holds."""
        arrays = (self._table, self._keys, self._shingles, self._ends, self._bits)
        return sum(array.nbytes for array in arrays)

    def matches(self, sketches: Sketches) -> np.ndarray:
        """Bool (N,): whether each text is equal or near to one seen before."""
        return self._matches(sketches, _bands(sketches, self.threshold))

    def _matches(self, sketches: Sketches, bands: np.ndarray) -> np.ndarray:
        found = np.zeros(len(sketches), dtype=bool)
        places, items = self._table.find(bands.ravel())
        texts = places // bands.shape[1]
        found[texts[self._keys.values[items] == sketches.keys[texts]]] = True
        if self.threshold < 1:
            texts, items = self._possible(sketches, texts[~found[texts]], items[~found[texts]])
            rows, first = np.unique(texts, return_index=True)
            for i, near in zip(rows, np.split(items, first[1:]), strict=False):
                found[i] = self._is_near(
                    sketches.of(i), self._shingles.values, self._ends.values, near
                )
        return found

    def _possible(
        self, sketches: Sketches, texts: np.ndarray, items: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The pairs that can be near, each once, by text: a bit that one has and the other has not
        is a shingle that they do not share. Texts from one template meet in many bands, and would
        all be compared otherwise.
        """
        bits, ends = _bits(sketches), self._ends.values
        sizes = np.diff(sketches.ends, prepend=0)
        ours, theirs = bits[texts], self._bits.values[items]
        n, m = sizes[texts], ends[items] - np.where(items > 0, ends[items - 1], 0)
        shared = np.minimum(
            n - np.bitwise_count(ours & ~theirs), m - np.bitwise_count(theirs & ~ours)
        )
        kept = shared / (n + m - shared) >= self.threshold
        pairs = np.sort(texts[kept] << 32 | items[kept])
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        return pairs >> 32, pairs & 0xFFFFFFFF

    def _is_near(
        self, shingles: np.ndarray, others: np.ndarray, ends: np.ndarray, items: np.ndarray
    ) -> bool:
        """Whether a text's shingles are near to those of any of these items, all at once."""
        stops = ends[items]
        starts = np.where(items > 0, ends[items - 1], 0)
        lengths = stops - starts
        where = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        values = others[where + np.arange(len(where))]
        place = np.minimum(np.searchsorted(shingles, values), len(shingles) - 1)
        shared = np.add.reduceat(shingles[place] == values, np.cumsum(lengths) - lengths)
        return bool((shared / (len(shingles) + lengths - shared) >= self.threshold).any())

    def add_new(self, sketches: Sketches) -> np.ndarray:
        """Remember, in order, the texts that match none before them; bool (N,): which match."""
        bands = _bands(sketches, self.threshold)
        found = self._matches(sketches, bands)
        buckets: dict[int, list[int]] = {}
        for i, shared in _with_shared_bands(bands):
            if found[i]:
                continue
            near = sorted({j for band in shared for j in buckets.get(band, ())})
            found[i] = bool(near) and self._same(sketches, i, np.array(near))
            if not found[i]:
                for band in shared:
                    buckets.setdefault(band, []).append(i)
        self._remember(sketches, bands, np.flatnonzero(~found))
        return found

    def _same(self, sketches: Sketches, i: int, others: np.ndarray) -> bool:
        if (sketches.keys[others] == sketches.keys[i]).any():
            return True
        return self.threshold < 1 and self._is_near(
            sketches.of(i), sketches.shingles, sketches.ends, others
        )

    def _remember(self, sketches: Sketches, bands: np.ndarray, rows: np.ndarray) -> None:
        new = np.arange(len(self), len(self) + len(rows), dtype=np.uint32)
        self._table.insert(bands[rows].ravel(), np.repeat(new, bands.shape[1]))
        self._keys.extend(sketches.keys[rows])
        if self.threshold < 1:
            lengths = np.diff(sketches.ends, prepend=0)
            is_new = np.zeros(len(sketches), dtype=bool)
            is_new[rows] = True
            before = len(self._shingles.values)
            self._shingles.extend(sketches.shingles[np.repeat(is_new, lengths)])
            self._ends.extend(before + np.cumsum(lengths[rows]))
            self._bits.extend(_bits(sketches)[rows])


def _bits(sketches: Sketches) -> np.ndarray:
    """uint64 (N,): a bit for each shingle, which several may have."""
    if not len(sketches):
        return np.empty(0, dtype=np.uint64)
    each = np.uint64(1) << (sketches.shingles & np.uint32(63)).astype(np.uint64)
    return np.bitwise_or.reduceat(each, np.concatenate([[0], sketches.ends[:-1]]))


def _with_shared_bands(bands: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Texts, in order, that share a band with another of (N, B), and which bands are shared."""
    _, inverse, counts = np.unique(bands, return_inverse=True, return_counts=True)
    shared = counts[inverse.reshape(bands.shape)] > 1
    for i in np.flatnonzero(shared.any(axis=1)):
        yield int(i), bands[i, shared[i]].tolist()
