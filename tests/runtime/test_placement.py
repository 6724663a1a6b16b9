import pytest

from sentisynth.config.synthesis import PoolConfig, SynthesisConfig
from sentisynth.config.types import TrainConfig
from sentisynth.errors import PlacementError
from sentisynth.runtime.placement import Resources, balanced, place_stream, place_training


def nodes(*cpus: float, gpus: float = 0) -> Resources:
    """Nodes with these CPUs; the GPUs are the first node's."""
    return Resources(node_cpus=cpus, node_gpus=(gpus, *(0.0 for _ in cpus[1:])))


@pytest.mark.parametrize("cpus", [1, 2, 8, 64])
def test_all_stages_fit_on_any_machine_without_a_gpu(cpus: int) -> None:
    shared = place_stream(SynthesisConfig(), nodes(cpus))
    assert shared.is_shared and shared.generate == shared.verify
    assert shared.generate.max_actors * shared.generate.cpus <= cpus
    assert shared.generate.max_actors == cpus and shared.generate.gpus == 0
    said = SynthesisConfig(generate_pool=PoolConfig(max_actors=cpus))
    placed = place_stream(said, nodes(cpus))
    few = PoolConfig(max_actors=1)
    one = place_stream(SynthesisConfig(generate_pool=few, verify_pool=few), nodes(cpus))
    assert one.is_shared and one.generate.max_actors == 1
    total = sum(p.max_actors * p.cpus for p in (placed.generate, placed.verify))
    assert not placed.is_shared and total + 0.15 <= cpus


def test_actors_that_share_cpus_have_room_for_their_threads() -> None:
    pool = PoolConfig(threads=4)
    four = SynthesisConfig(generate_pool=pool, verify_pool=pool)
    for cpus, n in (((8, 6), 3), ((2,), 1), ((2, 2, 2), 1), ((0.5, 0.5), 1), ((3, 9), 2)):
        placed = place_stream(four, nodes(*cpus))
        assert placed.is_shared and placed.generate.max_actors == n
        assert nodes(*cpus).holds(placed.generate.cpus, 0)


def test_stages_with_other_threads_than_each_other_have_actors_of_their_own() -> None:
    placed = place_stream(SynthesisConfig(verify_pool=PoolConfig(threads=4)), nodes(8))
    assert not placed.is_shared and placed.generate.max_actors == 8


def test_one_actor_on_a_large_machine_asks_no_more_than_a_cpu() -> None:
    one = SynthesisConfig(generate_pool=PoolConfig(max_actors=1))
    assert place_stream(one, nodes(64)).generate.cpus <= 1


def test_generator_and_teacher_share_a_gpu() -> None:
    placed = place_stream(SynthesisConfig(), nodes(8, gpus=1))
    assert placed.generate.gpus + placed.verify.gpus == 1
    assert placed.generate.max_actors == placed.verify.max_actors == 1


def test_a_generator_and_a_teacher_fit_on_each_gpu_and_its_own_cpus() -> None:
    """Whatever the head has: two of a kind do not fit on a GPU, one of each fits its node."""
    cluster = Resources(node_cpus=(64, 1, 8), node_gpus=(0, 1, 4))
    placed = place_stream(SynthesisConfig(), cluster)
    assert 2 * placed.generate.gpus > 1 and placed.generate.gpus + placed.verify.gpus == 1
    assert placed.generate.max_actors == placed.generate.min_actors == 5
    for cpus, gpus in ((1, 1), (8, 4)):
        assert gpus * (placed.generate.cpus + placed.verify.cpus) <= cpus


@pytest.mark.parametrize(
    ("generate", "verify", "gpus", "wanted"),
    [
        (1, None, 8, (6, 4)),  # two teachers of 0.4 on each of two GPUs
        (0.7, None, 2, (1, 2)),
        (None, 0.5, 2, (1, 2)),
        (None, 0.5, 8, (6, 4)),
        (0.3, 0.8, 4, (9, 1)),
        (2, 1, 8, (3, 2)),
    ],
)
def test_shares_of_gpus_are_packed_by_whole_ones(
    generate: float | None, verify: float | None, gpus: int, wanted: tuple[int, int]
) -> None:
    config = SynthesisConfig(
        generate_pool=PoolConfig(gpus=generate), verify_pool=PoolConfig(gpus=verify)
    )
    placed = place_stream(config, nodes(64, gpus=gpus))
    assert (placed.generate.min_actors, placed.verify.min_actors) == wanted


