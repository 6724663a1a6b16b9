"""The protocol of generation engines: a unit in, texts and token counts out. No Ray."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.config.types import RunConfig
from sentisynth.data.units import Unit
from sentisynth.errors import ModelError
from sentisynth.generation.batch_engine import BatchEngine
from sentisynth.generation.gpt2 import check_config
from sentisynth.generation.graphs import POSITIONS
from sentisynth.generation.hf_engine import TransformersEngine
from sentisynth.generation.vllm_engine import VllmEngine, check_installed
from sentisynth.models.devices import best_device, inference_dtype, working_dtype
from sentisynth.models.generator import (
    control_token_id,
    count_parameters,
    load_causal_model,
    prompt_ids,
)
from sentisynth.models.inference import cast_weights
from sentisynth.models.loading import load_tokenizer, read_config

_LEAST_ROWS = 8


class Engine(Protocol):
    """Continues one prompt many times; what it returns depends on the arguments alone."""

    def __call__(
        self, prompt: list[int], unit: Unit, seed: int, sampling: SamplingConfig
    ) -> Sequence[list[int] | None]:
        """Token ids of `unit.size` continuations, in index order, without prompt and end; None for
        one whose logits were not finite.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Candidates of a unit, in index order."""

    texts: list[str | None]
    """Decoded continuations, not cleaned; the prompt is not part of them. None where the logits
    were not finite."""
    n_tokens: list[int]
    prompt: str


ENGINES: dict[str, Callable[[PreTrainedModel, PreTrainedTokenizerBase, torch.dtype], Engine]] = {
    "batch": BatchEngine,
    "transformers": TransformersEngine,
}
"""Those that take a model in memory; vLLM loads its own."""


class UnitGenerator:
    """A fine-tuned generator in memory, ready to turn units into candidates."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self._config, self._tokenizer = config, load_tokenizer(path)
        self._control_ids = _control_ids(self._tokenizer, config)
        self.engine_name = engine_of(path, config.synthesis.engine)
        self._engine = self._load(path)

    def _load(self, path: Path) -> Engine:
        synthesis, device = self._config.synthesis, best_device()
        dtype = inference_dtype(synthesis.precision, device)
        longest = _longest_prompt(self._tokenizer, self._config)
        if self.engine_name == "vllm":
            end_id = self._tokenizer.eos_token_id
            longest += synthesis.sampling.max_new_tokens
            return VllmEngine(path, end_id, dtype, longest, synthesis.generate_pool.gpus)
        model = load_causal_model(path).eval()
        if self.engine_name == "batch":
            return BatchEngine(model.to(device), self._tokenizer, dtype, longest)
        cast_weights(model, working_dtype(dtype, device))  # before it takes the device's memory
        return ENGINES[self.engine_name](model.to(device), self._tokenizer, dtype)

    def __call__(self, unit: Unit) -> Generated:
        """All candidates of a unit. The prompts of a class take turns by unit number."""
        prompts = self._config.prompts(unit.label)
        prompt = prompts[unit.number % len(prompts)]
        ids = prompt_ids(self._tokenizer, self._control_ids[unit.label], prompt)
        rows = self._engine(ids, unit, self._config.seed, self._config.synthesis.sampling)
        texts = self._tokenizer.batch_decode([row or [] for row in rows], skip_special_tokens=True)
        return Generated(
            texts=[None if row is None else text for row, text in zip(rows, texts, strict=True)],
            n_tokens=[len(row or []) for row in rows],
            prompt=prompt,
        )


def choose_engine(name: str, model: Any) -> str:
    """Resolve `auto`: ours for the models that it runs, transformers' `generate` for the rest."""
    if name != "auto":
        return name
    try:
        check_config(model)
    except ModelError:
        return "transformers"
    return "batch"


def check_engine(config: RunConfig, model: Any) -> None:
    """Raise ModelError where `synthesis` asks for what does not run models so configured."""
    asked = config.synthesis
    if asked.engine == "batch":
        check_config(model)
    if asked.precision == "int8" and choose_engine(asked.engine, model) != "batch":
        raise ModelError(
            f"synthesis.precision=int8 is of the batch engine, which does not run this "
            f"{model.model_type} model; take another precision, or auto"
        )


def engine_of(path: Path, name: str) -> str:
    """The engine that runs the model in `path`; its weights are not read."""
    return choose_engine(name, read_config(path))


def rows_that_fit(
    path: Path, config: RunConfig, memory: int, most: int, *, weight: int = 4, number: int = 4
) -> int:
    """The largest batch, `most` or a half, a quarter … of it and at least eight, that the generator
    in `path` is likely to run in so many bytes, of which each of its weights takes `weight`, and
    each key and value `number`.
    """
    whole = read_config(path)
    weights, model = weight * count_parameters(whole), whole.get_text_config()
    longest = _longest_prompt(load_tokenizer(path), config)
    longest += config.synthesis.sampling.max_new_tokens
    longest += -longest % POSITIONS
    width, heads = model.hidden_size, getattr(model, "num_attention_heads", None) or 1
    per_head = getattr(model, "head_dim", None) or width // heads
    kept = per_head * (getattr(model, "num_key_value_heads", None) or heads)
    row = number * 2 * model.num_hidden_layers * kept * longest  # keys and values
    row += 4 * (4 * model.vocab_size + 32 * width)  # what the sampler makes of logits; activations
    size = most
    while size > _LEAST_ROWS and weights + size * row > memory:
        size //= 2
    return size


def _control_ids(tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> list[int]:
    labels = range(len(config.data.labels))
    return [control_token_id(tokenizer, config.control_token(label)) for label in labels]


def _longest_prompt(tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> int:
    """Tokens of the longest prompt of any class, control token included."""
    lengths = [
        len(prompt_ids(tokenizer, 0, prompt))
        for label in range(len(config.data.labels))
        for prompt in config.prompts(label)
    ]
    return max(lengths)


def check_generator(path: Path, config: RunConfig) -> None:
    """Read what a fine-tuned generator needs without its weights. Raises ModelError.

    The engine runs its architecture, it knows the control tokens, and each prompt leaves room.
    """
    tokenizer, model = load_tokenizer(path), read_config(path)
    check_engine(config, model)
    if config.synthesis.engine == "vllm":
        check_installed()
    room = getattr(model, "max_position_embeddings", None)
    for label, control_id in enumerate(_control_ids(tokenizer, config)):
        for prompt in config.prompts(label):
            n = len(prompt_ids(tokenizer, control_id, prompt))
            if room is not None and n >= room:
                raise ModelError(
                    f"the prompt {prompt[:40]!r} has {n} tokens; the generator takes {room} with "
                    f"the text: shorten it in generator.prompts"
                )
