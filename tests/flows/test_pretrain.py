"""`sentisynth pretrain` from a corpus to a model, through the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentisynth.cli import main
from sentisynth.config.load import load_pretrain_config
from sentisynth.data.files import read_json, sha256_file, write_json
from sentisynth.flows.base_cards import base_model_card
from sentisynth.runtime.corpus import pack_corpus
from sentisynth.training.rows import Rows
from sentisynth.training.tokenizer import train_tokenizer
from tests.conftest import reviews

MINI = [
    "shape.layers=1",
    "shape.width=32",
    "shape.heads=2",
    "masked.shape.layers=1",
    "masked.shape.width=32",
    "masked.shape.heads=2",
    "tokenizer.vocab_size=600",
    "text.held_out=0.1",
    "train.batch_size=16",
    "train.eval_every=10",
    "train.precision=fp32",
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 402 documents in two files, two of them empty."""
    place = tmp_path_factory.mktemp("texts")
    found = reviews("train", 200)["text"].to_pylist()
    for i, part in enumerate((["", *found[:150]], [*found[150:], None])):
        pq.write_table(pa.table({"text": part}), place / f"part-{i}.parquet")
    return place


def command(kind: str, texts: Path, out: Path, *more: str) -> list[str]:
    recipe, steps = "reviews-generator-mini", ["train.steps=20"]
    if kind == "encoder":  # that of the most stages
        recipe, steps = "reviews-electra-mini", ["start.steps=10", "train.steps=20"]
    return [
        "pretrain",
        kind,
        recipe,
        f"text.source={texts}",
        *MINI,
        *steps,
        *more,
        "--out",
        str(out),
    ]


def test_a_card_does_not_guess_how_a_given_start_was_trained(tmp_path: Path) -> None:
    counts = dict.fromkeys(("corpus_tokens", "tokens_seen", "parameters", "steps"), 9)
    figures = {"seconds": 60, "hardware": "", "start_tokens_seen": 1000, "start_seconds": 3600}
    write_json(tmp_path / "metrics.json", {**counts, **figures})
    for start, told in (
        ("{model: runs/other/model}", "| start | 1,000 tokens, 1.00 hours |"),
        ("{objective: masked}", "| start | as a masked language model (15% masked): 1,000 tokens"),
    ):
        config = load_pretrain_config("reviews-electra-mini", [f"start={start}"])
        assert told in base_model_card(config, tmp_path)


