import numpy as np

from sentisynth.seeding import candidate_uniforms, derive_seed, fingerprint, philox_4x32


def test_philox_gives_the_words_of_its_reference() -> None:
    # Random123, kat_vectors: philox4x32, 10 rounds.
    zero = philox_4x32(np.zeros((1, 4), np.uint64), (0, 0))
    assert [f"{int(w):08x}" for w in zero[0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = philox_4x32(np.full((1, 4), 0xFFFFFFFF, np.uint64), (0xFFFFFFFF, 0xFFFFFFFF))
    assert [f"{int(w):08x}" for w in ones[0]] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


def test_a_candidates_numbers_do_not_depend_on_its_unit() -> None:
    whole = candidate_uniforms(7, 1, 0, 64, 10)
    assert np.array_equal(whole[32:48], candidate_uniforms(7, 1, 32, 16, 10))
    assert np.array_equal(whole[:, :5], candidate_uniforms(7, 1, 0, 64, 5))


def test_seed_label_index_and_step_all_matter() -> None:
    base = candidate_uniforms(7, 0, 0, 100, 20)
    assert not np.isin(base, candidate_uniforms(8, 0, 0, 100, 20)).any()
    assert not np.isin(base, candidate_uniforms(7, 1, 0, 100, 20)).any()
    assert len(np.unique(base)) == base.size


def test_uniforms_are_uniform() -> None:
    values = candidate_uniforms(3, 0, 2**33, 2000, 50).ravel()
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert values.min() >= 0 and values.max() < 1
    assert 60 < chi_square < 150  # 99 degrees of freedom: mean 99, standard deviation 14


def test_derived_seeds_differ_and_fit_63_bits() -> None:
    seeds = {derive_seed(1, *names) for names in (("a",), ("b",), ("a", 1), ("a", 2), ())}
    assert len(seeds) == 5 and all(0 <= s < 2**63 for s in seeds)


def test_fingerprint_ignores_the_order_of_keys_alone() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})
