"""`sentisynth plan`: what is told before anything starts, and what is refused."""

from pathlib import Path

import pytest
import torch

from sentisynth.cli import main
from sentisynth.config.load import load_config
from sentisynth.config.types import TrainConfig
from sentisynth.errors import ConfigError, ModelError, SentisynthError
from sentisynth.flows.starts import check_starts
from sentisynth.models.classifier import load_classifier
from sentisynth.models.generator import add_adapters, freeze_lower_blocks, load_generator
from sentisynth.models.loading import resolve_config, save_model
from sentisynth.training.memory import Shape, footprint, shape_of

BILLION = 10**9
LARGE = Shape(
    parameters=7 * BILLION,
    trained=7 * BILLION,
    largest_block=BILLION // 5,
    layers=32,
    hidden=4096,
    vocabulary=0,
)


def train(**settings: object) -> TrainConfig:
    return TrainConfig.model_validate({"batch_size": 64, "workers": 64, **settings})


@pytest.mark.parametrize(("stage", "wanted"), [(0, 112.0), (1, 29.3), (2, 15.5), (3, 1.75)])
def test_the_model_states_are_those_of_the_zero_paper(stage: int, wanted: float) -> None:
    """16 bytes a parameter in all, 64 workers (figure 1 for 7.5 B parameters, here 7 B)."""
    need = footprint(LARGE, train(zero_stage=stage), 1, half=True)
    gathered = 2 * 2 * LARGE.largest_block if stage == 3 else 0
    found = need.weights + need.gradients + need.optimizer - gathered
    assert found / BILLION == pytest.approx(wanted, rel=0.01)


def test_what_is_offloaded_lies_in_the_nodes_memory() -> None:
    need = footprint(LARGE, train(zero_stage=2, offload="optimizer"), 1, half=True)
    assert need.optimizer == 0 and need.host == 12 * LARGE.trained // 64


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_sizes_are_those_of_the_model(tiny_gpt2: Path, lora_rank: int) -> None:
    model, _ = load_generator(str(tiny_gpt2), [])
    if lora_rank:
        model = add_adapters(model, lora_rank, [1])
        extra = model.get_input_embeddings().weight.shape[1]  # the trained row of a token
    else:
        freeze_lower_blocks(model, 1)
        extra = 0
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) - extra
    config = resolve_config(str(tiny_gpt2))
    shape = shape_of(config, "generator", frozen_blocks=1, lora_rank=lora_rank)
    assert (shape.trained, shape.layers, shape.hidden) == (trained, 3, 32)


def test_activations_are_about_what_torch_keeps(tiny_gpt2: Path) -> None:
    """Within a factor of two of what a forward pass in fp32 holds for the backward pass."""
    model, _ = load_generator(str(tiny_gpt2), [])
    ids = torch.randint(0, 8000, (8, 48))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = model(input_ids=ids).logits.float().logsumexp(-1).sum()
    assert loss.requires_grad
    shape = shape_of(resolve_config(str(tiny_gpt2)), "generator")
    config = TrainConfig(batch_size=8, engine="torch")
    assert 0.5 < footprint(shape, config, 48, half=False).activations / sum(kept.values()) < 2


def test_plan_of_a_cluster_that_is_not_at_hand_starts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    assert main(["plan", "quickstart", "--gpus", "2", "--gpu-memory", "80"]) == 0
    told = capsys.readouterr().out
    for part in ("memory of a training worker", "placement on 16 CPUs and 2 GPUs", "disk"):
        assert part in told
    assert "MLflow's copies of these" in told
    assert not list(tmp_path.iterdir())


def test_plan_refuses_what_cannot_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "quickstart", "--gpus", "1", "--gpu-memory", "1"]) == 2
    told = capsys.readouterr().err
    assert "training the teacher needs about 2.22 GiB in each worker, the GPU has 1.00" in told


def test_plan_refuses_more_workers_than_there_are_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "quickstart", "teacher.train.workers=4", "--gpus", "2"]) == 2
    assert "4 training workers with 1 GPUs each need 4 GPUs" in capsys.readouterr().err


@pytest.mark.parametrize("gpus", [[], ["--gpus", "0"]])
def test_plan_refuses_the_memory_of_no_gpus(
    gpus: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    assert main(["plan", "quickstart", "--gpu-memory", "40", *gpus]) == 2
    assert "--gpu-memory is 40, and of no GPUs; give --gpus N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("generator.frozen_blocks=99", "generator.frozen_blocks is 99; the model has 6 blocks"),
        ("student.train.deepspeed={optimizer: {type: Adam}}", "student: train.deepspeed has a sec"),
        ("teacher.train.deepspeed={gradient_clipping: 5}", "teacher: train.deepspeed.gradient_cl"),
        ("generator.train.deepspeed={bf16: true}", "generator: train.deepspeed.bf16 is True"),
        ("student.model=fresh:bert-huge", "there is no shape 'bert-huge'"),
        ("teacher.max_length=8000", "teacher.max_length is 8000"),
    ],
)
def test_plan_refuses_what_a_later_training_would_fail_at(
    capsys: pytest.CaptureFixture[str], override: str, told: str
) -> None:
    assert main(["plan", "quickstart", override, "--gpus", "0"]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("section", ["teacher", "student"])
def test_a_head_for_other_classes_is_known_before_anything_starts(
    section: str, tiny_bert: Path, tmp_path: Path
) -> None:
    save_model(*load_classifier(str(tiny_bert), ["a", "b", "c"]), tmp_path)
    config = load_config("quickstart", [f"{section}.model={tmp_path}"])
    with pytest.raises(SentisynthError, match="has a head for 3 classes, the data has 2"):
        check_starts(config, [section], resolve_config)
    check_starts(config, ["generator"], resolve_config)


def test_an_engine_that_does_not_run_the_generator_is_known_before_anything_starts(
    tiny_bert: Path,
) -> None:
    for asked, told in (
        ("engine=batch", r"engine=batch runs gpt2 models.*=transformers"),
        ("precision=int8", "precision=int8 is of the batch engine.*this bert model"),
    ):
        overrides = [f"generator.model={tiny_bert}", f"synthesis.{asked}"]
        with pytest.raises(ModelError, match=told):
            check_starts(load_config("quickstart", overrides), ["generator"], resolve_config)


def test_a_cpu_without_int8_is_known_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False)
    config = load_config("quickstart", ["synthesis.precision=int8"])
    with pytest.raises(ModelError, match="take another precision, or auto"):
        check_starts(config, ["generator"], resolve_config)


def test_what_hangs_on_the_device_is_left_to_the_workers() -> None:
    """A driver without a GPU does not know whether `auto` is bf16."""
    theirs = "teacher.train.deepspeed={bf16: {enabled: true}, fp16: {enabled: false}}"
    check_starts(load_config("quickstart", [theirs]), ["teacher"], resolve_config)
    config = load_config("quickstart", [theirs, "teacher.train.precision=fp32"])
    with pytest.raises(ConfigError, match="teacher: train.deepspeed.bf16.enabled is True"):
        check_starts(config, ["teacher"], resolve_config)
