"""What decides the bytes of the pool and of the dataset: the parts of their stamps."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from sentisynth.config.types import RunConfig
from sentisynth.errors import RunDirectoryError
from sentisynth.flows.session import Session
from sentisynth.flows.training import control_tokens
from sentisynth.generation.engine import engine_of, rows_that_fit
from sentisynth.models.devices import DeviceFacts, check_int8
from sentisynth.models.loading import model_digest
from sentisynth.seeding import fingerprint

_CODE_VERSION = 8  # raise it when the same plan would give other bytes
_SAMPLER_WITHOUT_TOP_K = 2  # the same of such a plan alone
_OF_PRECISION = {"fp16": 2, "int8": 1}  # the same of one synthesis.precision alone
_SHARE_OF_GPU, _SHARE_OF_RAM = 0.8, 0.4
_MOST_ON_GPU, _MOST_ON_CPU, _LEAST = 4096, 256, 8


def plan_parts(session: Session) -> dict[str, Any]:
    """What decides the bytes of a unit. τ and the quota do not: they are decided afterwards.

    What the machines decide is read from a pool that was begun, so that it can be read and selected
    from anywhere, told to overwrite or not; `refuse_other_machines` is asked before units are made.
    """
    parts = _parts(session)
    begun = _begun(session, parts)
    here: dict[str, Callable[[], Any]] = {
        "unit_size": lambda: _unit_size(session),
        "precision": lambda: _precisions(session, session.devices),
        "devices": lambda: _names(session, session.devices),
    }
    left_open = {
        name: begun.get(name) or of() for name, of in here.items() if name not in parts["synthesis"]
    }
    return {**parts, "synthesis": {**parts["synthesis"], **left_open}}


def _parts(session: Session) -> dict[str, Any]:
    """What the configuration and the models decide, whatever the machines."""
    config, directory = session.config, session.directory
    synthesis = config.synthesis
    teacher, generator = map(directory.require_trained, ("teacher", "generator"))
    pools = (synthesis.generate_pool, synthesis.verify_pool)
    decided: dict[str, Any] = {
        "engine": engine_of(generator, synthesis.engine),
        "threads": [pool.threads for pool in pools],
        "sampling": synthesis.sampling.model_dump(mode="json"),
        "screens": synthesis.screens.model_dump(mode="json"),
    }
    if not synthesis.sampling.top_k:
        decided["sampler"] = _SAMPLER_WITHOUT_TOP_K
    if synthesis.unit_size:
        decided["unit_size"] = synthesis.unit_size
    if synthesis.precision in ("fp32", "bf16"):
        decided["precision"] = [synthesis.precision] * len(pools)
    elif synthesis.precision in _OF_PRECISION:
        decided[synthesis.precision] = _OF_PRECISION[synthesis.precision]
    return {
        "code": _CODE_VERSION,
        "seed": config.seed,
        "corpus": fingerprint(directory.read_stamp("corpus")),
        "teacher": model_digest(teacher),
        "generator": model_digest(generator),
        "control_tokens": control_tokens(config),
        "prompts": [list(config.prompts(label)) for label in range(len(config.data.labels))],
        "teacher_max_length": config.teacher.max_length,
        "lowercase": config.data.lowercase,
        "synthesis": decided,
    }


def _begun(session: Session, parts: dict[str, Any]) -> dict[str, Any]:
    """What the stamp of a pool says of its synthesis; nothing if there is none to be kept."""
    stamp = session.directory.readable_stamp("pool") or {}
    found = stamp.get("synthesis")
    if not isinstance(found, dict):  # absent, or a stranger's
        return {}
    names = {*parts["synthesis"], *(_OF_PRECISION.keys() & found.keys())}
    kept = {name: found.get(name) for name in names}
    is_replaced = session.directory.overwrites and fingerprint(parts) != fingerprint(
        {**stamp, "synthesis": kept}
    )
    return {} if is_replaced else found


def _unit_size(session: Session) -> int:
    """Candidates of a unit, from the memory of an actor."""
    config, directory = session.config, session.directory
    device, placed = session.devices[0], session.placement.generate
    generator = directory.require("generator", "generator …")
    if placed.gpus:
        memory = int(_SHARE_OF_GPU * device.memory * min(placed.gpus, 1.0))
        half = 2 if _precisions(session, session.devices)[0] in ("bf16", "fp16") else 4
        # the batch engine has embeddings of tokens once more, laid out for its products
        sizes = {"weight": half + (_engine(session) == "batch"), "number": half}
        return rows_that_fit(generator, config, memory, _most(config, _MOST_ON_GPU), **sizes)
    share = device.memory / min(placed.max_actors, os.cpu_count() or 1)
    memory = int(_SHARE_OF_RAM * share)
    # the batch engine has weights in fp32 beside those in fp16, and embeddings beside those in int8
    weight = (
        {"fp16": 6, "int8": 5}.get(config.synthesis.precision, 4)
        if _engine(session) == "batch"
        else 4
    )
    return rows_that_fit(generator, config, memory, _most(config, _MOST_ON_CPU), weight=weight)


def _most(config: RunConfig, most: int) -> int:
    """So few candidates that each prompt of a class gets a unit before the quota may be full: units
    take turns among prompts, and a large GPU would make a class of one.
    """
    n_prompts = max(len(config.prompts(label)) for label in range(len(config.data.labels)))
    while n_prompts > 1 and most > _LEAST and most * n_prompts > config.synthesis.n_per_class:
        most //= 2
    return most


def refuse_other_machines(session: Session, parts: dict[str, Any]) -> None:
    """Raise RunDirectoryError where units of a pool that was begun would be made on devices, or in
    a precision, that would give them other bytes.
    """
    refuse_other_devices(session, parts, session.devices)


def refuse_other_devices(
    session: Session, parts: dict[str, Any], devices: Sequence[DeviceFacts]
) -> None:
    """As `refuse_other_machines`, of devices of generation and verification that were asked."""
    found = {"devices": _names(session, devices)}
    if session.config.synthesis.precision not in ("fp32", "bf16"):
        found["precision"] = _precisions(session, devices)
    for name, here in found.items():
        there = parts["synthesis"][name]
        if here != there:
            raise RunDirectoryError(
                f"{session.directory.pool} was begun with {name} {', '.join(there)} for generation "
                f"and verification, here they are {', '.join(here)}, which gives other bytes: go "
                f"on there, or begin anew with another --out, or after removing it"
            )


def _precisions(session: Session, devices: Sequence[DeviceFacts]) -> list[str]:
    """What generation and verification compute in on these devices. Raises ModelError."""
    asked = session.config.synthesis.precision
    generation, verification = devices
    if asked == "int8":
        check_int8(generation.kind)
    own = generation.precision if asked == "auto" else asked
    if own == "fp16" and generation.kind == "cpu" and _engine(session) == "transformers":
        own = "fp32"  # on a CPU fp16 is how the batch engine keeps weights, no arithmetic
    return [own, verification.verification(asked)]


def _engine(session: Session) -> str:
    generator = session.directory.require("generator", "generator …")
    return engine_of(generator, session.config.synthesis.engine)


def _names(session: Session, devices: Sequence[DeviceFacts]) -> list[str]:
    pairs = zip(devices, _precisions(session, devices), strict=True)
    return [device.named(precision) for device, precision in pairs]


def dataset_parts(session: Session) -> dict[str, Any]:
    """What decides the dataset: the pool's plan, and what is decided about the pool."""
    config = session.config
    return {
        "code": 2,
        "plan": fingerprint(plan_parts(session)),
        "tau": config.synthesis.tau,
        "n_per_class": config.synthesis.n_per_class,
        "beta": config.distil.beta,
        "temperature": config.distil.temperature,
    }
