"""A base model from unlabelled text: tokenizer, packed rows, training; each is a stage."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sentisynth.config.pretrain import PretrainConfig
from sentisynth.data.documents import document_files, read_documents, sentences
from sentisynth.data.files import read_json, sha256_file, write_json
from sentisynth.errors import DataError, ModelError
from sentisynth.flows.base_cards import base_model_card
from sentisynth.flows.console import Console
from sentisynth.flows.session import Workplace, workplace
from sentisynth.flows.training import shared_workers, train_on_ray
from sentisynth.models.loading import load_tokenizer, model_digest, resolve_model
from sentisynth.runtime.corpus import check_rows, pack_corpus
from sentisynth.runtime.tracking import StageLog
from sentisynth.runtime.train import KeptGroup
from sentisynth.seeding import fingerprint
from sentisynth.training.beginnings import check_masked_model, check_start, embed
from sentisynth.training.pretraining import HELD_OUT, TRAIN, pretrain
from sentisynth.training.rows import Rows
from sentisynth.training.tokenizer import train_tokenizer

_CODE_VERSION = 2  # raise it when the same parts would give other bytes
_WORDS_VERSION = 3  # the same of words that are set apart
_LENGTHS = frozenset({"max_length", "min_length", "held_out"})  # a tokenizer does not ask
_OF_PLACEMENT = {"gpus_per_worker", "checkpoint_every", "max_restarts", "epochs"}


def run_pretrain(
    config: PretrainConfig, out: Path, console: Console, *, overwrite: bool = False
) -> None:
    """Make the base model in `out`/model. What was done before is not done again."""
    root = Path(os.path.expanduser(config.text.source))
    files = document_files(config.text)
    names = [path.relative_to(root).as_posix() if root.is_dir() else path.name for path in files]
    try:
        digests = {name: sha256_file(path) for name, path in zip(names, files, strict=True)}
    except OSError as error:
        raise DataError(f"the corpus {config.text.source} cannot be read: {error}") from None
    if config.tokenizer.model is not None:
        resolve_model(config.tokenizer.model)
    if config.masked.judge is not None:
        check_masked_model(resolve_model(config.masked.judge), "masked.judge")
    if config.start is not None and config.start.model is not None:
        check_start(resolve_model(config.start.model), config)
    with workplace(config, out, console, overwrite=overwrite) as place:
        _make_tokenizer(place, config, digests)
        _pack(place, config, digests)
        inputs, number = ["tokenizer", "rows"], 3
        if config.embeddings == "cooccurrence":
            _embed(place, config)
            inputs, number = [*inputs, "embeddings"], number + 1
        with shared_workers(place) as workers:
            if config.first is not None:
                _train(place, config.first, "start", number, inputs, workers)
                inputs, number = [*inputs, "start"], number + 1
            _train(place, config, "model", number, inputs, workers)
        _show(place, config)


def _make_tokenizer(place: Workplace, config: PretrainConfig, digests: dict[str, str]) -> None:
    given = config.tokenizer.model
    parts: dict[str, Any] = {"code": _CODE_VERSION, "kind": config.kind}
    if given is not None:
        parts["model"] = model_digest(resolve_model(given))
    else:
        parts |= {
            "corpus": digests,
            "text": _text_parts(config, _LENGTHS),
            "positions": config.positions,
            "tokenizer": config.tokenizer.model_dump(mode="json"),
        }

    def build(out: Path, log: StageLog) -> None:
        if given is not None:
            tokenizer = load_tokenizer(resolve_model(given))
        else:
            tokenizer = train_tokenizer(config, partial(_texts, config))
        _check_special(config, tokenizer)
        tokenizer.save_pretrained(out)
        log.metrics({"pieces": len(tokenizer)})

    what = "of " + given if given is not None else f"of {config.tokenizer.vocab_size:,} pieces"
    place.do("tokenizer", f"1  tokenizer {what}", parts, build)


def _texts(config: PretrainConfig) -> Iterator[str]:
    for document in read_documents(config.text):
        yield from sentences(document, config.text)


def _check_special(config: PretrainConfig, tokenizer: Any) -> None:
    wanted = {
        "mask": tokenizer.mask_token,
        "first": tokenizer.cls_token,
        "separator": tokenizer.sep_token,
    }
    if config.kind == "generator":
        wanted = {"end-of-text": tokenizer.eos_token}
    for name, token in wanted.items():
        if token is None:
            raise ModelError(
                f"the tokenizer of {config.tokenizer.model} has no {name} token, which a model of "
                f"kind {config.kind!r} needs; leave tokenizer.model out to train one"
            )


def _pack(place: Workplace, config: PretrainConfig, digests: dict[str, str]) -> None:
    tokenizer = place.directory.shared("tokenizer")
    parts = {
        "code": _CODE_VERSION,
        "corpus": digests,
        "text": _text_parts(config),
        "tokenizer": fingerprint(place.directory.read_stamp("tokenizer")),
    }

    def build(out: Path, log: StageLog) -> None:
        shown, held_out, counts = pack_corpus(config, tokenizer)
        check_rows(config, shown, held_out)
        source = Path(config.text.source)
        log.dataset(source.name, source, fingerprint(digests), counts["documents"])
        shown.save(out / TRAIN)
        held_out.save(out / HELD_OUT)
        figures = {
            **counts,
            "rows": len(shown),
            "tokens": int(shown.lengths.sum()),
            "held_out_tokens": int(held_out.lengths.sum()),
        }
        write_json(out / "metrics.json", figures)
        log.metrics(figures)

    title = f"2  rows of at most {config.text.max_length} tokens"
    place.do("rows", title, parts, build, is_artifact=False)
    rows = place.directory.stage("rows")
    check_rows(config, Rows.map(rows / TRAIN), Rows.map(rows / HELD_OUT))  # the batch may be larger
    figures = read_json(rows / "metrics.json")
    place.console.note(
        f"   {figures['tokens']:,} tokens in {figures['rows']:,} rows of {figures['documents']:,} "
        f"documents; left out: {figures['empty']:,} empty, {figures['too_short']:,} shorter than "
        f"text.min_length; {figures['held_out']:,} are held out"
    )


def _embed(place: Workplace, config: PretrainConfig) -> None:
    width = config.table_width
    parts = {
        "code": _CODE_VERSION,
        "seed": config.seed,
        "rows": fingerprint(place.directory.read_stamp("rows")),
        "width": width,
    }
    tokenizer, rows = (place.directory.stage(name) for name in ("tokenizer", "rows"))

    def build(out: Path, log: StageLog) -> None:
        del log
        embed(config, tokenizer, rows / TRAIN, out)

    title = f"3  embeddings of {width}, from which pieces stand near which"
    place.do("embeddings", title, parts, build, is_artifact=False)


def _train(
    place: Workplace,
    config: PretrainConfig,
    name: str,
    number: int,
    inputs: list[str],
    workers: KeptGroup,
) -> None:
    values = config.model_dump(mode="json", exclude={"train": _OF_PLACEMENT})
    for key in ("name", "description", "tracking", "cluster", "text", "tokenizer"):
        del values[key]
    if config.masked.judge is not None:
        values["masked"]["judge"] = model_digest(resolve_model(config.masked.judge))
    if config.start is not None and config.start.model is not None:
        values["start"] = {"model": model_digest(resolve_model(config.start.model))}
    elif config.start is not None:
        values["start"] = fingerprint(place.directory.read_stamp("start"))
    if config.embeddings == "cooccurrence":
        values["embeddings"] = fingerprint(place.directory.read_stamp("embeddings"))
    objective, shape = config.chosen_objective, config.shape
    if config.kind == "encoder" and objective != "replaced":
        for key in ("optimizer", "coupling"):  # of an encoder that detects
            del values[key]
        rate = {"mask_rate": values["masked"]["mask_rate"]}
        values["masked"] = rate if objective == "masked" else None
    parts = {
        "code": _CODE_VERSION,
        "rows": fingerprint(place.directory.read_stamp("rows")),
        **values,
    }
    what = {
        "replaced": f"encoder, {config.optimizer}",
        "masked": "masked language model",
        "causal": "causal language model",
    }[objective]
    train_on_ray(
        place,
        name,
        f"{number}  {what}: {shape.layers} layers of {shape.width}",
        parts,
        config.train,
        partial(pretrain, config),
        inputs,
        partial(base_model_card, config),
        workers,
    )


def _text_parts(config: PretrainConfig, besides: frozenset[str] = frozenset()) -> dict[str, Any]:
    found = config.text.model_dump(mode="json", exclude={"source", *besides})
    return found | ({"words": _WORDS_VERSION} if config.text.split_words else {})


def _show(place: Workplace, config: PretrainConfig) -> None:
    model = place.directory.stage("model")
    figures = read_json(model / "metrics.json")
    names = {
        "parameters": "{:,}",
        "tokens_seen": "{:,}",
        "masked_loss": "{:.3f}",
        "detection_loss": "{:.4f}",
        "detection_f1": "{:.3f}",
        "detection_ap": "{:.3f}",
        "judged_detection_f1": "{:.3f}",
        "judged_detection_ap": "{:.3f}",
        "validation_loss": "{:.3f}",
        "perplexity": "{:.1f}",
        "seconds": "{:.0f}",
    }
    rows = [[k.replace("_", " "), f.format(figures[k])] for k, f in names.items() if k in figures]
    place.console.table(f"{config.name} on held-out documents", ["figure", "value"], rows)
    place.console.result(f"model    {model}")
