import random
import time
from collections import Counter, defaultdict
from importlib import metadata
from itertools import pairwise

import numpy as np
import pytest
from datasketch import MinHash

from sentisynth.data.arrays import Multimap
from sentisynth.data.duplicates import (
    DuplicateIndex,
    Sketches,
    _bands,
    band_shape,
    sketch,
)
from sentisynth.data.text import normal_form
from tests.conftest import reviews

LONG = "one of the most moving and honest films of the year , with a cast that never misses"


def seen(index: DuplicateIndex, text: str) -> bool:
    return bool(index.matches(sketch([text], index.threshold))[0])


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Runs of three words, with no help from the package but the normal form."""
    words = normal_form(text).split()
    runs = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return frozenset(runs or [tuple(words)])


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|a ∩ b| / |a ∪ b| of two arrays of distinct values."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


class Exhaustive:
    """An exact search for the most similar text among those that were added."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._holders: dict[tuple[str, ...], list[int]] = defaultdict(list)

    def add(self, text: str) -> None:
        for shingle in shingles(text):
            self._holders[shingle].append(len(self._sizes))
        self._sizes.append(len(shingles(text)))

    def highest(self, text: str) -> float:
        own = shingles(text)
        shared = Counter(i for shingle in own for i in self._holders.get(shingle, ()))
        return max((n / (len(own) + self._sizes[i] - n) for i, n in shared.items()), default=0.0)


@pytest.fixture(scope="module")
def originals() -> list[str]:
    return list(reviews("train", 900)["text"].to_pylist())


@pytest.fixture(scope="module")
def mixed(originals: list[str]) -> list[str]:
    """3,600 texts in random order: real ones, and copies of them with a few words altered."""
    rng = random.Random(7)
    words = [word for text in originals for word in text.split()]

    def altered(text: str) -> str:
        found = text.split()
        for _ in range(rng.randrange(4)):
            i = rng.randrange(len(found))
            found[i : i + 1] = rng.choice([[], [rng.choice(words)], [found[i], rng.choice(words)]])
            found = found or ["nothing"]
        return " ".join(found).upper() if rng.random() < 0.1 else " ".join(found)

    texts = [*originals, *(altered(rng.choice(originals)) for _ in originals)]
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("other", ["A fine, fine film!", "a FINE fine film", "a fine  fine film ."])
def test_case_and_punctuation_do_not_make_another_text(other: str) -> None:
    assert seen(DuplicateIndex(1.0, ["a fine , fine film"]), other)
    assert seen(DuplicateIndex(0.8, ["a fine , fine film"]), other)


def test_one_changed_word_in_many_is_a_near_duplicate() -> None:
    near = LONG.replace("misses", "errs")
    assert seen(DuplicateIndex(0.8, [LONG]), near)
    assert not seen(DuplicateIndex(1.0, [LONG]), near)


def test_the_threshold_is_the_exact_similarity_not_its_estimate() -> None:
    """Whatever MinHash guesses, a text below the threshold is never taken for another."""
    words = LONG.split()
    for cut in range(1, len(words)):
        other = " ".join(words[:cut] + ["else"] * (len(words) - cut))
        both = sketch([other, LONG], 0.6)
        if jaccard(both.of(0), both.of(1)) < 0.6:
            assert not seen(DuplicateIndex(0.6, [LONG]), other)


def test_texts_without_words_stay_apart() -> None:
    assert not seen(DuplicateIndex(1.0, ["!"]), "?")
    assert not seen(DuplicateIndex(0.8, ["!"]), "?")
    assert DuplicateIndex(0.8).add_new(sketch(["!", "?", "", "!"], 0.8)).tolist() == [0, 0, 0, 1]


def test_another_text_is_no_duplicate() -> None:
    assert not seen(DuplicateIndex(0.8, [LONG]), "a dull and lifeless exercise in genre")


def test_shingles_of_a_text_are_distinct_ascending_and_as_many_as_its_word_runs(
    originals: list[str],
) -> None:
    found = sketch(originals, 0.8)
    for i, text in enumerate(originals):
        assert len(found.of(i)) == len(shingles(text))
        assert (np.diff(found.of(i).astype(np.int64)) > 0).all()


