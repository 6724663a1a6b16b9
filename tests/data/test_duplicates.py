import pytest

from sentisynth.data.duplicates import DuplicateIndex, jaccard, sketch

LONG = "one of the most moving and honest films of the year , with a cast that never misses"


@pytest.mark.parametrize("other", ["A fine, fine film!", "a FINE fine film", "a fine  fine film ."])
def test_case_and_punctuation_do_not_make_another_text(other: str) -> None:
    assert sketch(other) in DuplicateIndex(1.0, ["a fine , fine film"])


def test_one_changed_word_in_many_is_a_near_duplicate() -> None:
    near = sketch(LONG.replace("misses", "errs"))
    assert near in DuplicateIndex(0.8, [LONG])
    assert near not in DuplicateIndex(1.0, [LONG])


def test_the_threshold_is_the_exact_similarity_not_its_estimate() -> None:
    """Whatever MinHash guesses, a text below the threshold is never taken for another."""
    words = LONG.split()
    for cut in range(1, len(words)):
        other = sketch(" ".join(words[:cut] + ["else"] * (len(words) - cut)))
        similarity = jaccard(other.shingles, sketch(LONG).shingles)
        if similarity < 0.6:
            assert other not in DuplicateIndex(0.6, [LONG])


def test_texts_without_words_stay_apart() -> None:
    assert sketch("?") not in DuplicateIndex(1.0, ["!"])


def test_another_text_is_no_duplicate() -> None:
    assert sketch("a dull and lifeless exercise in genre") not in DuplicateIndex(0.8, [LONG])
