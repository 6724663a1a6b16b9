"""What a recipe will need, told before anything starts: memory by part, disk, placement."""

import os

from sentisynth.config.types import RunConfig, TrainConfig
from sentisynth.errors import ConfigError, PlacementError
from sentisynth.flows.console import Console
from sentisynth.flows.starts import check_starts
from sentisynth.models.classifier import (
    FRESH,
    first_layers,
    fresh_config,
    starts_from_teacher,
)
from sentisynth.models.devices import DeviceFacts, device_facts
from sentisynth.models.loading import resolve_config
from sentisynth.runtime.placement import (
    Placement,
    PoolPlacement,
    Resources,
    place_stream,
    place_training,
)
from sentisynth.runtime.ray_cluster import cluster_resources, connected, facts_of_an_actor
from sentisynth.training.jobs import ARMS
from sentisynth.training.memory import RUNTIME_BYTES, Footprint, Shape, footprint, shape_of

_GIB = 2**30
_ROW_BYTES = 200  # of a candidate in the pool's compressed files
_USUAL_ACCEPTANCE = 0.4
_CPUS_A_GPU = 8
_LONGEST_S = 30.0  # that all GPUs may be taken


def plan(config: RunConfig, console: Console, gpus: int | None, gpu_memory: float | None) -> None:
    """Print what `run` would need, for the cluster at hand or for `gpus` of `gpu_memory` GiB.

    Nothing is loaded but the models' configurations. Raises PlacementError for what cannot fit,
    and as `check_starts` does; ConfigError for the memory of GPUs that are not given.
    """
    if gpu_memory is not None and not gpus:
        raise ConfigError(f"--gpu-memory is {gpu_memory:g}, and of no GPUs; give --gpus N with it")
    check_starts(config, ("teacher", "generator", "student"), resolve_config)
    if gpus is not None:
        given = Resources(node_cpus=(float(max(gpus, 1) * _CPUS_A_GPU),), node_gpus=(float(gpus),))
        memory = int((gpu_memory or 80) * _GIB) if gpus else device_facts().memory
        kind = "cuda" if gpus else "cpu"
        facts = DeviceFacts(kind=kind, name="", memory=memory, precision="bf16")
        _tell(config, console, given, facts)
        return
    with connected():
        resources = cluster_resources()
        actor = PoolPlacement(
            min_actors=1, max_actors=1, cpus=0.1, gpus=0.01 if resources.gpus else 0.0
        )
        try:
            facts = facts_of_an_actor(actor, _LONGEST_S, console.note)
        except PlacementError as error:
            raise PlacementError(f"{error}; or give --gpus and --gpu-memory") from None
        _tell(config, console, resources, facts)


def _tell(config: RunConfig, console: Console, resources: Resources, facts: DeviceFacts) -> None:
    stream = place_stream(config.synthesis, resources)
    shapes = _shapes(config)
    needs = {name: _footprint(config, name, shape, facts) for name, shape in shapes.items()}
    console.table(
        f"{config.name}: memory of a training worker, estimated, in GiB",
        [
            "training",
            "params",
            "trained",
            "weights",
            "grads",
            "optim.",
            "activ.",
            "all",
            "host",
        ],
        [_memory_row(name, shapes[name], need) for name, need in needs.items()],
    )
    console.table(
        f"placement on {resources.cpus:g} CPUs and {resources.gpus:g} GPUs"
        + (f" of {facts.memory / _GIB:.3g} GiB" if facts.kind == "cuda" else ""),
        ["stage", "processes", "CPUs each", "GPUs each"],
        [*_training_rows(config, resources), *_stream_rows(stream)],
    )
    console.table(
        "disk, estimated, in GiB",
        ["what", "GiB"],
        [[what, _gib(size)] for what, size in _disk(config, shapes).items()],
    )
    for name, need in needs.items():
        _refuse_what_cannot_fit(config, name, need, facts)


