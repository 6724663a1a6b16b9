"""Large causal language models by vLLM (Kwon et al., SOSP 2023). Optional: the extra `vllm`."""

import os
from importlib.util import find_spec
from pathlib import Path

import torch

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.data.units import Unit
from sentisynth.errors import ModelError
from sentisynth.models.loading import read_config
from sentisynth.seeding import derive_seed

_SHARE_OF_GPU, _SHARE_OF_SHARE = 0.6, 0.9  # a generator's where nothing is set; room for the rest
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def check_installed() -> None:
    """Raise ModelError where vLLM is not."""
    if find_spec("vllm") is None:
        raise ModelError(
            "synthesis.engine is vllm, which is not installed; install sentisynth with the extra "
            "vllm, or set synthesis.engine=auto"
        )


class VllmEngine:
    """Each candidate has a generator of random numbers of its own, seeded by (seed, label, index);
    the arithmetic of a step may still depend on which rows share it, so a candidate is the same
    within its unit, on the same kind of GPU.

    The scheduler runs in this process: in another one, units would depend on when messages arrive.
    """

    def __init__(
        self, path: Path, end_id: int, dtype: torch.dtype, longest: int, share: float | None
    ) -> None:
        """`longest` tokens of a prompt and its continuation; `share` of a GPU's memory."""
        check_installed()
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM

        room = getattr(read_config(path).get_text_config(), "max_position_embeddings", None)
        self._end_id = end_id
        self._longest = longest if room is None else min(longest, room)
        try:
            self._llm = LLM(
                str(path),
                runner="generate",
                dtype=_NAMES[dtype],
                max_model_len=self._longest,
                gpu_memory_utilization=_SHARE_OF_SHARE * min(share or _SHARE_OF_GPU, 1.0),
                enable_prefix_caching=False,  # else a unit's arithmetic depends on the one before
                load_format="safetensors",
                disable_log_stats=True,
                seed=0,
            )
        except ValueError as error:  # a kind of model, or room, that it has not
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"vLLM cannot run {path} ({reason}); set synthesis.engine") from None

    def __call__(
        self, prompt: list[int], unit: Unit, seed: int, sampling: SamplingConfig
    ) -> list[list[int]]:
        from vllm import SamplingParams

        settings = [
            SamplingParams(
                seed=derive_seed(seed, "candidate", unit.label, unit.first_index + i),
                max_tokens=min(sampling.max_new_tokens, self._longest - len(prompt)),
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                repetition_penalty=sampling.repetition_penalty,
                stop_token_ids=[self._end_id],
                detokenize=False,
            )
            for i in range(unit.size)
        ]
        prompts = [{"prompt_token_ids": prompt}] * unit.size
        rows = [
            list(found.outputs[0].token_ids)
            for found in self._llm.generate(prompts, settings, use_tqdm=False)
        ]
        return [row[:-1] if row and row[-1] == self._end_id else row for row in rows]
