"""Any causal language model by transformers' `generate`: the reference, and the fallback."""

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.data.units import Unit
from sentisynth.errors import ModelError
from sentisynth.generation.sampling import until_end
from sentisynth.models.devices import working_dtype
from sentisynth.models.inference import cast_weights
from sentisynth.seeding import derive_seed


class TransformersEngine:
    """Draws from torch's generator, seeded by the unit's name: a unit is the same on any worker,
    a candidate only within its unit.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
    ) -> None:
        cast_weights(model, working_dtype(dtype, model.device))
        self._model = model
        self._pad_id, self._eos_id = tokenizer.pad_token_id, tokenizer.eos_token_id

    @torch.inference_mode()
    def __call__(
        self, prompt: list[int], unit: Unit, seed: int, sampling: SamplingConfig
    ) -> list[list[int] | None]:
        room = getattr(self._model.config, "max_position_embeddings", None)
        steps = sampling.max_new_tokens
        if room is not None:
            steps = min(steps, room - len(prompt))
        inputs = torch.tensor([prompt] * unit.size, device=self._model.device)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, "unit", unit.label, unit.first_index))
            out: torch.Tensor = self._model.generate(
                inputs,
                logits_processor=LogitsProcessorList([_Finite()]),
                attention_mask=torch.ones_like(inputs),
                do_sample=True,
                max_new_tokens=steps,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                repetition_penalty=sampling.repetition_penalty,
                pad_token_id=self._pad_id,
                eos_token_id=self._eos_id,
            )
        return until_end(out[:, len(prompt) :], self._eos_id)


class _Finite(LogitsProcessor):
    """Ends a unit whose logits are not finite before torch draws from them, which on a GPU takes
    the whole process along.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        del input_ids
        if not (scores < torch.inf).all():  # -inf is a token that cannot be drawn
            raise ModelError(
                "the generator's logits are not finite, and transformers then makes no row of a "
                "unit; set synthesis.precision=fp32, or look at the generator"
            )
        return scores
