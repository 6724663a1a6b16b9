"""Trainings on Ray whose processes are killed: they go on, and end with the same weights."""

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch

from sentisynth.cli import main
from sentisynth.config.load import load_config
from sentisynth.config.types import RunConfig, TrainConfig
from sentisynth.data.files import read_json
from sentisynth.errors import ModelError, PlacementError, TrackingError, TrainingError
from sentisynth.models.allocator import VARIABLES
from sentisynth.runtime import recovery
from sentisynth.runtime.placement import Resources
from sentisynth.runtime.recovery import _groups, run_training
from sentisynth.runtime.train import KeptGroup, Shape, kept_group
from sentisynth.training.jobs import teach
from sentisynth.training.loop import Report
from tests.conftest import reviews


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    for name, split, n in (
        ("seed", "train", 24),
        ("validation",) * 2 + (12,),
        ("test",) * 2 + (4,),
    ):
        pq.write_table(
            reviews(split, n).rename_columns(["text", "labels"]), path / f"{name}.parquet"
        )
    return path


def settings(tiny_bert: Path, **train: object) -> RunConfig:
    wanted = {"epochs": 3, "batch_size": 8, "checkpoint_every": 2, "workers": 2, **train}
    overrides = [f"teacher.train.{key}={value}" for key, value in wanted.items()]
    return load_config("quickstart", [f"teacher.model={tiny_bert}", *overrides])


def dying(
    config: RunConfig, corpus: Path, out: Path, work: Path, report: Report, step: int
) -> None:
    """Stage A, whose second worker dies by SIGKILL once, in the step after `step`."""
    import torch.distributed as dist

    from sentisynth.training import loop

    take_step, taken = loop.take_step, [0]
    marker = work / "died"

    def counted(*arguments: object) -> torch.Tensor:
        taken[0] += 1
        if taken[0] > step and dist.get_rank() == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(*arguments)  # type: ignore[arg-type]

    loop.take_step = counted  # type: ignore[assignment]
    teach(config, corpus, out, work, report)


@pytest.mark.chaos
@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_a_killed_worker_changes_nothing(
    corpus: Path, tiny_bert: Path, tmp_path: Path, ray_session: None, engine: str
) -> None:
    config = settings(tiny_bert, engine=engine)
    told: list[tuple[int, str]] = []
    for name, step in (("calm", 1000), ("disturbed", 9)):  # of 18; an epoch has 6
        work = tmp_path / f"work-{name}"
        work.mkdir()
        job = partial(dying, config, corpus, tmp_path / name, work, step=step)
        run_training(
            lambda report, _, job=job: job(report=report),
            config.teacher.train,
            work,
            lambda _: None,
            lambda times, reason: told.append((times, reason)),
        )
    assert told == [(1, "a worker or its node was lost")]
    calm, disturbed = (tmp_path / n / "model.safetensors" for n in ("calm", "disturbed"))
    assert calm.read_bytes() == disturbed.read_bytes()
    first, second = (read_json(tmp_path / n / "metrics.json") for n in ("calm", "disturbed"))
    assert first["evaluations"] == second["evaluations"] and len(first["evaluations"]) == 3


def test_deepspeed_trains_on_one_worker(
    corpus: Path, tiny_bert: Path, tmp_path: Path, ray_session: None
) -> None:
    """Without a process group of Ray Train's, which one worker does not get."""
    config = settings(tiny_bert, workers=1, engine="deepspeed", epochs=1)
    work = tmp_path / "work"
    work.mkdir()
    job = partial(teach, config, corpus, tmp_path / "out", work)
    run_training(lambda report, _: job(report), config.teacher.train, work, print, print)
    figures = read_json(tmp_path / "out" / "metrics.json")
    assert (figures["engine"], figures["workers"]) == ("deepspeed", 1)


@pytest.mark.chaos
def test_a_killed_driver_changes_nothing(corpus: Path, tiny_bert: Path, tmp_path: Path) -> None:
    config = settings(tiny_bert, workers=1, epochs=40, eval_every=40)
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    calm = tmp_path / "calm"
    calm.mkdir()
    out = tmp_path / "run"
    train = {"epochs": 40, "batch_size": 8, "checkpoint_every": 2, "eval_every": 40}
    arguments = [f"teacher.train.{key}={value}" for key, value in train.items()]
    arguments += [f"teacher.model={tiny_bert}", "data.n_seed=48"]
    command = ["teacher", "quickstart", *arguments, "--out", str(out)]
    code = "import sys; from sentisynth.cli import main; sys.exit(main(sys.argv[1:]))"
    with subprocess.Popen([sys.executable, "-c", code, *command]) as process:
        progress = out / ".training" / "teacher" / "progress.json"
        until = time.monotonic() + 120
        while not progress.is_file() or read_json(progress)["step"] < 50:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert not (out / "teacher").exists()
    step = read_json(progress)["step"]
    assert step < 240
    assert main(command) == 0
    teach(config, out / "corpus", calm, tmp_path, print)
    torch.set_num_threads(threads)
    assert (out / "teacher" / "model.safetensors").read_bytes() == (
        calm / "model.safetensors"
    ).read_bytes()
    assert not list((out / ".training").iterdir())


