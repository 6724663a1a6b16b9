"""Where the stages of the stream, and trainings, go on a cluster. Sums alone; no Ray."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sentisynth.config.synthesis import PoolConfig, SynthesisConfig
from sentisynth.config.types import TrainConfig
from sentisynth.errors import PlacementError

SCREEN_CPUS = 0.1
WRITE_CPUS = 0.05
_MOST_CPUS_BESIDE_A_GPU = 4
# Of a GPU that generator and teacher share: two generators do not fit on one, and once they are
# placed, two teachers do not either. Halves would be filled by two of a kind.
_SHARES_OF_A_GPU = (0.6, 0.4)
_FIRST_GUESS = 0.75  # of GPUs for generation, until its pace is known
_ABOUT = 0.2  # faster than now, or other sizes are not worth loading models again
_SHARE_OF_CPUS = 0.8  # of all CPUs, for generation and verification together


@dataclass(frozen=True, kw_only=True)
class PoolPlacement:
    """What Ray is asked for: `min_actors` to `max_actors`, each with these CPUs and GPUs."""

    min_actors: int
    max_actors: int
    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where generation and verification run."""

    generate: PoolPlacement
    verify: PoolPlacement
    is_shared: bool = False
    """One pool of actors (both are the same) runs all stages of a unit, one after the other."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a cluster has: CPUs and GPUs of each node."""

    node_cpus: tuple[float, ...]
    node_gpus: tuple[float, ...]

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(self.node_cpus)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(self.node_gpus)

    @property
    def cpus_a_gpu(self) -> float:
        """CPUs beside a GPU, where there are fewest; of all where there is no GPU."""
        nodes = zip(self.node_cpus, self.node_gpus, strict=True)
        return min((cpus / gpus for cpus, gpus in nodes if gpus), default=self.cpus)

    @property
    def without_gpus(self) -> "Resources":
        """The CPUs alone."""
        return Resources(node_cpus=self.node_cpus, node_gpus=tuple(0.0 for _ in self.node_gpus))

    @property
    def told(self) -> str:
        """In words."""
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{len(self.node_cpus)} nodes with {self.cpus:g} CPUs{gpus}"

    def holds(self, cpus: float, gpus: float) -> bool:
        """Whether one node is large enough for an actor with these."""
        return any(
            cpus <= own_cpus and gpus <= own_gpus
            for own_cpus, own_gpus in zip(self.node_cpus, self.node_gpus, strict=True)
        )


def place_stream(config: SynthesisConfig, resources: Resources) -> Placement:
    """Fit both pools on a cluster's CPUs and GPUs. Raises PlacementError if it never can.

    On CPUs, an actor for as many CPUs as it has threads runs all stages, so that none waits for
    another; pools that are set otherwise than each other, or with CPUs, have actors of their own.
    On GPUs, each has an actor on every GPU.
    """
    _refuse_empty(resources)
    if _share_cpus(config, resources):
        return _on_cpus(config, resources)
    cpus, gpus = resources.cpus, resources.gpus
    spare = cpus - SCREEN_CPUS - WRITE_CPUS
    wanted = [config.generate_pool, config.verify_pool]
    names = ["synthesis.generate_pool", "synthesis.verify_pool"]
    placed = [
        _place_pool(pool, resources, n, share)
        for pool, n, share in zip(wanted, (1.0, 0.5), _SHARES_OF_A_GPU, strict=True)
    ]
    if _have_own_gpus(config, placed):
        splits = _splits(placed, gpus)
        own = round(gpus * _FIRST_GUESS) - math.ceil(placed[0].gpus)
        placed = splits[min(max(own, 0), len(splits) - 1)]
    for name, pool in zip(names, placed, strict=True):
        if not resources.holds(pool.cpus, pool.gpus):
            raise PlacementError(
                f"an actor of {name} needs {pool.cpus:g} cpus and {pool.gpus:g} gpus on one node, "
                f"and no node of the cluster has them; lower {name}.cpus or {name}.gpus"
            )
    for kind, total in (("cpus", spare), ("gpus", gpus)):
        needed = sum(p.min_actors * getattr(p, kind) for p in placed)
        if needed > total + 1e-9:
            raise PlacementError(
                f"{names[0]} and {names[1]} need {needed:g} {kind} at their smallest, the cluster "
                f"has {total:g} for them; lower min_actors or {kind}, or add nodes"
            )
    return Placement(generate=placed[0], verify=placed[1])


