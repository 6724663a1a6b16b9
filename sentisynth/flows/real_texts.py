"""What the screens compare candidates with. No Ray."""

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.run_directory import RunDirectory
from sentisynth.models.loading import load_tokenizer
from sentisynth.stages.screen import with_beginnings
from sentisynth.training.jobs import read_splits


def real_texts(config: RunConfig, directory: RunDirectory) -> tuple[list[str], list[str]]:
    """Those of validation and test, and those of the seed, that no candidate may be a copy of; of
    long ones also as much as a candidate can hold.
    """
    splits = read_splits(directory.require("corpus", "synthesize …"))
    tokenizer = load_tokenizer(directory.require("generator", "generator …"))
    most = min(config.generator.max_length - 1, config.synthesis.sampling.max_new_tokens)
    seed, *held_out = (
        with_beginnings(splits[name][schema.TEXT].to_pylist(), tokenizer, most)
        for name in ("seed", "validation", "test")
    )
    return [text for texts in held_out for text in texts], seed
