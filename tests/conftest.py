"""Shared fixtures: real text, tiny real models, one Ray session, one finished run."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

RESOURCES = Path(__file__).parent.parent / "sentisynth" / "resources"
# A run of seconds on real text with the embedded models; quotas are within reach at this τ.
QUICK = [
    "data.n_seed=96",
    "teacher.train.epochs=4",
    "teacher.train.learning_rate=3e-4",
    "generator.train.epochs=1",
    "student.train.epochs=2",
    "synthesis.n_per_class=60",
    "synthesis.tau=0.5",
    "synthesis.unit_size=32",
    "synthesis.max_candidates_per_class=640",
    "synthesis.sampling.max_new_tokens=24",
]


def reviews(split: str, n: int) -> pa.Table:
    """The first n rows of each class of the embedded Rotten Tomatoes."""
    table = pq.read_table(RESOURCES / "rotten_tomatoes" / f"{split}.parquet")
    parts = [table.filter(pa.compute.equal(table["label"], k)).slice(0, n) for k in (0, 1)]
    return pa.concat_tables(parts).select(["text", "label"])


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train, validation and test of 120, 40 and 40 real rows as Parquet files."""
    path = tmp_path_factory.mktemp("data")
    for split, n in (("train", 60), ("validation", 20), ("test", 20)):
        pq.write_table(reviews(split, n), path / f"{split}.parquet")
    return path


@pytest.fixture(scope="session")
def quick_overrides(small_data: Path) -> list[str]:
    files = [
        f"data.{k}={small_data / f}.parquet" for k, f in (("source", "train"), ("test", "test"))
    ]
    return [*QUICK, *files, f"data.validation={small_data / 'validation.parquet'}"]


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    from sentisynth.runtime.ray_cluster import connected

    with connected():
        yield


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The URI of an empty bucket."""
    from moto.server import ThreadedMotoServer

    from sentisynth.data.storage import location

    settings = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = {name: os.environ.get(name) for name in (*settings, "AWS_ENDPOINT_URL")}
    os.environ.update(settings, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    try:
        location("s3://runs").mkdir()
        yield "s3://runs"
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained GPT-2 of 2 blocks with the embedded tokenizer."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny-gpt2")
    tokenizer = AutoTokenizer.from_pretrained(RESOURCES / "gpt2-mini")
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=32,
        n_layer=3,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained BERT of 2 blocks, without a classification head, with a wordpiece tokenizer."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny-bert")
    words = BertWordPieceTokenizer()
    texts = reviews("train", 200)["text"].to_pylist()
    words.train_from_iterator(texts, vocab_size=500, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=words._tokenizer)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=64, **sizes)
    BertModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, quick_overrides: list[str], ray_session: None
) -> Path:
    """A whole pipeline on the quick settings, through the command line."""
    from sentisynth.cli import main

    out = tmp_path_factory.mktemp("runs") / "quick"
    assert main(["run", "quickstart", *quick_overrides, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to damage or to go on with."""
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))
