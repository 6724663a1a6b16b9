import json
import re
from pathlib import Path

import pytest
import yaml

from sentisynth.config.load import (
    known_keys,
    load_config,
    load_pretrain_config,
    read_run_config,
    recipe_names,
)
from sentisynth.config.pretrain import PretrainConfig, ShapeConfig
from sentisynth.data.documents import document_files
from sentisynth.data.sources import read_rows
from sentisynth.errors import ConfigError, DataError, ModelError
from sentisynth.models.loading import resolve_model


@pytest.mark.parametrize("name", ["quickstart", "rotten_tomatoes", "rotten_tomatoes_large", "sst2"])
def test_built_in_recipes_load_and_say_what_they_are(name: str) -> None:
    assert name in recipe_names()
    assert load_config(name).description


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("synthesis.taw=0.5", "unknown key 'synthesis.taw'; did you mean 'synthesis.tau'?"),
        ("tau=0.5", "unknown key 'tau'; did you mean 'synthesis.tau'?"),
        ("synthesis.tau=1.5", "synthesis.tau is 1.5; it must be at most 1"),
        ("teacher.train.epochs=0", "teacher.train.epochs is 0; it must be at least 1"),
        ("teacher.train.epochs=many", "it must be a whole number"),
        ("student.train.learning_rate=0", "it must be greater than 0"),
        ("student.train.schedule=up", "it must be 'linear', 'cosine' or 'constant'"),
        ("data=3", "data is 3; it must be a mapping"),
        ("data.labels=[one]", "it must be a list of at least 2"),
        ("data.labels=[a, a]", "names a class twice"),
        ("data.validation=[1]", "data.validation is [1]; it must be a text or a whole number"),
        ("teacher.class_weights=[a]", "class_weights is ['a']; it must be 'balanced' or a list"),
        ("data.validation=0", "0 is no number of rows to hold out"),
        ("data.source.deeper=1", "unknown key 'data.source.deeper'"),
        ("name=../elsewhere", "name is '../elsewhere'"),
        ("synthesis.max_candidates_per_class=5", "at least synthesis.n_per_class, which is 2000"),
        ("synthesis={precision: int8, engine: transformers}", "engine=batch alone has"),
        ("synthesis={precision: int8, generate_pool: {gpus: 1}}", "which is for CPUs"),
        ("teacher.train.precision=int8", "'auto', 'fp32', 'bf16' or 'fp16'"),
        ("generator.prompts={positive: [so]}", "one for each of data.labels: negative, positive"),
        ("synthesis.verify_pool={min_actors: 3, max_actors: 1}", "must be at least min_actors"),
        ("data.validation=0.1", "0.1 is no number of rows"),
        ("data.labels=[1, 2]", "it must be a text; put it in quotes"),
        ("generator.control_tokens={positive: <X>, negative: <X>}", "each class needs one of its"),
        ("generator.control_tokens={positive: '', negative: <X>}", "each class needs one of its"),
        ("distil.alpha", "'distil.alpha' is not an override; write key=value"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_key_and_the_remedy(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [override])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        load_config("quickstrat")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "- a\n- b\n",
            "a: [1\n",
            "",
            "name: 2024-13-45",
            "name: !!int abc",
            "seed: " + "1" * 5000,
        ),
        *("name: !!timestamp abc", "name: !!bool abc", "name: " + "[" * 600),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"r\.yaml"):
        load_config(str(tmp_path / "r.yaml"))


