"""Cleaning and normal forms of texts."""

import re
import unicodedata

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060\ufeff]")
_ESCAPES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_LATIN = ((0x1E00, 0x1F00), (0x2010, 0x2040), (0x20A0, 0x20D0))  # letters, punctuation, money
_SPACE = re.compile(r"\s+")
_NOT_WORD = re.compile(r"[\W_]+")
# Han and kana, where no space parts the words
_UNSPACED = re.compile(
    "[\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]"
)


def clean(text: str, lowercase: bool) -> str:
    """Control characters become spaces, runs of white space one space; lower-cased on request."""
    text = _SPACE.sub(" ", _CONTROL.sub(" ", text)).strip()
    return text.lower() if lowercase else text


def shown(text: str) -> str:
    """A text as a terminal may show it: what would move the cursor or the colours is a mark."""
    return _ESCAPES.sub("\ufffd", text)


def normal_form(text: str) -> str:
    """What two texts share when they differ in case, accents' encoding or punctuation alone.

    Words of the NFKC form in lower case, joined by one space; a text without words keeps its
    characters, so that "!" and "?" stay apart.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    return _NOT_WORD.sub(" " if text.isascii() else _gap, text).strip() or text.strip()


def _gap(run: re.Match[str]) -> str:
    """What stands for a run without letters and digits: a space, after marks that belong to the
    letter before, such as the vowel signs of Devanagari and Thai.
    """
    found, n = run[0], 0
    if run.start():
        while n < len(found) and unicodedata.category(found[n])[0] == "M":
            n += 1
    return found[:n] + " " * (n < len(found))


def words(text: str) -> list[str]:
    """White-space separated tokens, and each Han character or kana by itself: the unit of
    distinct-n, of shingles and of the repetition screen.
    """
    return text.split() if text.isascii() else _UNSPACED.sub(r" \g<0> ", text).split()


def is_printable(text: str, charset: str) -> bool:
    """Whether every character is printable and of the charset: `ascii`, `latin` or `any`, which is
    all but the mark of bytes that are no character, as where a text was cut inside one.
    """
    if not text.isprintable():
        return False
    if charset == "any":
        return "\ufffd" not in text
    if charset == "ascii":
        return text.isascii()
    return all(
        ord(c) < 0x250 or any(first <= ord(c) < last for first, last in _LATIN) for c in text
    )