def test_a_base_model_is_made_recorded_and_not_made_again(
    texts: Path, tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = command("encoder", texts, tmp_path / "run")
    assert main(wanted) == 0
    told = capsys.readouterr()
    assert "of 402 documents; left out: 2 empty, " in told.err
    assert "detection f1" in told.out
    model = tmp_path / "run" / "model"
    card = (model / "README.md").read_text()
    assert "as a causal language model: " in card
    assert "sentisynth pretrain encoder" in card and str(texts) not in card
    figures = read_json(tmp_path / "run" / "rows" / "metrics.json")
    rows = Rows.map(tmp_path / "run" / "rows" / "train.arrow")
    assert figures["tokens"] == rows.lengths.sum() and figures["empty"] == 2
    before = sha256_file(model / "model.safetensors")
    assert main(wanted) == 0
    assert capsys.readouterr().err.count("done before") == 5
    assert sha256_file(model / "model.safetensors") == before
    assert main(["check", str(tmp_path / "run")]) == 0
    assert main([*wanted, "masked.mask_rate=0.3"]) == 2
    assert "masked.mask_rate was 0.15, is now 0.3" in capsys.readouterr().err
    assert main(["run", "quickstart", "--out", str(tmp_path / "run")]) == 2
    assert "holds a pretraining; choose another directory" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "is of a pretraining, which has no report" in capsys.readouterr().err
    later = ("embeddings/embeddings.safetensors", "start/metrics.json")
    for file in later:
        (tmp_path / "run" / file).write_text("{}")
    assert main(["check", str(tmp_path / "run")]) == 1
    told = capsys.readouterr().out
    assert all(f"{file} was altered" in told for file in later)


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_rows_are_the_same_from_any_kind_of_file(
    suffix: str, texts: Path, tmp_path: Path, ray_session: None
) -> None:
    """Documents of a row are those of the Parquet files, in their order."""
    found = [t for p in sorted(texts.iterdir()) for t in pq.read_table(p)["text"].to_pylist()]
    path = tmp_path / f"corpus.{suffix}"
    lines = [t or "" if suffix == "txt" else json.dumps({"text": t}) for t in found]
    path.write_text("\n".join(lines) + "\n")
    rows = []
    for source in (texts, path):
        options = command("encoder", source, tmp_path)[3:-2]
        config = load_pretrain_config("reviews-electra-mini", options)
        if not rows:
            tokenizer = train_tokenizer(config, lambda: [text for text in found if text])
            tokenizer.save_pretrained(tmp_path / "tokenizer")
        rows.append(pack_corpus(config, tmp_path / "tokenizer"))
    for first, second in zip(rows[0][:2], rows[1][:2], strict=True):
        assert first.ids.tolist() == second.ids.tolist()
        assert first.starts.tolist() == second.starts.tolist()
    assert len(rows[0][0]) > 300 and len(rows[0][1]) > 10


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("encoder", ["train.batch_size=5000"], "fewer than train.batch_size, which is 5000"),
        ("encoder", ["text.held_out=1e-9"], "that leaves no document to evaluate on; raise it"),
        (
            "encoder",
            ["positions=512", "text.max_length=512", "text.min_length=510"],
            "gives 0 rows",
        ),
        (
            "encoder",
            ["tokenizer.model=package:reviews-encoder-mini", "shape.width=8192"],
            "the tokenizer has 8192 pieces; with embeddings=cooccurrence there must be more",
        ),
        ("encoder", ["tokenizer.vocab_size=50000"], "tokenizer.vocab_size is 50000; the corpus"),
        ("encoder", ["tokenizer.model=package:gpt2-mini"], "has no mask token"),
        ("encoder", ["text.source=nowhere.parquet"], "there is no corpus nowhere.parquet"),
        ("encoder", ["text.text_column=body"], "has no column 'body'; its columns are text"),
        (
            "generator",
            ["objective=masked"],
            "of kind 'generator' it must be causal",
        ),
        ("encoder", ["masked.judge=package:gpt2-mini"], "has a GPT2LMHeadModel; give the model of"),
        (
            "encoder",
            ["masked.judge=package:reviews-encoder-mini"],
            "was trained with objective=causal; give the model of",
        ),
        ("encoder", ["start.model=package:gpt2-mini"], "start.model: "),
        ("encoder", ["tokenizer.vocab_size=64", "shape.width=64"], "must be above the width"),
        ("encoder", ["objective=masked"], "start has no meaning with objective=masked"),
        (
            "encoder",
            ["objective=causal", "start=null", "masked.judge=x"],
            "masked.judge has no meaning with objective=causal",
        ),
        ("encoder", ["train.metric=macro_f1"], "metric is 'macro_f1', which has no meaning in a"),
        ("encoder", ["train.zero_stage=1"], "zero_stage is 1, which has no meaning in a"),
        ("encoder", ["text.min_length=64"], "min_length is 64; it must be at most max_length - 2"),
        ("encoder", ["shape.heads=3"], "the width must be a multiple"),
        ("encoder", ["train.engine=deepspeed"], "train.engine is 'deepspeed'; it must be 'torch'"),
        ("generator", ["text.max_length=256"], "text.max_length is 256; it must be at most"),
    ],
)
def test_a_mistake_is_one_sentence(
    kind: str,
    more: list[str],
    said: str,
    texts: Path,
    tmp_path: Path,
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(kind, texts, tmp_path / "run", *more)) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("sentisynth: ") and said in told


def test_a_corpus_of_empty_documents_is_a_sentence(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"text": ["", "  "]}), tmp_path / "none.parquet")
    assert main(command("encoder", tmp_path / "none.parquet", tmp_path / "run")) == 2
    assert "all documents of" in capsys.readouterr().err


def test_the_kind_must_be_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "generator", "reviews-encoder-mini"]) == 2
    assert "run `sentisynth pretrain encoder reviews-encoder-mini`" in capsys.readouterr().err


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["encoder", "generator"])
def test_a_killed_pretraining_ends_with_the_same_weights(
    kind: str, texts: Path, tmp_path: Path
) -> None:
    """The whole process group is killed in the middle, and the same command given again."""
    more = ["train.steps=200", "train.checkpoint_every=10"]
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    code = [sys.executable, "-m", "sentisynth.cli"]
    subprocess.run([*code, *command(kind, texts, calm, *more)], check=True)
    with subprocess.Popen(
        [*code, *command(kind, texts, killed, *more)], start_new_session=True
    ) as process:
        progress = killed / ".training" / "model" / "progress.json"
        until = time.monotonic() + 200
        while not progress.is_file() or read_json(progress)["step"] < 50:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (killed / "model").exists()
    subprocess.run([*code, *command(kind, texts, killed, *more)], check=True)
    for name in ("model.safetensors", "tokenizer.json"):
        assert sha256_file(calm / "model" / name) == sha256_file(killed / "model" / name)