HELD = ", ".join(f"&{name} [{', '.join([f'*{of}'] * 10)}]" for of, name in ("ab", "bc", "cd", "de"))
BOMB = f"[&a [x, x, x, x, x, x, x, x, x, x], {HELD}]"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=2024-13-45", "seed is '2024-13-45'; it must be a whole number"),
        ("seed=" + "[" * 600, "[[[["),
        ("seed=" + "1" * 5000, "1 … 1"),
        (f"name={BOMB}", "values"),
        ("teacher.train.deepspeed=&a {a: *a}", "without anchors"),
        (f"teacher.train.deepspeed={{a: {BOMB}}}", "without anchors"),
        ("teacher.train.deepspeed=~nosuchuser/x", "cannot be read as JSON"),
    ],
)
def test_a_value_without_end_is_one_sentence(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [override])
    assert told.replace("1 … 1", "111 … 111") in str(caught.value)
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./" + "x" * 300, "~nosuchuser/x"])
def test_a_name_that_can_be_no_path_is_one_sentence(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no recipe or file"):
        load_config(name)
    config = load_config("quickstart", [f"teacher.model={name}", f"data.source={name}.csv"])
    with pytest.raises(ModelError, match="there is no model directory"):
        resolve_model(config.teacher.model)
    with pytest.raises(ModelError, match="there is no model"):
        resolve_model(f"package:{name}")
    with pytest.raises(DataError, match="there is no file"):
        read_rows(config.data.source, config.data)
    text = load_pretrain_config("reviews-encoder-mini", [f"text.source={name}"]).text
    with pytest.raises(DataError, match="there is no corpus"):
        document_files(text)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(str(tmp_path / "r.yaml"))


def test_overrides_reach_any_depth_and_numbers_may_be_written_as_usual() -> None:
    config = load_config("quickstart", ["teacher.train.learning_rate=5e-5", "synthesis.tau=0.7"])
    assert config.teacher.train.learning_rate == 5e-5
    assert config.synthesis.tau == 0.7
    assert config.teacher.train.batch_size == 32  # what stood beside it is still there


def test_a_section_in_part_has_the_rest_from_its_own_defaults(tmp_path: Path) -> None:
    recipe = load_config("quickstart").model_dump(mode="json")
    del recipe["student"]["train"], recipe["generator"]["train"]
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    plain = load_config(str(tmp_path / "r.yaml"))
    changed = load_config(str(tmp_path / "r.yaml"), ["student.train.batch_size=64"])
    assert changed.student.train == plain.student.train.model_copy(update={"batch_size": 64})
    recipe["generator"]["train"] = {"epochs": 5}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    train = load_config(str(tmp_path / "r.yaml")).generator.train
    assert train == plain.generator.train.model_copy(update={"epochs": 5})


def test_a_default_within_a_default_is_kept_too() -> None:
    overrides = ["text.source=x.txt", "masked.shape.width=128"]
    assert PretrainConfig.model_validate(
        {"name": "x", "kind": "encoder", "text": {"source": "x.txt"}, "masked": {"shape": {}}}
    ).masked.shape == ShapeConfig(layers=2)
    assert load_pretrain_config("reviews-electra-mini", overrides).masked.shape.layers == 2


def test_a_key_that_is_written_twice_is_refused(tmp_path: Path) -> None:
    text = yaml.safe_dump(load_config("quickstart").model_dump(mode="json"))
    (tmp_path / "r.yaml").write_text(f"{text}\ndistil: {{beta: 0.2}}\n")
    with pytest.raises(ConfigError, match="the key 'distil' is written twice"):
        load_config(str(tmp_path / "r.yaml"))


def test_relative_paths_become_absolute(small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_data)
    config = load_config("quickstart", ["data.source=train.parquet"])
    assert config.data.source == str(small_data / "train.parquet")


def test_a_configuration_cannot_be_changed() -> None:
    config = load_config("quickstart")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_config_yaml_of_a_run_reads_back_the_same(
    finished_run: Path, quick_overrides: list[str]
) -> None:
    config = read_run_config(finished_run)
    assert config == load_config("quickstart", quick_overrides)
    assert config == load_config(str(finished_run / "config.yaml"))


def test_the_keys_of_the_contract_exist() -> None:
    contract = """name seed data.source data.text_column data.label_column data.labels data.n_seed
        data.validation data.test teacher.model teacher.train generator.model
        generator.control_tokens generator.prompts generator.frozen_blocks generator.train
        synthesis.n_per_class synthesis.tau synthesis.max_candidates_per_class synthesis.unit_size
        synthesis.engine synthesis.sampling.max_new_tokens synthesis.sampling.temperature
        synthesis.sampling.top_k synthesis.sampling.top_p synthesis.sampling.repetition_penalty
        synthesis.screens.min_tokens synthesis.screens.charset synthesis.screens.max_repetition
        synthesis.screens.near_duplicates synthesis.generate_pool.min_actors
        synthesis.verify_pool.max_actors synthesis.generate_pool.gpus synthesis.verify_pool.cpus
        student.model student.train distil.alpha distil.beta distil.temperature tracking.uri
        tracking.experiment student.train.engine student.train.workers student.train.epochs
        student.train.gpus_per_worker student.train.batch_size student.train.learning_rate
        student.train.schedule student.train.warmup_ratio student.train.precision
        student.train.early_stopping"""
    assert set(contract.split()) <= set(known_keys())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["teacher.train.engine=torch", "teacher.train.zero_stage=2"],
            "zero_stage is for DeepSpeed",
        ),
        (["student.train.offload=parameters"], "offload=parameters needs zero_stage=3"),
        (["student.train.metric=perplexity"], "student.train.metric is 'perplexity'"),
        (["generator.train.metric=macro_f1"], "generator.train.metric is 'macro_f1'"),
        (["teacher.class_weights=[1.0]"], "teacher.class_weights has 1 entries"),
        (["teacher.class_weights=[0,0]"], "the weights are [0.0, 0.0]; one at least must be above"),
        (["teacher.class_weights=[.inf,1]"], "the weights are [inf, 1.0]; each must be a number"),
        (["teacher.class_weights=[-1,1]"], "the weights are [-1.0, 1.0]; each must be a number"),
        (
            ["generator.lora_rank=8", "generator.frozen_blocks=2"],
            "frozen_blocks is 2 and lora_rank",
        ),
        (["teacher.train.deepspeed=nowhere.json"], "cannot be read as JSON"),
        (["teacher.train.zero_stage=4"], "teacher.train.zero_stage is 4"),
    ],
)
def test_a_training_that_contradicts_itself_is_a_sentence(
    overrides: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load_config("quickstart", overrides)


def test_a_path_to_deepspeeds_settings_becomes_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    config = load_config("quickstart", [f"teacher.train.deepspeed={tmp_path / 'ds.json'}"])
    assert config.teacher.train.deepspeed == {"zero_optimization": {"stage": 2}}
