import pytest

from sentisynth.data.duplicates import DuplicateIndex, sketch
from sentisynth.data.text import is_printable, normal_form, words
from sentisynth.stages.screen import repetition

CHINESE = "这部电影的故事情节非常感人，演员的表演也十分到位，尤其是最后一幕，让我久久不能忘怀。"


@pytest.mark.parametrize(("a", "b"), [("दिल", "दाल"), ("ดี", "ดู"), ("की", "का"), ("x̂", "x")])
def test_vowel_signs_and_other_marks_tell_words_apart(a: str, b: str) -> None:
    assert normal_form(a) != normal_form(b)
    assert " " not in normal_form(a)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("A  fine, FINE_film!", "a fine fine film"),
        ("it's 5/10", "it s 5 10"),
        ("Cafe\u0301 Élan", "café élan"),
        ("İstanbul", "i\u0307stanbul"),
        ("good \u2764\ufe0f", "good"),  # an emoji and its variation selector
        ("\u0301 good", "good"),
        ("दिल, की।", "दिल की"),
        ("?!", "?!"),
        ("", ""),
    ],
)
def test_normal_forms(text: str, form: str) -> None:
    assert normal_form(text) == form


def test_han_and_kana_are_words_of_their_own() -> None:
    assert words("a fine film") == ["a", "fine", "film"]
    assert words("很好 ok, 看です") == ["很", "好", "ok,", "看", "で", "す"]
    assert words("한국 영화") == ["한국", "영화"]


def test_loops_without_spaces_are_seen() -> None:
    assert repetition("很好看" * 8) > 0.8
    assert repetition(CHINESE) < 0.1


def test_texts_without_spaces_that_differ_in_a_character_are_near() -> None:
    index, other = DuplicateIndex(0.8, [CHINESE]), CHINESE.replace("忘怀", "忘记")
    assert index.matches(sketch([other, CHINESE[:20]], 0.8)).tolist() == [True, False]


@pytest.mark.parametrize("charset", ["ascii", "latin", "any"])
def test_half_a_character_is_of_no_charset(charset: str) -> None:
    assert is_printable("a fine film", charset)
    assert not is_printable("a fine film \ufffd", charset)
