import pytest

from sentisynth.config.types import PoolConfig, SynthesisConfig, TrainConfig
from sentisynth.errors import PlacementError
from sentisynth.runtime.ray_cluster import place_stream, place_training


@pytest.mark.parametrize("cpus", [1, 2, 8, 64])
def test_all_stages_fit_on_any_machine_without_a_gpu(cpus: int) -> None:
    placed = place_stream(SynthesisConfig(), {"CPU": cpus})
    total = sum(p.max_actors * p.cpus for p in (placed.generate, placed.verify))
    assert total + 0.15 <= cpus
    assert placed.generate.max_actors == cpus and placed.generate.gpus == 0


def test_generator_and_teacher_share_a_gpu() -> None:
    placed = place_stream(SynthesisConfig(), {"CPU": 8, "GPU": 1})
    assert placed.generate.gpus + placed.verify.gpus == 1
    assert placed.generate.max_actors == placed.verify.max_actors == 1


def test_what_can_never_be_placed_is_said_before_the_start() -> None:
    greedy = SynthesisConfig(generate_pool=PoolConfig(min_actors=4, gpus=1))
    with pytest.raises(PlacementError, match="the cluster has 2 for them"):
        place_stream(greedy, {"CPU": 8, "GPU": 2})
    with pytest.raises(PlacementError, match="cpus"):
        place_stream(SynthesisConfig(verify_pool=PoolConfig(cpus=4)), {"CPU": 2})


def test_training_takes_a_gpu_where_there_is_one() -> None:
    assert place_training(TrainConfig(), {"CPU": 4}) == {"CPU": 4, "GPU": 0}
    assert place_training(TrainConfig(), {"CPU": 4, "GPU": 1})["GPU"] == 1
    with pytest.raises(PlacementError, match="lower train.workers"):
        place_training(TrainConfig(workers=3), {"CPU": 2})
    with pytest.raises(PlacementError, match="the cluster has 0"):
        place_training(TrainConfig(gpus_per_worker=1), {"CPU": 2})
