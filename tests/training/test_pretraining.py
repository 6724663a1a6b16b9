"""Pretraining without Ray: what is learned, measured, saved, and gone on with."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from sentisynth.config.pretrain import PretrainConfig
from sentisynth.data.documents import packed, sentences
from sentisynth.data.files import read_json
from sentisynth.errors import ModelError
from sentisynth.models.loading import load_tokenizer
from sentisynth.training.beginnings import EMBEDDINGS, embed, put_embeddings, start_from
from sentisynth.training.engine import TorchEngine
from sentisynth.training.loop import take_step
from sentisynth.training.pretraining import (
    HELD_OUT,
    TRAIN,
    TokenTask,
    pretrain,
    pretraining_task,
)
from sentisynth.training.rows import Rows
from sentisynth.training.tasks import LanguageModelTask
from sentisynth.training.tokenizer import train_tokenizer
from tests.conftest import reviews

TINY = {"layers": 1, "width": 32, "heads": 2}


def settings(kind: str = "encoder", **more: Any) -> PretrainConfig:
    values = {
        "name": "x",
        "kind": kind,
        "seed": 5,
        "text": {"source": "x.txt", "max_length": 32},
        "tokenizer": {"vocab_size": 500},
        "shape": TINY,
        "masked": {"shape": TINY, "learning_rate": 3e-3, **more.pop("masked", {})},
        "train": {
            "steps": 12,
            "batch_size": 8,
            "learning_rate": 3e-3,
            "eval_every": 6,
            "precision": "fp32",
            **more.pop("train", {}),
        },
    }
    return PretrainConfig.model_validate({**values, **more})


@pytest.fixture(scope="module", params=["encoder", "generator"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared("encoder", tmp_path_factory.mktemp("encoder"))


def prepared(kind: str, place: Path) -> Path:
    """A tokenizer and rows, as the first two stages leave them."""
    config = settings(kind)
    texts = reviews("train", 120)["text"].to_pylist()
    tokenizer = train_tokenizer(config, lambda: texts)
    tokenizer.save_pretrained(place / "tokenizer")
    first, last = (tokenizer.eos_token_id, None)
    if kind == "encoder":
        first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    rows: dict[str, list[list[int]]] = {TRAIN: [], HELD_OUT: []}
    for i, text in enumerate(texts):
        ids = tokenizer(sentences(text, config.text), add_special_tokens=False)["input_ids"]
        rows[TRAIN if i % 6 else HELD_OUT] += packed(ids, first, last, config.text)
    for name, found in rows.items():
        Rows.of(found, np.zeros(len(found), np.int64)).save(place / name)
    (place / "kind").write_text(kind)
    return place


def run(config: PretrainConfig, place: Path, out: Path, work: Path, report: Any = None) -> Path:
    out.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    told = report or (lambda _: None)
    pretrain(config, place / "tokenizer", place, out=out, work=work, report=told)
    return out


def test_the_model_is_saved_as_transformers_loads_it(either: Path, tmp_path: Path) -> None:
    kind = (either / "kind").read_text()
    out = run(settings(kind), either, tmp_path / "out", tmp_path / "work")
    loader = AutoModel if kind == "encoder" else AutoModelForCausalLM
    model, told = loader.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    figures = read_json(out / "metrics.json")
    assert figures["parameters"] == sum(p.numel() for p in model.parameters())
    assert load_file(out / "model.safetensors").popitem()[1].dtype == torch.float16
    if kind == "encoder":
        assert model.config.hidden_dropout_prob == 0.1
        assert {"masked_loss", "detection_loss", "detection_f1", "replaced"} <= figures.keys()
        AutoModelForMaskedLM.from_pretrained(out / "masked")
    else:
        assert figures["perplexity"] < 500


@pytest.mark.parametrize("objective", ["replaced", "masked", "causal"])
def test_the_shape_is_that_of_what_is_trained(
    encoder: Path, tmp_path: Path, objective: str
) -> None:
    shape = {"layers": 2, "width": 48, "heads": 3}
    config = settings(objective=objective, shape=shape, train={"steps": 1, "eval_every": 1})
    made = AutoConfig.from_pretrained(run(config, encoder, tmp_path / "out", tmp_path / "work"))
    assert (made.num_hidden_layers, made.hidden_size, made.num_attention_heads) == (2, 48, 3)
    proposer = {"shape": {"layers": 1, "width": 64, "heads": 2}}
    wider = settings(objective=objective, shape=shape, masked=proposer)
    assert wider.table_width == (64 if objective == "replaced" else 48)


@pytest.mark.parametrize("optimizer", ["decoupled", "coupled"])
def test_a_stopped_pretraining_ends_with_the_same_weights(
    encoder: Path, tmp_path: Path, optimizer: str
) -> None:
    config = settings(optimizer=optimizer, train={"checkpoint_every": 4})
    calm = run(config, encoder, tmp_path / "calm", tmp_path / "work-1")

    def stop(entry: dict[str, Any]) -> None:
        if entry["step"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, encoder, tmp_path / "stopped", tmp_path / "work-2", stop)
    stopped = run(config, encoder, tmp_path / "stopped", tmp_path / "work-2")
    for name in ("model.safetensors", "masked/model.safetensors"):
        assert (calm / name).read_bytes() == (stopped / name).read_bytes()
    first, second = (read_json(p / "metrics.json") for p in (calm, stopped))
    assert first["evaluations"] == second["evaluations"]


def test_both_learn(encoder: Path, tmp_path: Path) -> None:
    config = settings(train={"steps": 60, "eval_every": 4})
    out = run(config, encoder, tmp_path / "out", tmp_path / "work")
    first, *_, last = read_json(out / "metrics.json")["evaluations"]
    assert last["masked_loss"] < first["masked_loss"] - 0.2
    assert last["detection_loss"] < first["detection_loss"]


def test_evaluations_are_the_same_each_time_and_disturb_nothing(encoder: Path) -> None:
    config = settings()
    rows = [Rows.map(encoder / name) for name in (TRAIN, HELD_OUT)]
    task = pretraining_task(config, load_tokenizer(encoder / "tokenizer"), *rows)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second = (task.evaluate(task.model, None) for _ in range(2))
    assert first == second
    assert torch.random.get_rng_state().equal(before)


def test_a_judge_is_the_same_for_all_it_judges(encoder: Path, tmp_path: Path) -> None:
    """Its replacements do not depend on the masked model that an encoder is trained with."""
    alone = run(
        settings(objective="masked", train={"steps": 40}), encoder, tmp_path / "j", tmp_path / "w"
    )
    assert "detection_f1" not in read_json(alone / "metrics.json")
    shares = []
    for rate in (3e-3, 1e-6):
        config = settings(masked={"judge": str(alone), "learning_rate": rate})
        name = f"out-{rate}"
        figures = read_json(
            run(config, encoder, tmp_path / name, tmp_path / f"work-{rate}") / "metrics.json"
        )
        shares.append(figures["judged_replaced"])
        assert 0 <= figures["judged_detection_f1"] <= 1
    assert shares[0] == shares[1]


def test_a_judge_of_another_kind_or_tokenizer_is_a_sentence(
    encoder: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    judge = run(
        settings(objective="masked", train={"steps": 2}), encoder, tmp_path / "j", tmp_path / "w"
    )
    other = reviews("test", 200)["text"].to_pylist()
    train_tokenizer(settings(), lambda: other).save_pretrained(judge)
    one_way = run(
        settings(objective="causal", train={"steps": 2}), encoder, tmp_path / "c", tmp_path / "v"
    )
    for path, said in (
        (judge, "tokenizer in .* is another one"),
        (tiny_bert, "has a BertModel"),
        (one_way, "was trained with objective=causal"),
    ):
        config = settings(masked={"judge": str(path)})
        with pytest.raises(ModelError, match=f"masked.judge: .*{said}"):
            run(config, encoder, tmp_path / "out", tmp_path / "work")


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_an_encoder_starts_from_a_language_model(
    objective: str, encoder: Path, tmp_path: Path
) -> None:
    """All of its weights but those of the head; where embeddings are shared, G's are those too."""
    first = settings(objective=objective, weights="fp32")
    start = run(first, encoder, tmp_path / "s", tmp_path / "w")
    wanted = load_file(start / "model.safetensors")
    rows = [Rows.map(encoder / name) for name in (TRAIN, HELD_OUT)]
    pieces = load_tokenizer(encoder / "tokenizer")
    for optimizer in ("decoupled", "coupled"):
        config = settings(optimizer=optimizer, start={"model": str(start)})
        model = pretraining_task(config, pieces, *rows).model
        begun = model.masked.get_input_embeddings().weight.clone()
        start_from(model, start, config, pieces)
        found = model.detector.encoder.state_dict()
        assert all(wanted[f"deberta.{name}"].equal(value) for name, value in found.items())
        is_same = model.masked.get_input_embeddings().weight.equal(begun)
        assert is_same == (optimizer == "decoupled")
    made = run(config, encoder, tmp_path / "out", tmp_path / "work")
    tokens = read_json(start / "metrics.json")["tokens_seen"]
    assert read_json(made / "metrics.json")["start_tokens_seen"] == tokens
    wider = settings(start={"model": str(start)}, shape={**TINY, "layers": 2})
    with pytest.raises(ModelError, match="start.model: .* has num_hidden_layers=1, the encoder 2"):
        run(wider, encoder, tmp_path / "other", tmp_path / "work-2")


