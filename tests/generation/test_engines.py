from pathlib import Path

import pytest
import torch

from sentisynth.config.load import load_config
from sentisynth.config.types import SamplingConfig
from sentisynth.data.units import Unit
from sentisynth.errors import ModelError
from sentisynth.generation.batch_engine import BatchEngine
from sentisynth.generation.engine import ENGINES, UnitGenerator, check_generator, choose_engine
from sentisynth.models.classifier import load_classifier
from sentisynth.models.generator import load_generator, load_sampler
from tests.conftest import RESOURCES

SAMPLING = SamplingConfig(max_new_tokens=20, temperature=1.0, top_k=40)
PROMPT = [0, 17, 230]


@pytest.fixture(scope="module")
def mini():
    return load_sampler(RESOURCES / "gpt2-mini")


def test_greedy_tokens_equal_those_of_transformers(mini) -> None:
    """Top-1 sampling is greedy decoding; the penalty sees prompt and continuation alike."""
    model, tokenizer = mini
    engine = BatchEngine(model, tokenizer, torch.float32)
    sampling = SamplingConfig(max_new_tokens=40, top_k=1, repetition_penalty=1.2)
    for prompt in ([0], [0, 55], [0, 301, 12, 77], [0, 4000]):
        (row,) = engine(prompt, Unit(0, 0, 1), 1, sampling)
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=40,
            repetition_penalty=1.2,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert row == (out[: out.index(0)] if 0 in out else out)


@pytest.mark.parametrize("name", list(ENGINES))
def test_a_unit_is_the_same_each_time_and_units_differ(mini, name: str) -> None:
    model, tokenizer = mini
    engine = ENGINES[name](model, tokenizer, torch.float32)
    first = engine(PROMPT, Unit(0, 0, 8), 1, SAMPLING)
    torch.rand(3)  # whatever else drew from torch's generator
    assert engine(PROMPT, Unit(0, 0, 8), 1, SAMPLING) == first
    for other, seed in ((Unit(0, 1, 8), 1), (Unit(1, 0, 8), 1), (Unit(0, 0, 8), 2)):
        assert engine(PROMPT, other, seed, SAMPLING) != first
    assert len(first) == 8 and len({tuple(row) for row in first}) > 4


def test_a_candidate_is_a_function_of_its_name(mini) -> None:
    """Candidates 8 … 15 are the same whether their unit is 8 or 16 rows, leaving early or not."""
    engine = BatchEngine(*mini, torch.float32)
    sampling = SamplingConfig(max_new_tokens=60, temperature=1.2)
    small = engine(PROMPT, Unit(0, 1, 8), 1, sampling)
    assert engine(PROMPT, Unit(0, 0, 16), 1, sampling)[8:] == small
    assert len({len(row) for row in small}) > 1  # rows ended at different steps


@pytest.mark.parametrize("name", list(ENGINES))
def test_no_candidate_is_longer_than_asked_or_than_the_model(mini, name: str) -> None:
    model, tokenizer = mini
    engine = ENGINES[name](model, tokenizer, torch.float32)
    for asked, limit in ((20, 20), (500, 128 - len(PROMPT))):
        sampling = SamplingConfig(max_new_tokens=asked, temperature=2.0)
        rows = engine(PROMPT, Unit(0, 0, 4), 1, sampling)
        assert max(map(len, rows)) <= limit
        assert all(tokenizer.eos_token_id not in row for row in rows)


def test_auto_takes_ours_for_gpt2_and_generate_for_the_rest(mini, tiny_bert: Path) -> None:
    assert choose_engine("auto", "gpt2") == "batch"
    assert choose_engine("auto", "llama") == "transformers"
    bert, tokenizer = load_classifier(str(tiny_bert), ["n", "p"])
    with pytest.raises(ModelError, match="set synthesis.engine=transformers"):
        BatchEngine(bert, tokenizer, torch.float32)


def test_prompts_of_a_class_take_turns_by_unit(tmp_path: Path, tiny_gpt2: Path) -> None:
    model, tokenizer = load_generator(str(tiny_gpt2), ["<NEG>", "<POS>"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prompts = "generator.prompts={negative: [the worst], positive: [the best, a fine]}"
    config = load_config("quickstart", [prompts, "synthesis.sampling.max_new_tokens=3"])
    generate = UnitGenerator(tmp_path, config)
    found = [generate(Unit(1, n, 4)).prompt for n in range(3)]
    assert found == ["the best", "a fine", "the best"]
    assert generate(Unit(0, 2, 4)).prompt == "the worst"


def test_a_generator_is_checked_before_anything_starts(tmp_path: Path, tiny_gpt2: Path) -> None:
    model, tokenizer = load_generator(str(tiny_gpt2), ["<NEG>", "<POS>"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    check_generator(tmp_path, load_config("quickstart"))
    long = "generator.prompts={negative: [" + "so " * 64 + "], positive: ['']}"
    with pytest.raises(ModelError, match=r"has 6\d tokens; the generator takes 64"):
        check_generator(tmp_path, load_config("quickstart", [long]))
    other = "generator.control_tokens={negative: <BAD>, positive: <POS>}"
    with pytest.raises(ModelError, match="does not know the control token <BAD>"):
        check_generator(tmp_path, load_config("quickstart", [other]))
