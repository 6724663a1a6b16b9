"""The pools of actors that a run's stream goes through."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from sentisynth.config.types import RunConfig
from sentisynth.runtime.actors import (
    Arithmetic,
    build_generate,
    build_screen,
    build_verify,
    build_write,
)
from sentisynth.runtime.placement import SCREEN_CPUS, WRITE_CPUS, Placement, PoolPlacement

_GENERATORS_A_HELPER = 16  # that one process which screens, or writes, keeps up with


@dataclass(frozen=True, kw_only=True)
class StreamPool:
    """Actors that run a stage, or several one after the other, and how many there are."""

    builds: dict[str, Any]
    """By the stage's name, what makes it (`actors.Stage`) in an actor's process."""
    placed: PoolPlacement


def stream_pools(
    config: RunConfig,
    placement: Placement,
    *,
    generator: Path,
    teacher: Path,
    pool: Path,
    plan: str,
    evaluation_texts: list[str],
    seed_texts: list[str],
    arithmetic: Sequence[Arithmetic | None] = (None, None),
) -> list[StreamPool]:
    """The stages of a run; `arithmetic` is that of generation and of verification, of each actor's
    own choice where it is None.
    """
    synthesis, (of_generation, of_verification) = config.synthesis, arithmetic
    texts = [ray.put((evaluation_texts, seed_texts))]

    builds = {
        "generate": partial(build_generate, generator, config, of_generation),
        "screen": partial(build_screen, synthesis.screens, texts),
        "verify": partial(build_verify, teacher, config, of_verification),
        "write": partial(build_write, pool, plan, synthesis.screens.near_duplicates),
    }
    return placed_pools(builds, placement)


def placed_pools(builds: dict[str, Any], placement: Placement) -> list[StreamPool]:
    """The four stages where they are placed."""
    if placement.is_shared:
        return [StreamPool(builds=builds, placed=placement.generate)]
    n = placement.generate.max_actors
    placed = {
        "generate": placement.generate,
        "screen": helpers(SCREEN_CPUS, n),
        "verify": placement.verify,
        "write": helpers(WRITE_CPUS, n),
    }
    return [StreamPool(builds={name: builds[name]}, placed=placed[name]) for name in placed]


def helpers(cpus: float, n_generators: int) -> PoolPlacement:
    """Actors of the stages that have no model: one, and more for many generators."""
    most = -(-n_generators // _GENERATORS_A_HELPER)
    return PoolPlacement(min_actors=1, max_actors=most, cpus=cpus, gpus=0)