def test_one_way_no_token_tells_of_those_that_follow(encoder: Path) -> None:
    """Nor does padding change what stands before it; both ways, all of them tell."""
    config = settings(objective="causal", shape={**TINY, "layers": 2})
    rows = [Rows.map(encoder / name) for name in (TRAIN, HELD_OUT)]
    model = pretraining_task(config, load_tokenizer(encoder / "tokenizer"), *rows).model.eval()
    ids = torch.randint(5, 400, (2, 12))
    other, mask = ids.clone(), torch.ones_like(ids)
    other[:, 7:] = torch.randint(5, 400, (2, 5))
    padded = torch.cat([mask, 0 * mask[:, :3]], 1)
    with torch.no_grad():
        found, changed = (model(input_ids=x, attention_mask=mask).logits for x in (ids, other))
        longer = model(input_ids=torch.cat([ids, 0 * ids[:, :3]], 1), attention_mask=padded).logits
        open_, open_changed = (
            model.masked(input_ids=x, attention_mask=mask).logits for x in (ids, other)
        )
    torch.testing.assert_close(found[:, :7], changed[:, :7])
    torch.testing.assert_close(longer[:, :12], found)
    assert not found[:, 7].allclose(changed[:, 7])
    assert not open_[:, 0].allclose(open_changed[:, 0], atol=1e-4)


