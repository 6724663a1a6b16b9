"""Ray Data: documents to packed rows of tokens, on all CPUs."""

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from sentisynth.config.pretrain import PretrainConfig, TextConfig
from sentisynth.data.documents import is_held_out, packed, read_documents, sentences
from sentisynth.data.storage import here
from sentisynth.errors import DataError
from sentisynth.models.loading import load_tokenizer
from sentisynth.training.rows import Rows

_CHARACTERS_A_TASK, _OF_A_DOCUMENT = 2**20, 200  # what a document costs, however short it is
_TEXT, _ROWS, _HELD_OUT, _EMPTY = "text", "rows", "held_out", "empty"
_PACKED = pa.schema(
    {_ROWS: pa.large_list(pa.large_list(pa.int32())), _HELD_OUT: pa.bool_(), _EMPTY: pa.bool_()}
)


def pack_corpus(config: PretrainConfig, tokenizer: Path) -> tuple[Rows, Rows, dict[str, int]]:
    """Rows to train on, rows to evaluate on, and numbers: documents, empty ones, ones that are too
    short, held out ones.

    The rows are in the order of the files, whatever the cluster. They are gathered here: some
    twelve bytes a token at the most. Raises DataError.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        batches = _documents(config.text).map_batches(
            partial(_pack, config=config, tokenizer=tokenizer),
            batch_format="pyarrow",
            batch_size=None,  # a block
        )
        found = list(batches.iter_batches(batch_format="pyarrow", batch_size=None))
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
    whole = pa.concat_tables(found)
    counts = {
        "documents": whole.num_rows,
        "empty": pc.sum(whole[_EMPTY]).as_py() or 0,
        "too_short": pc.sum(pc.equal(pc.list_value_length(whole[_ROWS]), 0)).as_py() or 0,
        "held_out": pc.sum(whole[_HELD_OUT]).as_py() or 0,
    }
    counts["too_short"] -= counts["empty"]  # which have no rows either
    return (
        _rows(whole.filter(pc.invert(whole[_HELD_OUT]))),
        _rows(whole.filter(whole[_HELD_OUT])),
        counts,
    )


def _documents(config: TextConfig) -> ray.data.Dataset:
    """Blocks of documents. They are read here: a corpus need not lie where other nodes see it, and
    tokenizer and rows have the same documents.
    """
    blocks = (ray.put(pa.table({_TEXT: block})) for block in _blocks(read_documents(config)))
    return ray.data.from_arrow_refs([*blocks])


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Documents of a task, by their size: a line may be a document, and so may be a book."""
    block, size = list[str](), 0
    for text in texts:
        block.append(text)
        size += len(text) + _OF_A_DOCUMENT
        if size > _CHARACTERS_A_TASK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _pack(documents: pa.Table, *, config: PretrainConfig, tokenizer: Path) -> pa.Table:
    """A row for each document: its rows of tokens."""
    pieces = load_tokenizer(here(tokenizer))
    before, after = pieces.cls_token_id, pieces.sep_token_id
    if config.kind == "generator":
        before, after = pieces.eos_token_id, None
    kept = documents[_TEXT].to_pylist()
    split = [sentences(text, config.text) for text in kept]
    flat = [sentence for found in split for sentence in found]
    # a text that spells a special token has none in it
    options = {"add_special_tokens": False, "split_special_tokens": True}
    ids = iter(pieces(flat, **options)["input_ids"] if flat else ())
    rows = [list(packed([next(ids) for _ in found], before, after, config.text)) for found in split]
    return pa.table(
        {
            _ROWS: rows,
            _HELD_OUT: [is_held_out(text, config.text.held_out) for text in kept],
            _EMPTY: [not text for text in kept],
        },
        schema=_PACKED,
    )


def _rows(documents: pa.Table) -> Rows:
    lists = documents[_ROWS].combine_chunks()
    if not len(lists):
        return Rows.of([], np.zeros(0, np.int64))
    rows = lists.flatten()
    lengths = rows.value_lengths().to_numpy().astype(np.int64)
    return Rows(
        ids=rows.flatten().to_numpy(),
        starts=np.concatenate(([0], np.cumsum(lengths))),
        labels=np.zeros(len(lengths), np.int64),
        weights=np.ones(len(lengths), np.float32),
    )


def check_rows(config: PretrainConfig, shown: Rows, held_out: Rows) -> None:
    """Raise DataError where there is too little to train or to evaluate on."""
    size = config.train.batch_size
    if len(shown) < size:
        raise DataError(
            f"the corpus {config.text.source} gives {len(shown)} rows of at most "
            f"{config.text.max_length} tokens, fewer than train.batch_size, which is {size}; give "
            f"more text, or lower train.batch_size"
        )
    if not len(held_out):
        raise DataError(
            f"text.held_out is {config.text.held_out:g}, and that leaves no document to evaluate "
            f"on; raise it"
        )
