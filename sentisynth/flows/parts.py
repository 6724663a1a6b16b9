"""What decides the bytes of the pool and of the dataset: the parts of their stamps."""

from typing import Any

import torch

from sentisynth.flows.session import Session
from sentisynth.flows.training import control_tokens
from sentisynth.generation.engine import engine_of
from sentisynth.models.loading import autocast_dtype, model_digest
from sentisynth.runtime.ray_cluster import cluster_resources
from sentisynth.seeding import fingerprint

_CODE_VERSION = 2  # raise it when the same plan would give other bytes


def plan_parts(session: Session) -> dict[str, Any]:
    """What decides the bytes of a unit. τ and the quota do not: they are decided afterwards."""
    config, directory = session.config, session.directory
    synthesis = config.synthesis
    teacher = directory.require("teacher", f"teacher {config.name}")
    generator = directory.require("generator", f"generator {config.name}")
    gpus = cluster_resources().gpus
    pools = (synthesis.generate_pool, synthesis.verify_pool)
    devices = ["cuda" if (p.gpus is None and gpus) or p.gpus else "cpu" for p in pools]
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
        "synthesis": {
            "unit_size": synthesis.unit_size,
            "engine": engine_of(generator, synthesis.engine),
            "precision": [_precision(synthesis.precision, device) for device in devices],
            "threads": [pool.threads for pool in pools],
            "devices": devices,
            "sampling": synthesis.sampling.model_dump(mode="json"),
            "screens": synthesis.screens.model_dump(mode="json"),
        },
    }


def _precision(precision: str, device: str) -> str:
    """What `auto` comes to on a CPU like the driver's; GPUs may not be the driver's to ask."""
    if precision != "auto" or device == "cuda":
        return precision
    return "fp32" if autocast_dtype("auto", torch.device("cpu")) is None else "bf16"


def dataset_parts(session: Session) -> dict[str, Any]:
    """What decides the dataset: the pool's plan, and what is decided about the pool."""
    config = session.config
    return {
        "code": 1,
        "plan": fingerprint(plan_parts(session)),
        "tau": config.synthesis.tau,
        "n_per_class": config.synthesis.n_per_class,
        "beta": config.distil.beta,
        "temperature": config.distil.temperature,
    }
