"""What config.yaml says of a run whose stages were made by several commands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sentisynth.config.load import load_config
from sentisynth.config.references import portable
from sentisynth.flows.session import write_config


def test_config_yaml_says_what_the_models_were_made_with(tmp_path: Path) -> None:
    stamps = {"teacher": {"seed": 1, "teacher": {"max_length": 48, "train": {"epochs": 9}}}}
    directory: Any = SimpleNamespace(path=tmp_path, readable_stamp=stamps.get)
    later = load_config("quickstart", ["teacher.train.max_restarts=7", "student.train.epochs=3"])
    write_config(later, directory, {})
    found = load_config(str(tmp_path / "config.yaml"))
    assert found.teacher.max_length == 48 and found.teacher.train.epochs == 9
    assert found.teacher.train.max_restarts == 7 and found.teacher.model == later.teacher.model
    assert found.student == later.student


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