def _shapes(config: RunConfig) -> dict[str, Shape]:
    generator = config.generator
    student = config.student.model
    teacher = resolve_config(config.teacher.model)
    if student.startswith(FRESH):
        start = fresh_config(student, teacher.vocab_size)
    elif starts_from_teacher(student):
        start = resolve_config(config.teacher.model)
        start.num_hidden_layers = first_layers(student, start)
    else:
        start = resolve_config(student)
    return {
        "teacher": shape_of(teacher, "classifier"),
        "generator": shape_of(
            resolve_config(generator.model),
            "generator",
            frozen_blocks=generator.frozen_blocks,
            lora_rank=generator.lora_rank,
        ),
        "student": shape_of(start, "classifier"),
    }


def _footprint(config: RunConfig, name: str, shape: Shape, facts: DeviceFacts) -> Footprint:
    settings = getattr(config, name)
    precision = settings.train.precision
    half = precision in ("bf16", "fp16") or (precision == "auto" and facts.kind == "cuda")
    return footprint(shape, settings.train, settings.max_length, half=half)


def _memory_row(name: str, shape: Shape, need: Footprint) -> list[str]:
    parts = (need.weights, need.gradients, need.optimizer, need.activations, need.device, need.host)
    return [name, _millions(shape.parameters), _millions(shape.trained), *map(_gib, parts)]


def _training_rows(config: RunConfig, resources: Resources) -> list[list[str]]:
    rows = []
    for name in ("teacher", "generator", "student"):
        train: TrainConfig = getattr(config, name).train
        placed = place_training(train, resources)
        rows.append([name, str(train.workers), f"{placed['CPU']:g}", f"{placed['GPU']:g}"])
    return rows


def _stream_rows(stream: Placement) -> list[list[str]]:
    def row(name: str, pool: PoolPlacement) -> list[str]:
        many = f"{pool.min_actors} to {pool.max_actors}"
        count = many if pool.min_actors < pool.max_actors else str(pool.max_actors)
        return [name, count, f"{pool.cpus:g}", f"{pool.gpus:g}"]

    if stream.is_shared:
        return [row("generate and verify", stream.generate)]
    return [row("generate", stream.generate), row("verify", stream.verify)]


def _disk(config: RunConfig, shapes: dict[str, Shape]) -> dict[str, int]:
    """Bytes by what lies there at the end; and what the largest training keeps meanwhile."""
    accepted = config.synthesis.n_per_class * len(config.data.labels)
    recorded = {
        "teacher, generator": 4 * (shapes["teacher"].parameters + shapes["generator"].parameters),
        f"students ({len(ARMS)} arms)": 4 * len(ARMS) * shapes["student"].parameters,
        "dataset": accepted * _ROW_BYTES,
    }
    pool = {
        f"pool, at {_USUAL_ACCEPTANCE:.0%} accepted": int(accepted / _USUAL_ACCEPTANCE * _ROW_BYTES)
    }
    is_here = not (config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    copies = {"MLflow's copies of these": sum(recorded.values())} if is_here else {}
    checkpoints = 2 * 16 * max(s.trained for s in shapes.values())
    return {**recorded, **copies, **pool, "checkpoints, while training": checkpoints}


def _refuse_what_cannot_fit(
    config: RunConfig, name: str, need: Footprint, facts: DeviceFacts
) -> None:
    settings = getattr(config, name).train
    spare = RUNTIME_BYTES if facts.kind == "cuda" else 0
    if need.device + spare <= facts.memory:
        return
    ways = [] if settings.zero_stage == 3 else [f"{name}.train.zero_stage=3 with more workers"]
    ways += [f"a smaller {name}.train.micro_batch_size"]
    if not settings.gradient_checkpointing:
        ways.append(f"{name}.train.gradient_checkpointing=true")
    if name == "generator" and not config.generator.lora_rank:
        ways.append("generator.lora_rank=16")
    where = "GPU" if facts.kind == "cuda" else "machine"
    raise PlacementError(
        f"training the {name} needs about {_gib(need.device + spare)} GiB in each worker, the "
        f"{where} has {_gib(facts.memory)}; try {', '.join(ways)}"
    )


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f}" if size < 10 * _GIB else f"{size / _GIB:.0f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"