def _share_cpus(config: SynthesisConfig, resources: Resources) -> bool:
    """Whether there is no GPU, and generators and teachers are to have the same (vLLM has a process
    of its own).
    """
    pool = config.generate_pool
    alike = PoolConfig(threads=pool.threads, max_actors=pool.max_actors)
    is_one_kind = pool == config.verify_pool == alike
    return not resources.gpus and is_one_kind and config.engine != "vllm"


def _on_cpus(config: SynthesisConfig, resources: Resources) -> Placement:
    threads, most = config.generate_pool.threads, config.generate_pool.max_actors
    actors = max(1, int(sum(cpus // threads for cpus in resources.node_cpus)))
    largest = max(resources.node_cpus)
    share = _SHARE_OF_CPUS * min(resources.cpus / actors, threads, largest)
    actors = min(actors, most or actors)
    placed = PoolPlacement(
        min_actors=actors, max_actors=actors, cpus=max(0.01, round(share, 2)), gpus=0
    )
    return Placement(generate=placed, verify=placed, is_shared=True)


def balanced(
    config: SynthesisConfig, placement: Placement, resources: Resources, seconds: dict[str, float]
) -> Placement | None:
    """Sizes of pools that have GPUs of their own, with which the slower of the two, by the seconds
    that a unit takes in each, is fastest. None if that is about what they do now.
    """
    pools = [placement.generate, placement.verify]
    if not _have_own_gpus(config, pools):
        return None
    share = seconds["generate"] / (seconds["generate"] + seconds["verify"])
    if not 0 < share < 1:
        return None
    best = max(_splits(pools, resources.gpus), key=lambda placed: _pace(placed, share))
    if _pace(best, share) < (1 + _ABOUT) * _pace(pools, share):
        return None
    return Placement(generate=best[0], verify=best[1])


def _have_own_gpus(config: SynthesisConfig, placed: Sequence[PoolPlacement]) -> bool:
    """Whether generators and teachers do not share GPUs, and nobody said how many of each."""
    wanted = (config.generate_pool, config.verify_pool)
    is_open = all(pool.max_actors is None and pool.min_actors == 1 for pool in wanted)
    return is_open and all(p.gpus for p in placed) and sum(p.gpus for p in placed) > 1


def _splits(placed: Sequence[PoolPlacement], gpus: float) -> list[list[PoolPlacement]]:
    """The ways to share the GPUs out between both pools, at least an actor each; the first has few.

    By whole GPUs: none holds actors of both, and what a GPU has left over holds none.
    """
    least = math.ceil(placed[0].gpus)
    most = max(int(gpus) - math.ceil(placed[1].gpus), least)
    return [
        [
            dataclasses.replace(pool, min_actors=n, max_actors=n)
            for pool, own in zip(placed, (first, int(gpus) - first), strict=True)
            for n in [_actors_on(own, pool.gpus)]
        ]
        for first in range(least, most + 1)
    ]


def _pace(placed: Sequence[PoolPlacement], share: float) -> float:
    """How fast the slower pool is, where a unit spends this share of its seconds in the first."""
    return min(placed[0].max_actors / share, placed[1].max_actors / (1 - share))


def _actors_on(gpus: int, each: float) -> int:
    """Actors with a part of a GPU, or some whole ones, that so many hold; at least one."""
    return max(1, gpus * int(1 / each + 1e-9) if each < 1 else int(gpus / each))


def _place_pool(
    pool: PoolConfig, resources: Resources, actors_a_cpu: float, share_of_a_gpu: float
) -> PoolPlacement:
    cpus, gpus = resources.cpus, resources.gpus
    own_gpus = pool.gpus if pool.gpus is not None else (share_of_a_gpu if gpus else 0.0)
    if own_gpus:
        most = pool.max_actors or max(pool.min_actors, int(gpus))
        share = _SHARE_OF_CPUS * resources.cpus_a_gpu / 2
    else:
        most = pool.max_actors or max(pool.min_actors, int(cpus * actors_a_cpu), 1)
        share = _SHARE_OF_CPUS * cpus / (2 * most)
    own_cpus = pool.cpus if pool.cpus is not None else max(0.01, round(min(share, 1.0), 2))
    # a pool that is sized by the cluster alone is started whole; another one grows
    is_sized_here = pool.max_actors is None and pool.cpus is None and pool.gpus is None
    least = most if is_sized_here else pool.min_actors
    return PoolPlacement(min_actors=least, max_actors=most, cpus=own_cpus, gpus=own_gpus)


def _refuse_empty(resources: Resources) -> None:
    """Raise PlacementError where there is a head alone, on which no stage runs."""
    if not resources.cpus:
        raise PlacementError(
            "the cluster has no CPU for the stages: a head alone, whose workers are not there; "
            "give cluster.gpus=N to ask for GPU nodes and wait for them, or cluster.nodes=N"
        )


def place_training(config: TrainConfig, resources: Resources) -> dict[str, float]:
    """CPUs and GPUs of one training worker. Raises PlacementError if they are not there."""
    _refuse_empty(resources)
    own_gpus = config.gpus_per_worker
    if own_gpus is None:
        own_gpus = 1.0 if resources.gpus else 0.0
    if own_gpus * config.workers > resources.gpus:
        raise PlacementError(
            f"{config.workers} training workers with {own_gpus:g} GPUs each need "
            f"{own_gpus * config.workers:g} GPUs, the cluster has {resources.gpus:g}; lower "
            f"train.workers or train.gpus_per_worker"
        )
    if config.workers > config.batch_size:
        raise PlacementError(
            f"{config.workers} training workers cannot share batches of {config.batch_size} rows; "
            f"lower train.workers or raise train.batch_size"
        )
    if config.workers > sum(int(cpus) for cpus in resources.node_cpus):
        raise PlacementError(
            f"{config.workers} training workers need a CPU each, the cluster has "
            f"{resources.cpus:g}; lower train.workers"
        )
    if _slots(resources, 1, own_gpus) < config.workers:
        raise PlacementError(
            f"{config.workers} workers of a CPU and {own_gpus:g} GPUs each do not fit on "
            f"the nodes, which hold {_slots(resources, 1, own_gpus)}; lower train.workers or "
            f"train.gpus_per_worker"
        )
    own_cpus = 1
    while _slots(resources, own_cpus + 1, own_gpus) >= config.workers:
        own_cpus += 1
    return {
        "CPU": min(own_cpus, _MOST_CPUS_BESIDE_A_GPU) if own_gpus else own_cpus,
        "GPU": own_gpus,
    }


def place_training_on_a_node(config: TrainConfig, resources: Resources) -> dict[str, float]:
    """As `place_training`, on the node with the most GPUs, then CPUs, alone."""
    gpus, cpus = max(zip(resources.node_gpus, resources.node_cpus, strict=True))
    try:
        return place_training(config, Resources(node_cpus=(cpus,), node_gpus=(gpus,)))
    except PlacementError as error:
        raise PlacementError(
            f"{error}; of a run in an object store all workers are on one node, on a file system "
            f"that all nodes share they may be on several"
        ) from None


def _slots(resources: Resources, cpus: float, gpus: float) -> int:
    """How many processes with these fit on the nodes."""
    return sum(
        int(min(own_cpus // cpus, (own_gpus + 1e-9) // gpus if gpus else own_cpus))
        for own_cpus, own_gpus in zip(resources.node_cpus, resources.node_gpus, strict=True)
    )
