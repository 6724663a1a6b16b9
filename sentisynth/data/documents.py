"""Unlabelled documents: where they lie, their words and sentences, and rows of tokens from them."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset

from sentisynth.config.pretrain import TextConfig
from sentisynth.data.text import clean
from sentisynth.errors import DataError

FORMATS = (".parquet", ".jsonl", ".txt")
# a word before "n't", a contraction, a word, three dots, or one mark
WORDS = r"\w+(?=n['’]t\b)|n['’]t\b|['’](?:s|d|m|re|ve|ll|S|D|M|RE|VE|LL)\b|\w+|\.\.\.|[^\w\s]"
_WORDS = re.compile(WORDS)
_SENTENCE_END = re.compile(r"(?:(?<=[.!?…])|(?<=[.!?…][\"')”»]))\s+|(?<=[。！？])")
_OPENING = "\"'(“«"


def document_files(config: TextConfig) -> list[Path]:
    """The files of a corpus, all of one kind, by name. Raises DataError."""
    path = Path(config.source).expanduser()
    if not path.exists():
        raise DataError(f"there is no corpus {config.source}; check text.source")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    kinds = sorted({p.suffix for p in files})
    if len(kinds) != 1 or kinds[0] not in FORMATS:
        told = ", ".join(kinds) or "no files"
        raise DataError(
            f"the corpus {config.source} has {told}; give one kind of {', '.join(FORMATS)}"
        )
    return files


def read_documents(config: TextConfig) -> Iterator[str]:
    """Cleaned texts of a corpus, in the order of its files, empty ones left out.

    Raises DataError where a file cannot be read or has no such column.
    """
    for path in document_files(config):
        try:
            for texts in _texts(path, config):
                yield from filter(None, (clean(text or "", lowercase=False) for text in texts))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from None


def _texts(path: Path, config: TextConfig) -> Iterator[Sequence[str | None]]:
    if path.suffix == ".txt":
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                yield [line]
        return
    kind = "parquet" if path.suffix == ".parquet" else "json"
    table = pa.dataset.dataset(path, format=kind)
    check_column(str(path), table.schema.names, config)
    for batch in table.to_batches(columns=[config.text_column], batch_size=1024):
        yield batch[config.text_column].cast(pa.string()).to_pylist()


def check_column(name: str, columns: Sequence[str], config: TextConfig) -> None:
    """Raise DataError unless the text's column is one of these."""
    if config.text_column not in columns:
        raise DataError(
            f"{name} has no column {config.text_column!r}; its columns are {', '.join(columns)}: "
            f"set text.text_column"
        )


def sentences(text: str, config: TextConfig) -> list[str]:
    """Sentences of a cleaned document, lower-cased and with words set apart where asked for."""
    found = _split(text)
    if config.lowercase:
        found = [sentence.lower() for sentence in found]
    if config.split_words:
        found = [" ".join(_WORDS.findall(sentence)) for sentence in found]
    return [sentence for sentence in found if sentence]


def _split(text: str) -> list[str]:
    """At the ends of sentences; where a text has capitals, what follows begins with no small
    letter.
    """
    has_capitals, found = text != text.lower(), [""]
    for part in _SENTENCE_END.split(text):
        if has_capitals and found[-1] and part.lstrip(_OPENING)[:1].islower():
            found[-1] += f" {part}"
        else:
            found.append(part)
    return found[1:]


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is to be evaluated on: a function of its text."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def packed(
    pieces: Sequence[Sequence[int]], before: int, after: int | None, config: TextConfig
) -> Iterator[list[int]]:
    """Rows of at most `max_length` tokens from the sentences of one document.

    With `after` (an encoder's separator) a row is `before`, whole sentences as long as they fit,
    `after`; without it (a generator) `before` stands at the head of each sentence. A sentence that
    fits no row is cut; a rest below `min_length` is dropped.
    """
    room = config.max_length - (0 if after is None else 2)
    row: list[int] = []

    def framed() -> list[int]:
        return row if after is None else [before, *row, after]

    for piece in pieces:
        rest = list(piece) if after is not None else [before, *piece]
        while rest:
            if len(row) + len(rest) > room and len(row) >= config.min_length:
                yield framed()
                row = []
            taken = room - len(row)
            row, rest = row + rest[:taken], rest[taken:]
            if len(row) == room:
                yield framed()
                row = []
    if len(row) >= config.min_length:
        yield framed()
