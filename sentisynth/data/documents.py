"""Unlabelled documents: where they lie, their words and sentences, and rows of tokens from them."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sentisynth.config.pretrain import TextConfig
from sentisynth.data.json_lines import json_lines, whole
from sentisynth.data.parquet import pieces
from sentisynth.data.text import clean, normal_form
from sentisynth.errors import DataError

FORMATS = (".parquet", ".jsonl", ".txt")
_PIECE = 256  # rows read at once
_LONGEST = 2**24  # bytes of a document
_MOST_BYTES, _UNFOLDED = 2**31, 50  # of a file, and times its own size: text shrinks to a tenth
# a word before "n't", a contraction, a word, three dots, or one mark
WORDS = r"\w+(?=n['’]t\b)|n['’]t\b|['’](?:s|d|m|re|ve|ll|S|D|M|RE|VE|LL)\b|\w+|\.\.\.|[^\w\s]"
# as Penn Treebank text is written, a compound is one word, and so is a dash of two
_WORDS = re.compile(rf"\w+(?:-\w+)+|--+|{WORDS}")
_SENTENCE_END = re.compile(r"(?:(?<=[.!?…])|(?<=[.!?…][\"')”»]))\s+|(?<=[。！？])")
_OPENING = "\"'(“«"


def document_files(config: TextConfig) -> list[Path]:
    """The files of a corpus, all of one kind, by name. Raises DataError."""
    path = Path(os.path.expanduser(config.source))
    if not os.path.exists(path):  # no error where a name is too long
        raise DataError(f"there is no corpus {config.source}; check text.source")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    kinds = sorted({p.suffix for p in files})
    if len(kinds) != 1 or kinds[0] not in FORMATS:
        told = ", ".join(kind or "files without a suffix" for kind in kinds) or "no files"
        raise DataError(
            f"the corpus {config.source} has {told}; give one kind of {', '.join(FORMATS)}"
        )
    return files


def read_documents(config: TextConfig) -> Iterator[str]:
    """Cleaned texts of a corpus in the order of its files; capitals stay, empty ones too.

    Raises DataError where a file cannot be read, has no such column, or none has a text.
    """
    is_empty = True
    for path in document_files(config):
        try:
            for text in _texts(path, config):
                kept = clean(text or "", lowercase=False)
                is_empty = is_empty and not kept
                yield kept
        except (pa.ArrowException, OSError, UnicodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from None
    if is_empty:
        raise DataError(
            f"all documents of {config.source} are empty; check text.text_column (now "
            f"{config.text_column!r})"
        )


def _texts(path: Path, config: TextConfig) -> Iterator[str | None]:
    if path.suffix == ".parquet":
        _check_column(path, pq.read_schema(path).names, config)
        for piece in pieces(
            path,
            [config.text_column],
            rows=_PIECE,
            longest=_LONGEST,
            most=max(_MOST_BYTES, _UNFOLDED * path.stat().st_size),
            remedy="no text of that size makes so small a file: look at what it holds",
        ):
            yield from piece.column(0).cast(pa.string()).to_pylist()
        return
    if path.suffix == ".jsonl":
        for number, value in json_lines(path, _LONGEST):
            _check_column(path, list(value), config)
            text = whole(value[config.text_column])
            if text is not None and not isinstance(text, str):
                told = f"the text is {str(text)[:40]!r}, which is no text"
                raise DataError(f"{path}, line {number}: {told}")
            yield text
        return
    with path.open(encoding="utf-8") as stream:
        lines = iter(lambda: stream.readline(_LONGEST + 1), "")
        for number, line in enumerate(lines, start=1):
            if len(line) > _LONGEST:
                raise DataError(
                    f"{path}, line {number} has more than {_LONGEST:,} characters; cut it"
                )
            yield line


def _check_column(path: Path, columns: Sequence[str], config: TextConfig) -> None:
    if config.text_column not in columns:
        raise DataError(
            f"{path} has no column {config.text_column!r}; its columns are {', '.join(columns)}: "
            f"set text.text_column"
        )


def sentences(text: str, config: TextConfig) -> list[str]:
    """Sentences of a cleaned document, lower-cased and with words set apart where asked for."""
    found = _split(text)
    if config.lowercase:
        found = [sentence.lower() for sentence in found]
    if config.split_words:
        found = [" ".join(_words(sentence)) for sentence in found]
    return [sentence for sentence in found if sentence]


def _words(sentence: str) -> list[str]:
    """Words and marks of a sentence. Vowel signs and accents that are characters of their own, as
    in Devanagari and Thai, are part of their word; the expression alone would part them.
    """
    if sentence.isascii():
        return _WORDS.findall(sentence)
    found, end = list[str](), -1
    for match in _WORDS.finditer(unicodedata.normalize("NFC", sentence)):
        word, is_next = match[0], match.start() == end
        end = match.end()
        after_sign = is_next and _is_sign(found[-1][-1]) and found[-1][0].isalnum()
        if (is_next and _is_sign(word)) or (after_sign and word[0].isalnum()):
            found[-1] += word
        else:
            found.append(word)
    return found


def _is_sign(character: str) -> bool:
    return len(character) == 1 and unicodedata.category(character)[0] == "M"


def _split(text: str) -> list[str]:
    """At the ends of sentences; where a text has capitals, what follows begins with no small
    letter.
    """
    has_capitals, found = text != text.lower(), list[list[str]]()
    for part in _SENTENCE_END.split(text):
        if has_capitals and found and part.lstrip(_OPENING)[:1].islower():
            found[-1].append(part)
        else:
            found.append([part])
    return [" ".join(parts).strip() for parts in found]


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is to be evaluated on: a function of its words, so that copies which
    differ in case or punctuation fall on one side.
    """
    digest = hashlib.sha256(normal_form(text).encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def packed(
    pieces: Sequence[Sequence[int]], before: int, after: int | None, config: TextConfig
) -> Iterator[list[int]]:
    """Rows of at most `max_length` tokens from the sentences of one document.

    With `after` (an encoder's separator) a row is `before`, whole sentences as long as they fit,
    `after`; without it (a generator) `before` stands before and after each sentence, once between
    two. A sentence is cut where it is longer than a row, or follows fewer than `min_length` tokens;
    a rest below that is dropped.
    """
    room = config.max_length - (0 if after is None else 2)
    row: list[int] = []

    def framed() -> list[int]:
        return row if after is None else [before, *row, after]

    for piece in pieces:
        rest, is_head = [*piece] if after is not None else [*piece, before], after is None
        done = 0
        while done < len(rest):
            if len(row) + len(rest) - done > room and len(row) >= config.min_length:
                yield framed()
                row = []
            if is_head and not row:
                row = [before]
            is_head = False
            taken = room - len(row)
            row = row + rest[done : done + taken]
            done += taken
            if len(row) == room:
                yield framed()
                row = []
    if len(row) >= config.min_length:
        yield framed()