def test_the_similarity_of_sketches_is_that_of_the_word_runs(mixed: list[str]) -> None:
    found, exact = sketch(mixed[:200], 0.8), [shingles(text) for text in mixed[:200]]
    for i, a in enumerate(exact):
        for j, b in enumerate(exact):
            assert jaccard(found.of(i), found.of(j)) == len(a & b) / len(a | b)


def before_the_finalizer(x: np.ndarray) -> np.ndarray:
    """The inverse of MurmurHash3's finalizer, which datasketch applies to what it is given."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(pow(0xC2B2AE35, -1, 1 << 32))
    x = (x ^ (x >> np.uint32(13)) ^ (x >> np.uint32(26))) * np.uint32(pow(0x85EBCA6B, -1, 1 << 32))
    return x ^ (x >> np.uint32(16))


@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_bands_are_shared_where_minhashes_of_datasketch_are(
    threshold: float, mixed: list[str]
) -> None:
    found, (n_bands, n_rows) = sketch(mixed[:500], threshold), band_shape(threshold)

    signatures = []
    for i in range(len(found)):
        minhash = MinHash(num_perm=n_bands * n_rows, scheme="affine32", hashfunc=lambda x: x)
        minhash.update_batch(before_the_finalizer(found.of(i)))
        signatures.append(minhash.hashvalues.reshape(n_bands, n_rows))
    bands = _bands(found, threshold)
    assert bands.shape == (500, n_bands)
    for band in range(n_bands):
        ours = np.unique(bands[:, band], return_inverse=True)[1]
        theirs = np.unique([s[band] for s in signatures], axis=0, return_inverse=True)[1]
        assert len(set(zip(ours, theirs.ravel(), strict=True))) == len(set(ours))
        assert ours.max() == theirs.max()


def test_the_datasketch_that_is_declared_has_the_scheme() -> None:
    """`affine32` came with its version 2."""
    assert int(metadata.version("datasketch").split(".")[0]) >= 2


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_matches_are_those_of_an_exhaustive_search(
    threshold: float, originals: list[str], mixed: list[str]
) -> None:
    exact = Exhaustive()
    for text in originals[::2]:
        exact.add(text)
    highest = np.array([exact.highest(text) for text in mixed])
    found = DuplicateIndex(threshold, originals[::2]).matches(sketch(mixed, threshold))
    wanted = highest >= threshold
    assert not (found & ~wanted).any()
    assert (wanted & ~found).sum() <= 0.01 * wanted.sum()
    assert found[highest == 1].all() and 1000 < wanted.sum() < 2500


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_what_is_new_is_new_to_an_exhaustive_search(threshold: float, mixed: list[str]) -> None:
    index, kept, missed, near = DuplicateIndex(threshold), Exhaustive(), 0, 0
    for start in range(0, len(mixed), 100):
        batch = mixed[start : start + 100]
        for text, found in zip(batch, index.add_new(sketch(batch, threshold)), strict=True):
            wanted = kept.highest(text) >= threshold
            assert wanted or not found, text
            near, missed = near + wanted, missed + (wanted and not found)
            if not found:
                kept.add(text)
    assert near > 500 and missed <= 0.01 * near


@pytest.mark.parametrize("threshold", [0.8, 1.0])
def test_of_equal_or_near_texts_the_lowest_index_stays_whatever_the_batches(
    threshold: float, mixed: list[str]
) -> None:
    texts, flags = mixed[:1000], []
    for size in (1, 7, 256):
        index = DuplicateIndex(threshold)
        batches = [texts[i : i + size] for i in range(0, len(texts), size)]
        flags.append(np.concatenate([index.add_new(sketch(b, threshold)) for b in batches]))
        assert len(index) == len(texts) - flags[-1].sum()
    assert all(np.array_equal(a, b) for a, b in pairwise(flags))
    first = {normal_form(text): i for i, text in reversed([*enumerate(texts)])}
    for i, text in enumerate(texts):
        assert flags[0][i] or first[normal_form(text)] == i
        assert not flags[0][i] or threshold < 1 or first[normal_form(text)] < i


def test_looking_does_not_remember() -> None:
    index, found = DuplicateIndex(0.8), sketch([LONG, LONG], 0.8)
    assert index.matches(found).tolist() == [False, False] and len(index) == 0
    assert index.add_new(found).tolist() == [False, True] and len(index) == 1
    assert index.matches(found).tolist() == [True, True]


@pytest.mark.parametrize("threshold", [0.8, 1.0])
def test_no_texts_are_no_trouble(threshold: float) -> None:
    index, none = DuplicateIndex(threshold, [LONG]), sketch([], threshold)
    assert isinstance(none, Sketches) and len(none) == 0
    assert len(index.matches(none)) == len(index.add_new(none)) == 0 and len(index) == 1


def test_the_multimap_finds_every_key_after_growth() -> None:
    random = np.random.default_rng(3)
    keys = random.integers(0, 1 << 64, 50_000, dtype=np.uint64)
    keys[1::50] = keys[0::50]  # some keys hold two items
    items = random.permutation(len(keys)).astype(np.uint32)
    table, start = Multimap(), 0
    for size in (1, 2000, 3, 500, 30_000, 10_000, 7_496):
        table.insert(keys[start : start + size], items[start : start + size])
        start += size
    assert start == len(keys)
    absent = random.integers(0, 1 << 64, 50_000, dtype=np.uint64)
    places, found = table.find(np.concatenate([keys, absent]))
    pairs = set(zip(places.tolist(), found.tolist(), strict=True))
    assert pairs >= set(enumerate(items.tolist()))
    asked, held = np.concatenate([keys, absent])[places], np.empty_like(keys)
    held[items] = keys
    assert (asked >> np.uint64(32) == held[found.astype(int)] >> np.uint64(32)).all()
    assert 51_900 < len(pairs) < 52_200


@pytest.mark.parametrize("threshold", [0.8, 1.0])
def test_a_text_costs_less_than_400_bytes(threshold: float, originals: list[str]) -> None:
    rng = random.Random(5)
    words = [word for text in originals for word in text.split()]
    texts = [" ".join(rng.choices(words, k=rng.randint(12, 30))) for _ in range(30_000)]
    index = DuplicateIndex(threshold)
    for start in range(0, len(texts), 1000):
        index.add_new(sketch(texts[start : start + 1000], threshold))
    assert len(index) == 30_000 and index.nbytes / len(index) < 400


class Counting(DuplicateIndex):
    """Counts the pairs that are compared exactly."""

    compared = 0

    def _is_near(
        self, shingles: np.ndarray, others: np.ndarray, ends: np.ndarray, items: np.ndarray
    ) -> bool:
        self.compared += len(items)
        return super()._is_near(shingles, others, ends, items)


def test_few_texts_of_one_template_are_compared_exactly() -> None:
    """Of 22 common and 8 own words: most pairs share a band, none is near."""
    rng, words = random.Random(0), [f"w{i}" for i in range(5000)]
    start = " ".join(words[:22])
    texts = [f"{start} {' '.join(rng.choices(words, k=8))}" for _ in range(600)]
    index, own = Counting(0.8, texts[:500]), sketch(texts[500:], 0.8)
    index.compared = 0
    assert not index.matches(own).any() and index.compared < 0.05 * 500 * 100
    near = sketch([f"{text} more" for text in texts[:50]], 0.8)
    assert index.matches(near).mean() > 0.9


def test_texts_with_a_long_common_beginning_are_not_compared_pair_by_pair() -> None:
    """3,000 texts of 14 common and 6 own words: most pairs are candidates, of a Jaccard of 0.5."""
    rng, words = random.Random(0), [f"w{i}" for i in range(5000)]
    start = " ".join(words[:14])
    texts = [f"{start} {' '.join(rng.choices(words, k=6))}" for _ in range(3000)]
    sketches = [sketch(texts[at : at + 256], 0.8) for at in range(0, len(texts), 256)]
    index, started = DuplicateIndex(0.8), time.process_time()
    for each in sketches:
        index.add_new(each)
    assert time.process_time() - started < 8 and len(index) == 3000
