"""Which texts are the same text: equal after normalisation, or near by word shingles.

Candidate pairs come from MinHash with locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman,
Ullman, "Mining of Massive Datasets", section 3.4; the `datasketch` library) and are confirmed by
their exact Jaccard similarity, so an estimate never rejects a text by itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

from sentisynth.data.text import normal_form

_SHINGLE = 3
_PERMUTATIONS = 64
_LOOK_BELOW = 0.7  # pairs are proposed from this share of the threshold on, so that few are missed


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is compared of a text; computed once, looked up in any number of indexes."""

    key: str
    """The normal form."""
    shingles: frozenset[str]
    """Runs of three words of the normal form; a shorter text is one shingle."""
    minhash: MinHash


def sketch(text: str) -> Sketch:
    """The sketch of a text."""
    key = normal_form(text)
    words = key.split()
    runs = max(1, len(words) - _SHINGLE + 1)
    shingles = frozenset(" ".join(words[i : i + _SHINGLE]) for i in range(runs))
    minhash = MinHash(num_perm=_PERMUTATIONS)
    minhash.update_batch([s.encode() for s in shingles])
    return Sketch(key, shingles, minhash)


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """|a ∩ b| / |a ∪ b|."""
    return len(a & b) / len(a | b)


class DuplicateIndex:
    """Texts seen so far; `threshold` is the Jaccard similarity of a match, 1 for exact alone."""

    def __init__(self, threshold: float, texts: Iterable[str] = ()) -> None:
        self._threshold = threshold
        self._exact: set[str] = set()
        self._shingles: list[frozenset[str]] = []
        self._lsh: MinHashLSH | None = None
        if threshold < 1:
            self._lsh = MinHashLSH(threshold=_LOOK_BELOW * threshold, num_perm=_PERMUTATIONS)
        for text in texts:
            self.add(sketch(text))

    def __contains__(self, item: Sketch) -> bool:
        if item.key in self._exact:
            return True
        if self._lsh is None:
            return False
        near = self._lsh.query(item.minhash)
        return any(jaccard(item.shingles, self._shingles[i]) >= self._threshold for i in near)

    def add(self, item: Sketch) -> None:
        """Remember a text."""
        if item.key in self._exact:
            return
        self._exact.add(item.key)
        if self._lsh is not None:
            self._lsh.insert(len(self._shingles), item.minhash, check_duplication=False)
            self._shingles.append(item.shingles)