def test_a_checkpoint_is_gone_on_with_in_smaller_pieces_and_by_another_engine(
    tiny_bert: Path,
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise TrainingError("the worker died of memory")

    monkeypatch.setattr("sentisynth.flows.training.run_training", out_of_memory)
    command = ["teacher", "quickstart", f"teacher.model={tiny_bert}", "--out", str(tmp_path)]
    assert main(command) == 2
    checkpoint = tmp_path / ".training" / "teacher" / "state-00000002.safetensors"
    checkpoint.touch()
    smaller = ["micro_batch_size=2", "gradient_checkpointing=true", "workers=2", "engine=deepspeed"]
    assert main([*command, *(f"teacher.train.{key}" for key in smaller)]) == 2
    assert "died of memory" in capsys.readouterr().err and checkpoint.exists()
    assert main([*command, "teacher.train.batch_size=4"]) == 2
    assert "was begun from something else" in capsys.readouterr().err and checkpoint.exists()


@pytest.mark.chaos
def test_workers_that_keep_dying_end_the_training(tmp_path: Path, ray_session: None) -> None:
    def job(report: Report, _: str) -> None:
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGKILL)

    told: list[int] = []
    with pytest.raises(TrainingError, match="were lost 2 times in a row at step 0"):
        run_training(
            job, TrainConfig(max_restarts=1), tmp_path, print, lambda times, _: told.append(times)
        )
    assert told == [1]


