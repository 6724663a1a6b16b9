"""What config.yaml says of a run whose stages were made by several commands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sentisynth.config.load import load_config
from sentisynth.config.references import portable
from sentisynth.data.files import write_json
from sentisynth.data.run_directory import RunDirectory
from sentisynth.errors import PlacementError, RunDirectoryError
from sentisynth.flows import session, training
from sentisynth.flows.console import Console
from sentisynth.flows.made import kept_otherwise, refuse_other_lengths
from sentisynth.flows.session import workplace, write_config

TEACHER = {"seed": 1, "teacher": {"max_length": 48, "train": {"epochs": 9}}}


def test_config_yaml_says_what_the_models_were_made_with(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    student = {"student": {"train": {}}, "model": "teacher:2", "alpha": 0.1, "temperature": 3.0}
    dataset = {"tau": 0.6, "n_per_class": 7, "beta": 0.2, "temperature": 4.0}
    stamps = {"teacher": TEACHER, "student": student, "dataset": dataset}
    for name, parts in stamps.items():
        directory.stage(name).mkdir()
        directory.stamp(directory.stage(name), parts)
    write_json(tmp_path / "teacher" / "metrics.json", {"start": "org/theirs"})
    write_json(tmp_path / "student" / "metrics.json", ["an earlier version, or a stranger"])
    later = load_config("quickstart", ["teacher.train.max_restarts=7", "student.train.epochs=3"])
    write_config(later, directory, {})
    found = load_config(str(tmp_path / "config.yaml"))
    assert found.teacher.max_length == 48 and found.teacher.train.epochs == 9
    assert found.teacher.train.max_restarts == 7 and found.teacher.model == "org/theirs"
    assert found.generator == later.generator and found.student.train == later.student.train
    assert found.student.model == "teacher:2"
    assert found.distil.model_dump() == {"alpha": 0.1, "beta": 0.2, "temperature": 4.0}
    assert (found.synthesis.tau, found.synthesis.n_per_class) == (0.6, 7)


def test_settings_that_a_later_stage_does_not_use_are_told(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    (tmp_path / "teacher").mkdir()
    directory.stamp(tmp_path / "teacher", TEACHER)
    same = ["teacher.max_length=48", "teacher.train.epochs=9", "teacher.train.max_restarts=7"]
    found = [
        kept_otherwise(load_config("quickstart", overrides), ["teacher", "generator"], directory)
        for overrides in (same, [*same, "teacher.train.epochs=2"])
    ]
    told = "the teacher is used as it is: train.epochs was 9, is now 2; `sentisynth teacher …"
    assert found[0] == [] and len(found[1]) == 1 and found[1][0].startswith(told)


def test_a_teacher_reads_the_lengths_that_it_was_made_for(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    (tmp_path / "teacher").mkdir()
    directory.stamp(tmp_path / "teacher", TEACHER)
    refuse_other_lengths(load_config("quickstart", ["teacher.max_length=48"]), directory)
    with pytest.raises(RunDirectoryError, match=r"teacher.max_length=48, which is 64 now"):
        refuse_other_lengths(load_config("quickstart"), directory)


def test_a_models_start_is_noted_and_named_by_its_students_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that makes the student may name another teacher's start."""
    told: list[Any] = []
    monkeypatch.setattr(training, "train_on_ray", lambda *given: told.append(given))
    directory = RunDirectory(tmp_path)
    (tmp_path / "teacher").mkdir()
    write_json(tmp_path / "teacher" / "metrics.json", {"start": "org/theirs"})
    directory.stamp(tmp_path / "teacher", TEACHER)
    at: Any = SimpleNamespace(directory=directory, config=load_config("quickstart"))
    for name in ("teacher", "student_real"):
        training._train(at, name, "", {}, lambda **_: None, [])
    configs = [given[7].args[0] for given in told]
    assert configs[0] == at.config
    assert configs[1].teacher.model == "org/theirs" and configs[1].teacher.train.epochs == 9
    starts = [at.config.teacher.model, at.config.student.model]
    assert [given[9] for given in told] == [{"start": start} for start in starts]


def test_a_run_that_finds_no_cluster_is_no_longer_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def absent() -> None:
        raise PlacementError("no Ray answers")

    monkeypatch.setattr(session, "connected", absent)
    config = load_config("quickstart")
    with pytest.raises(PlacementError, match="no Ray"), workplace(config, tmp_path, Console()):
        pytest.fail("nothing can be done")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FAILED"


def test_config_yaml_is_a_recipe_wherever_records_were_sent(tmp_path: Path) -> None:
    directory: Any = SimpleNamespace(path=tmp_path, readable_stamp=lambda _: None)
    config = load_config("quickstart", ["tracking.uri=http://127.0.0.1:9"])
    write_config(config, directory, {})
    assert load_config(str(tmp_path / "config.yaml")) == load_config("quickstart")


def test_a_card_names_no_folder_of_this_machine(small_data: Path) -> None:
    overrides = [f"data.source={small_data / 'train.parquet'}", "tracking.uri=http://127.0.0.1:9"]
    values = portable(load_config("quickstart", overrides))
    assert values["data"]["source"] == "train.parquet"
    assert not {"tracking", "cluster"} & set(values)