@pytest.mark.parametrize("kind", ["encoder", "generator"])
def test_all_tables_begin_with_the_neighbours(
    kind: str, tmp_path: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = encoder
    if kind == "generator":
        place = prepared(kind, tmp_path_factory.mktemp(kind))
    config = settings(kind, embeddings="cooccurrence")
    rows = [Rows.map(place / name) for name in (TRAIN, HELD_OUT)]
    pieces = load_tokenizer(place / "tokenizer")
    embed(config, place / "tokenizer", place / TRAIN, tmp_path)
    table = load_file(tmp_path / EMBEDDINGS)["embeddings"]
    known = table.ne(0).any(dim=1)
    assert known.sum() > 100 and not known[pieces.all_special_ids].any()
    task = pretraining_task(config, pieces, *rows)
    tables = [task.model] if kind == "generator" else [task.model.masked]
    tables += [] if kind == "generator" else [task.model.detector.encoder]
    before = [part.get_input_embeddings().weight.clone() for part in tables]
    put_embeddings(task.model, tmp_path / EMBEDDINGS)
    for part, old in zip(tables, before, strict=True):
        new = part.get_input_embeddings().weight
        assert new[~known].equal(old[~known])
        assert new[known].std().item() == pytest.approx(0.02, rel=1e-3)
        assert torch.corrcoef(torch.stack([new[known].ravel(), table[known].ravel()]))[0, 1] > 0.999
    begun = tmp_path / "begun"
    begun.mkdir()
    (tmp_path / EMBEDDINGS).rename(begun / EMBEDDINGS)
    (tmp_path / "out").mkdir()
    (tmp_path / "work").mkdir()
    made, work = tmp_path / "out", tmp_path / "work"
    pretrain(config, place / "tokenizer", place, begun, out=made, work=work, report=lambda _: None)
    assert (made / "model.safetensors").is_file()


def worker(rank: int, place: Path, out: Path) -> None:
    """One of two workers."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    config = settings(train={"workers": 2, "batch_size": 7})  # no multiple: one gets a filler
    run(config, place, out, out)
    dist.destroy_process_group()


def test_two_workers_share_batches_and_evaluations(encoder: Path, tmp_path: Path) -> None:
    """Masks are drawn by each worker, so the curve is not that of one worker, but much like it."""
    out = tmp_path / "two"
    out.mkdir()
    mp.start_processes(worker, (encoder, out), nprocs=2, start_method="spawn")
    figures = read_json(out / "metrics.json")
    alone = read_json(
        run(settings(train={"batch_size": 7}), encoder, tmp_path / "one", tmp_path / "work")
        / "metrics.json"
    )
    assert figures["steps"] == alone["steps"] and figures["tokens_seen"] == alone["tokens_seen"]
    for key in ("masked_loss", "detection_loss"):
        assert figures[key] == pytest.approx(alone[key], rel=0.05)


def test_special_tokens_are_never_masked(encoder: Path) -> None:
    """Unknown pieces, too, which stand inside a row."""
    tokenizer = load_tokenizer(encoder / "tokenizer")
    first, last, unknown = (getattr(tokenizer, f"{x}_token_id") for x in ("cls", "sep", "unk"))
    rows = Rows.of([[first, unknown, 7, unknown, 8, last], [first, *[unknown] * 4, last]], [0, 0])
    task = pretraining_task(settings(), tokenizer, rows, rows)
    for seed in range(20):
        torch.manual_seed(seed)
        found = task._masked(rows, np.array([0, 1]), 0.9).chosen_BS
        assert found.tolist() == [[False, False, True, False, True, False], [False] * 6]


def test_figures_that_are_no_numbers_end_a_training(
    either: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else weights that nothing chose would be the model."""
    kind = (either / "kind").read_text()
    task = TokenTask if kind == "encoder" else LanguageModelTask
    evaluate = task.evaluate

    def broken(*arguments: Any) -> dict[str, float]:
        return dict.fromkeys(evaluate(*arguments), float("nan"))

    monkeypatch.setattr(task, "evaluate", broken)
    with pytest.raises(ModelError, match="no number.* lower train.learning_rate"):
        run(settings(kind), either, tmp_path / "out", tmp_path / "work")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_activations_may_be_computed_again(encoder: Path, tmp_path: Path) -> None:
    rows = [Rows.map(encoder / name) for name in (TRAIN, HELD_OUT)]
    task = pretraining_task(settings(), load_tokenizer(encoder / "tokenizer"), *rows)
    task.model.gradient_checkpointing_enable({"use_reentrant": False})
    inner = [task.model.masked.deberta, task.model.detector.encoder]
    assert all(part.is_gradient_checkpointing for part in inner)
    weights = []
    for again in (False, True):
        config = settings(train={"gradient_checkpointing": again})
        out = run(config, encoder, tmp_path / f"out-{again}", tmp_path / f"work-{again}")
        weights.append(load_file(out / "model.safetensors"))
    for key, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][key], atol=2e-3, rtol=0)


def test_each_part_moves_at_its_own_rate(encoder: Path) -> None:
    """AdamW's first step is as long as the rate, whatever the gradient."""
    config = settings(train={"learning_rate": 1e-3, "weight_decay": 0.0})
    rows = [Rows.map(encoder / name) for name in (TRAIN, HELD_OUT)]
    task = pretraining_task(config, load_tokenizer(encoder / "tokenizer"), *rows)
    engine = TorchEngine(task.model, config.train, 0, 1)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    torch.manual_seed(0)
    take_step(engine, task, [np.arange(8)], task.weight(np.arange(8)), 1e-3)
    moved = {
        name: (p - before[name]).abs().max().item() for name, p in task.model.named_parameters()
    }
    masked = max(step for name, step in moved.items() if name.startswith("masked."))
    detector = max(step for name, step in moved.items() if name.startswith("detector."))
    assert masked == pytest.approx(3e-3, rel=0.01) and detector == pytest.approx(1e-3, rel=0.01)