@pytest.mark.chaos
def test_workers_that_find_no_room_end_the_training(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train alone would ask for ever, and say nothing."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    placed = ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    ray.get(placed.ready())
    try:
        with pytest.raises(TrainingError, match=r"lost 1 times .* \(the cluster had no room"):
            run_training(
                partial(tells, path=tmp_path), TrainConfig(max_restarts=0), tmp_path, print, print
            )
    finally:
        ray.util.remove_placement_group(placed)
    assert not (tmp_path / "finished").exists()


def cluster_of(monkeypatch: pytest.MonkeyPatch, *cpus: tuple[float, ...]) -> None:
    """Nodes with these CPUs at each look, and at the end those of the last."""
    left = list(cpus)

    def look() -> Resources:
        nodes = left.pop(0) if len(left) > 1 else left[0]
        return Resources(node_cpus=nodes, node_gpus=(0.0,) * len(nodes))

    monkeypatch.setattr(recovery, "cluster_resources", look)
    monkeypatch.setattr(recovery, "_TICK_S", 0.0)


def lost_once(shapes: list[Shape]) -> KeptGroup:
    """Workers that are lost in the first job alone."""

    def run(shape: Shape, *_: object) -> str | None:
        shapes.append(shape)
        return "a node was lost" if len(shapes) == 1 else None

    return cast(KeptGroup, SimpleNamespace(run=run))


def after_a_loss(work: Path) -> tuple[list[Shape], list[str]]:
    """Shapes of the workers before and after, and what was told of the wait between."""
    shapes: list[Shape] = []
    told: list[str] = []
    groups, options = lost_once(shapes), {"wait_s": 60.0, "on_wait": told.append}
    run_training(lambda *_: None, TrainConfig(), work, print, print, groups, **options)
    return shapes, told


def test_after_a_loss_the_training_goes_on_with_what_the_nodes_have_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_of(monkeypatch, (16.0, 8.0), (), (), (8.0,))
    shapes, told = after_a_loss(tmp_path)
    assert [shape.cpus for shape in shapes] == [16, 8]
    assert len(told) == 1 and "has no CPU" in told[0]


def test_a_training_that_lost_its_gpus_waits_for_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the CPUs that are left; a cluster that scales itself is asked at each look."""
    left = [(1.0,), (0.0,), (0.0,), (1.0,)]
    asked: list[Any] = []
    monkeypatch.setattr(
        recovery,
        "cluster_resources",
        lambda: Resources(node_cpus=(8.0,), node_gpus=left.pop(0)),
    )
    monkeypatch.setattr(recovery, "_TICK_S", 0.0)
    monkeypatch.setattr(
        "ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(bundles)
    )
    shapes, told = after_a_loss(tmp_path)
    assert [shape.gpus for shape in shapes] == [1, 1]
    assert told == ["the GPUs that the training ran on are gone"]
    assert asked == [[{"GPU": 1}], [{"GPU": 1}], []]


def test_what_others_have_of_a_cluster_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_of(monkeypatch, (8.0,))
    reasons = [recovery.NO_ROOM] * 9
    told: list[str] = []

    def run(*_: object) -> str | None:
        return reasons.pop() if reasons else None

    groups = cast(KeptGroup, SimpleNamespace(run=run))
    options: dict[str, Any] = {"wait_s": 60, "on_wait": told.append}
    run_training(lambda *_: None, TrainConfig(), tmp_path, print, tried_again, groups, **options)
    assert len(told) == 9 and "others have what they need" in told[0]
    reasons = [recovery.NO_ROOM] * 9
    with pytest.raises(TrainingError, match="lost 1 times in a row .* no room"):
        run_training(
            lambda *_: None, TrainConfig(max_restarts=0), tmp_path, print, tried_again, groups
        )


def test_a_training_whose_nodes_do_not_come_back_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_of(monkeypatch, (16.0,), ())
    with pytest.raises(PlacementError, match=r"and none came back within 0\.01 s"):
        run_training(
            lambda *_: None, TrainConfig(), tmp_path, print, print, lost_once([]), wait_s=0.01
        )


def tells(report: Report, _: str, path: Path) -> None:
    for step in range(2):
        keeps = VARIABLES.items() <= os.environ.items()
        report({"step": step, "pid": os.getpid(), "keeps": keeps})
    (path / "finished").touch()


def tried_again(*_: object) -> None:
    pytest.fail("tried again")


def test_trainings_share_a_worker_until_one_fails_and_an_interrupt_ends_it_at_once(
    tmp_path: Path, ray_session: None
) -> None:
    told: list[dict[str, int]] = []
    job = partial(tells, path=tmp_path)
    run = partial(run_training, work=tmp_path, on_restart=tried_again)

    def mistaken(report: Report, _: str) -> None:
        raise ModelError("no such thing")

    def long(report: Report, _: str) -> None:
        report({"step": 0, "pid": os.getpid()})
        time.sleep(100)

    def keep(entry: dict[str, int], error: BaseException | None = None) -> None:
        told.append(entry)
        if error is not None:
            raise error

    def trainings() -> None:
        with kept_group(tmp_path / "ray") as group:
            run(job, TrainConfig(), on_report=keep, kept=group)
            (tmp_path / "finished").unlink()
            refused = partial(keep, error=TrackingError("no store"))
            with pytest.raises(TrackingError, match="^no store$"):  # it ends no training
                run(job, TrainConfig(), on_report=refused, kept=group)
            assert (tmp_path / "finished").is_file()
            with pytest.raises(ModelError, match="^no such thing$"):
                run(mistaken, TrainConfig(), on_report=print, kept=group)
            run(long, TrainConfig(), on_report=partial(keep, error=KeyboardInterrupt()), kept=group)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        trainings()
    assert time.monotonic() - begun < 100
    assert [entry["step"] for entry in told] == [0, 1, 0, 1, 0]
    assert all(entry["keeps"] for entry in told[:4])  # the memory that it frees
    pids = [entry["pid"] for entry in told]
    assert len(set(pids[:4])) == 1 and pids[4] != pids[0]
    assert not any(psutil.pid_exists(pid) for pid in pids) and not (tmp_path / "ray").exists()


def test_a_training_that_cannot_share_lets_the_kept_workers_go(tmp_path: Path) -> None:
    """It needs what they hold."""
    ended: list[bool] = []
    kept = cast(KeptGroup, SimpleNamespace(end=lambda at_once: ended.append(at_once)))
    with _groups(kept, TrainConfig(), tmp_path) as found:
        assert found is kept and not ended
    for config in (TrainConfig(workers=2), TrainConfig(engine="deepspeed")):
        with _groups(kept, config, tmp_path) as found:
            assert found is not kept and ended.pop() is False


@pytest.mark.chaos
def test_a_worker_that_is_lost_between_trainings_is_replaced_and_counts_as_no_death(
    tmp_path: Path, ray_session: None
) -> None:
    pids: list[int] = []
    with kept_group(tmp_path / "ray") as group:
        for _ in range(2):
            run_training(
                partial(tells, path=tmp_path),
                TrainConfig(max_restarts=0),
                tmp_path,
                lambda entry: pids.append(entry["pid"]),
                tried_again,
                group,
            )
            os.kill(pids[-1], signal.SIGKILL)
        two = TrainConfig(workers=2)  # a group of their own, with the CPUs that the first held
        run_training(partial(tells, path=tmp_path), two, tmp_path, print, tried_again, group)
    assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.chaos
def test_an_interrupt_before_the_worker_is_there_runs_no_job(
    tmp_path: Path, ray_session: None
) -> None:
    begun = time.monotonic()
    threading.Timer(3, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        run_training(
            partial(tells, path=tmp_path), TrainConfig(), tmp_path, tried_again, tried_again
        )
    assert time.monotonic() - begun < 25
    time.sleep(5)
    assert not (tmp_path / "finished").exists()


AT_THE_START = """
import os, pathlib, signal, sys
from sentisynth.config.types import TrainConfig
from sentisynth.errors import TrainingError
from sentisynth.runtime.ray_cluster import connected
from sentisynth.runtime.recovery import run_training

with connected():
    try:
        job = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        run_training(job, TrainConfig(max_restarts=0), pathlib.Path(sys.argv[1]), print, print)
    except TrainingError as error:
        print(error)
"""


@pytest.mark.chaos
def test_a_worker_that_dies_as_it_starts_is_a_sentence(tmp_path: Path) -> None:
    """In a session of its own, since Ray Train keeps the resources of such a worker."""
    command = [sys.executable, "-c", AT_THE_START, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "died as it started" in done.stdout or "were lost 1 times in a row" in done.stdout
