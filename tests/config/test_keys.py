"""What `sentisynth keys` prints."""

from pathlib import Path

import pytest

from sentisynth.cli import main
from sentisynth.config.keys import keys_of
from sentisynth.config.load import load_any_config, load_config, load_pretrain_config, recipe_names
from sentisynth.config.pretrain import PretrainConfig


@pytest.mark.parametrize("recipe", [*recipe_names(), *recipe_names(PretrainConfig)])
def test_every_key_says_what_it_means_and_can_be_given_back(recipe: str) -> None:
    config = load_any_config(recipe)
    found = list(keys_of(config))
    assert [key.name for key in found if not key.meaning] == []
    load = load_pretrain_config if isinstance(config, PretrainConfig) else load_config
    meaningless = ("train.epochs", "tracking.uri")  # what a pretraining or a recipe does not take
    given = [f"{k.name}={k.value}" for k in found if not k.name.endswith(meaningless)]
    assert load(recipe, given) == config


def test_keys_are_found_by_a_part_of_their_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "quickstart", "synthesis.engine"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "synthesis.engine=auto"
    assert "One of auto, batch," in " ".join(" ".join(told).split())
    assert main(["keys", "quickstart", "nothing"]) == 2
    assert "no key of quickstart has 'nothing' in its name" in capsys.readouterr().err
    own = tmp_path / "own.yaml"
    own.write_text("name: x\nkind: generator\ntext: {source: x.txt}\n")
    assert main(["keys", str(own), "kind"]) == 0
    assert capsys.readouterr().out.startswith("kind=generator\n")