def test_pools_with_gpus_of_their_own_are_sized_by_their_pace() -> None:
    own = SynthesisConfig(generate_pool=PoolConfig(gpus=1), verify_pool=PoolConfig(gpus=1))
    cluster = Resources(node_cpus=(8,) * 4, node_gpus=(4,) * 4)
    first = place_stream(own, cluster)
    assert (first.generate.max_actors, first.verify.max_actors) == (12, 4)
    for seconds, sizes in (((1, 1), (8, 8)), ((1, 9), (2, 14)), ((99, 1), (15, 1))):
        pace = {"generate": float(seconds[0]), "verify": float(seconds[1])}
        better = balanced(own, first, cluster, pace)
        assert better is not None
        assert (better.generate.max_actors, better.verify.max_actors) == sizes
        assert better.generate.min_actors == sizes[0]
    assert balanced(own, first, cluster, {"generate": 4.0, "verify": 1.0}) is None
    assert balanced(own, first, cluster, {"generate": 0.907, "verify": 0.093}) is None


def test_pools_are_not_sized_to_be_slower_than_they_are() -> None:
    """On four GPUs three generators and a teacher are slower than two of each."""
    own = SynthesisConfig(generate_pool=PoolConfig(gpus=1), verify_pool=PoolConfig(gpus=1))
    cluster = nodes(16, gpus=4)
    first = place_stream(own, cluster)
    assert (first.generate.max_actors, first.verify.max_actors) == (3, 1)
    pace = {"generate": 0.5, "verify": 0.5}
    two = balanced(own, first, cluster, pace)
    assert two is not None and two.generate.max_actors == two.verify.max_actors == 2
    assert balanced(own, two, cluster, {"generate": 0.63, "verify": 0.37}) is None


def test_pools_that_share_gpus_or_are_set_keep_their_sizes() -> None:
    cluster = Resources(node_cpus=(8,) * 4, node_gpus=(4,) * 4)
    shared = place_stream(SynthesisConfig(), cluster)
    assert balanced(SynthesisConfig(), shared, cluster, {"generate": 1.0, "verify": 9.0}) is None
    said = SynthesisConfig(
        generate_pool=PoolConfig(gpus=1, max_actors=4), verify_pool=PoolConfig(gpus=1)
    )
    placed = place_stream(said, cluster)
    assert balanced(said, placed, cluster, {"generate": 1.0, "verify": 9.0}) is None


def test_what_can_never_be_placed_is_said_before_the_start() -> None:
    greedy = SynthesisConfig(generate_pool=PoolConfig(min_actors=4, gpus=1))
    with pytest.raises(PlacementError, match="the cluster has 2 for them"):
        place_stream(greedy, nodes(8, gpus=2))
    with pytest.raises(PlacementError, match="cpus"):
        place_stream(SynthesisConfig(verify_pool=PoolConfig(cpus=4)), nodes(2))
    with pytest.raises(PlacementError, match="no node of the cluster has them"):
        place_stream(SynthesisConfig(verify_pool=PoolConfig(cpus=4)), nodes(2, 2, 2, 2))


@pytest.mark.parametrize(
    ("cpus", "workers", "share"), [((2,), 1, 2), ((4, 4), 1, 4), ((5,), 2, 2), ((4, 2), 3, 2)]
)
def test_a_training_worker_fits_on_a_node(
    cpus: tuple[float, ...], workers: int, share: int
) -> None:
    config = TrainConfig(workers=workers)
    assert place_training(config, nodes(*cpus)) == {"CPU": share, "GPU": 0}


def test_a_head_alone_is_told_to_ask_for_nodes() -> None:
    with pytest.raises(PlacementError, match="give cluster.gpus=N"):
        place_training(TrainConfig(), nodes(0))
    with pytest.raises(PlacementError, match="give cluster.gpus=N"):
        place_stream(SynthesisConfig(), nodes(0))


def test_training_takes_a_gpu_where_there_is_one() -> None:
    assert place_training(TrainConfig(), nodes(4, gpus=1))["GPU"] == 1
    assert place_training(TrainConfig(gpus_per_worker=0), nodes(4, gpus=1))["GPU"] == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"workers": 3}, "need a CPU each, the cluster has 2"),
        ({"workers": 2, "gpus_per_worker": 1}, "the cluster has 0"),
        ({"workers": 8, "batch_size": 4}, "cannot share batches of 4 rows"),
    ],
)
def test_training_that_can_never_be_placed(settings: dict[str, int], told: str) -> None:
    with pytest.raises(PlacementError, match=told):
        place_training(TrainConfig.model_validate(settings), nodes(2))
