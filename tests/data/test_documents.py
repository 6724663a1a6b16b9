import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentisynth.config.pretrain import TextConfig
from sentisynth.data.documents import (
    document_files,
    is_held_out,
    packed,
    read_documents,
    sentences,
)
from sentisynth.errors import DataError


def settings(source: object = "x.txt", **more: object) -> TextConfig:
    return TextConfig.model_validate({"source": str(source), **more})


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt"])
def test_documents_are_read_from_each_kind(tmp_path: Path, kind: str) -> None:
    texts = ["A  film.", "", "Two\tfilms!"]
    path = tmp_path / f"corpus.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": [*texts, None]}), path)
    elif kind == "jsonl":
        path.write_text("".join(f'{{"text": "{t.replace(chr(9), " ")}"}}\n' for t in texts))
    else:
        path.write_text("\n".join(texts))
    kept = [text for text in read_documents(settings(path)) if text]
    assert kept == ["A film.", "Two films!"]
    assert document_files(settings(tmp_path)) == [path]


def test_half_a_character_is_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "cut \\ud83d"}\n')
    assert list(read_documents(settings(path))) == ["cut \ufffd"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({}, "has no files; give one kind of .parquet, .jsonl, .txt"),
        ({"a.csv": "x"}, "has .csv; give one kind"),
        ({"a.txt": "x", "b.jsonl": "{}"}, "has .jsonl, .txt; give one kind"),
        ({"a.jsonl": '{"body": "x"}'}, "has no column 'text'; its columns are body"),
        ({"a.parquet": "no parquet"}, "a.parquet cannot be read as parquet"),
        ({"a.jsonl": "{"}, "a.jsonl, line 1 is not JSON"),
        ({"a.jsonl": "[1]"}, "a.jsonl, line 1 is no JSON object"),
        ({"a.jsonl": '{"text": 5}'}, "line 1: the text is '5', which is no text"),
        ({"a.txt": "\n \n"}, "all documents of .* are empty"),
        ({"corpus": "x"}, "has files without a suffix; give one kind"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_a_sentence(
    tmp_path: Path, made: dict[str, str], said: str
) -> None:
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        list(read_documents(settings(tmp_path)))


def test_sentences_are_split_lowered_and_set_apart() -> None:
    text = "It's good, but don't expect Dr. Who... \"Really?\" Yes."
    told = sentences(text, settings(split_words=True))
    assert told == [
        "it 's good , but do n't expect dr .",
        "who ...",
        '" really ? "',
        "yes .",
    ]
    assert sentences("It's A. Film", settings(lowercase=False)) == ["It's A.", "Film"]
    assert sentences("no capitals. none! at all", settings()) == ["no capitals.", "none!", "at all"]
    assert sentences("Кино. Ещё кино, e.g. это.", settings()) == ["кино.", "ещё кино, e.g. это."]
    assert sentences("好电影。很好！", settings()) == ["好电影。", "很好！"]
    assert sentences("the 'good' film", settings(split_words=True)) == ["the ' good ' film"]
    told = sentences(
        "A well-made, 90-minute film--not state-of-the-art - but.", settings(split_words=True)
    )
    assert told == ["a well-made , 90-minute film -- not state-of-the-art - but ."]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("हिन्दी फ़िल्म!", "हिन्दी फ़िल्म !"),
        ("ภาพยนตร์ดี, ดี", "ภาพยนตร์ดี , ดี"),
        ("cafe\u0301-cine\u0301ma, oui.", "café-cinéma , oui ."),
        ("great \u2764\ufe0fstuff", "great \u2764\ufe0f stuff"),
    ],
)
def test_signs_of_a_letter_stay_with_their_word(text: str, wanted: str) -> None:
    wanted = unicodedata.normalize("NFC", wanted)
    assert sentences(text, settings(split_words=True)) == [wanted]


def test_the_same_text_is_always_on_the_same_side() -> None:
    texts = [f"review {i}" for i in range(2000)]
    held = [is_held_out(text, 0.1) for text in texts]
    assert held == [is_held_out(text, 0.1) for text in texts]
    assert 150 < sum(held) < 250
    assert held == [is_held_out(f"Review, {i}!", 0.1) for i in range(2000)]


@pytest.mark.parametrize("n", [1, 7, 8, 9, 30, 100])
def test_rows_keep_order_length_and_every_token_of_long_documents(n: int) -> None:
    config = settings(max_length=16, min_length=4)
    pieces = [list(range(10, 10 + n)), list(range(500, 500 + n)), [1, 2, 3, 4, 5]]
    rows = list(packed(pieces, 7, 8, config))
    assert all(row[0] == 7 and row[-1] == 8 and 6 <= len(row) <= 16 for row in rows)
    inner = [token for row in rows for token in row[1:-1]]
    wanted = [token for piece in pieces for token in piece]
    assert inner == wanted[: len(inner)] and len(wanted) - len(inner) < 4


@pytest.mark.parametrize(
    ("pieces", "wanted"),
    [
        ([[1, 2, 3]], [[0, 1, 2, 3, 0]]),
        ([[1, 2, 3], [4, 5]], [[0, 1, 2, 3, 0, 4, 5, 0]]),
        ([[1, 2, 3], [4, 5, 6]], [[0, 1, 2, 3, 0], [0, 4, 5, 6, 0]]),
        ([[1] * 6, [2, 3, 4]], [[0, *[1] * 6, 0], [0, 2, 3, 4, 0]]),
        ([[1] * 7, [2, 3, 4]], [[0, *[1] * 7], [0, 2, 3, 4, 0]]),
        ([[1] * 10, [2] * 3], [[0, *[1] * 7], [1, 1, 1, 0, 2, 2, 2, 0]]),
    ],
)
def test_a_generators_rows_have_an_end_of_text_around_each_sentence(
    pieces: list[list[int]], wanted: list[list[int]]
) -> None:
    assert list(packed(pieces, 0, None, settings(max_length=8, min_length=3))) == wanted


def test_a_task_has_documents_by_their_size() -> None:
    from sentisynth.runtime.corpus import _blocks

    lines, books = ["a line"] * 30_000, ["a book" * 100_000] * 3
    found = [[*map(len, block)] for block in _blocks([*lines, *books])]
    assert [n for block in found for n in block] == [*map(len, [*lines, *books])]
    assert all(sum(block) < 2**21 for block in found) and max(map(len, found)) > 4000
    assert len(found) > 6
