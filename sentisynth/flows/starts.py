"""What a configuration and its starting models tell before anything is made: a mistake that would
end one training is not found after the hours of those before it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sentisynth.config.types import RunConfig, TrainConfig
from sentisynth.errors import ConfigError
from sentisynth.flows.session import Session
from sentisynth.generation.engine import check_engine
from sentisynth.generation.vllm_engine import check_installed
from sentisynth.models.classifier import (
    FRESH,
    check_fresh,
    check_head,
    first_layers,
    starts_from_teacher,
)
from sentisynth.models.devices import check_int8
from sentisynth.models.generator import check_frozen
from sentisynth.models.loading import check_length
from sentisynth.runtime.placement import place_stream
from sentisynth.runtime.ray_cluster import cluster_resources
from sentisynth.training.deepspeed_engine import deepspeed_settings
from sentisynth.training.engine import chosen_engine


def check_starts(config: RunConfig, sections: Sequence[str], read: Callable[[str], Any]) -> None:
    """Raise ModelError or ConfigError for what a training of these sections would fail at.

    `read` gives the configuration of a model reference; weights are not read.
    """
    for section in sections:
        settings = getattr(config, section)
        if section == "student" and settings.model.startswith(FRESH):
            check_fresh(settings.model, settings.max_length)
        elif section == "student" and starts_from_teacher(settings.model):
            teacher = read(config.teacher.model)
            first_layers(settings.model, teacher)
            check_length(teacher, settings.max_length, "student.max_length")
        else:
            start = read(settings.model)
            check_length(start, settings.max_length, f"{section}.max_length")
            if section != "generator":
                check_head(start, len(config.data.labels))
            else:
                _check_generator(config, start)
        _check_deepspeed(section, settings.train)


def check_generation(session: Session) -> None:
    """Raise ModelError or PlacementError for what would end generation after the hours of the
    trainings: actors that fit on no node, int8 where a generator will have a GPU, vLLM that is not
    installed. A pool that is kept has its own.
    """
    synthesis, directory = session.config.synthesis, session.directory
    if not directory.overwrites and directory.readable_stamp("pool") is not None:
        return
    if synthesis.engine == "vllm":
        check_installed()
    placed = place_stream(synthesis, cluster_resources()).generate
    if synthesis.precision == "int8":
        check_int8("cuda" if placed.gpus else "cpu")


def _check_generator(config: RunConfig, start: Any) -> None:
    check_engine(config, start)
    if config.synthesis.precision == "int8":
        check_int8("cpu")
    n_frozen = config.generator.frozen_blocks
    if n_frozen:
        check_frozen(n_frozen, start.get_text_config().num_hidden_layers)


def _check_deepspeed(section: str, train: TrainConfig) -> None:
    if chosen_engine(train) == "deepspeed":
        try:
            deepspeed_settings(train, None, train.workers)
        except ConfigError as error:
            raise ConfigError(f"{section}: {error}") from None
