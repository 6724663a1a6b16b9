"""Engines of benchmarks/generation.py, each in a process of its own that reads tasks from stdin.

    python benchmarks/engines.py ENGINE MODEL THREADS     (started by generation.py)

A task is a line of JSON, {"batch": B, "ends": bool}; the answer is {"seconds": s, "tokens": n} for
one call that continues the prompt with up to 64 tokens. Peers import nothing of sentisynth.
"""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

PROMPT = [50000, 11, 22, 33]
NEW = 64
SAMPLING = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2}
CAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "int8": torch.int8}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def lengths(rows: list[list[int]], end_id: int) -> int:
    return sum(row.index(end_id) if end_id in row else len(row) for row in rows)


def ours(path: Path, precision: str) -> Any:
    """The batch engine."""
    from transformers import GPT2LMHeadModel

    from sentisynth.config.synthesis import SamplingConfig
    from sentisynth.data.units import Unit
    from sentisynth.generation.batch_engine import BatchEngine

    sampling = SamplingConfig(max_new_tokens=NEW, **SAMPLING)

    def engine(end_id: int) -> BatchEngine:
        model = GPT2LMHeadModel.from_pretrained(path).to(device()).eval()
        return BatchEngine(model, SimpleNamespace(eos_token_id=end_id), CAST[precision])

    made: dict[bool, Any] = {}
    seed = iter(range(10**9))

    def run(batch: int, ends: bool) -> int:
        if ends not in made:
            made.clear()
            made[ends] = engine(end_of(path) if ends else -1)
        rows = made[ends](PROMPT, Unit(0, next(seed), batch), 1, sampling)
        return sum(map(len, rows))

    return run


def transformers(path: Path, precision: str, **more: Any) -> Any:
    """`generate` with its default (dynamic) cache."""
    from transformers import GenerationConfig, GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(path, dtype=CAST[precision]).to(device()).eval()
    end_id = end_of(path)
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def run(batch: int, ends: bool) -> int:
        settings = GenerationConfig(
            do_sample=True,
            max_new_tokens=NEW,
            pad_token_id=0,
            eos_token_id=end_id if ends else None,
            **SAMPLING,
            **more,
        )
        inputs = torch.tensor([PROMPT] * batch, device=model.device)
        out = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), generation_config=settings
        )
        return lengths(out[:, len(PROMPT) :].tolist(), end_id if ends else -1)

    return run


def transformers_static(path: Path, precision: str) -> Any:
    """`generate` with a static cache."""
    return transformers(path, precision, cache_implementation="static")


def openvino(path: Path, precision: str, **more: str) -> Any:
    """OpenVINO GenAI, continuous batching; keys and values in 8 bits, as it does by itself."""
    import numpy as np
    import openvino
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.max_num_batched_tokens = 4096
    scheduler.max_num_seqs = 512
    hints = {"INFERENCE_PRECISION_HINT": precision.replace("fp32", "f32"), **more}
    pipeline = genai.ContinuousBatchingPipeline(str(path / "openvino"), scheduler, "CPU", hints)
    end_id = end_of(path)
    prompt = openvino.Tensor(np.array([PROMPT], dtype=np.int64))

    def run(batch: int, ends: bool) -> int:
        settings = genai.GenerationConfig()
        settings.max_new_tokens = NEW
        settings.do_sample = True
        settings.ignore_eos = not ends
        settings.eos_token_id = end_id
        if ends:
            settings.stop_token_ids = {end_id}
        for name, value in SAMPLING.items():
            setattr(settings, name, value)
        results = pipeline.generate([prompt] * batch, [settings] * batch)
        rows = [list(result.m_generation_ids[0]) for result in results]
        return lengths(rows, end_id if ends else -1)

    return run


def openvino_exact(path: Path, precision: str) -> Any:
    """The same with keys and values in the precision of its products, as in all other engines."""
    return openvino(path, precision, KV_CACHE_PRECISION=precision.replace("fp32", "f32"))


def ctranslate2(path: Path, precision: str) -> Any:
    """CTranslate2, int8 or fp32: it has no bf16 on a CPU."""
    import ctranslate2

    kind = {"int8": "int8", "fp32": "float32"}[precision]
    generator = ctranslate2.Generator(
        str(path / "ctranslate2"), compute_type=kind, intra_threads=torch.get_num_threads()
    )
    names = json.loads((path / "ctranslate2" / "vocabulary.json").read_text())
    prompt, end_id = [names[token] for token in PROMPT], end_of(path)

    def run(batch: int, ends: bool) -> int:
        results = generator.generate_batch(
            [prompt] * batch,
            max_length=NEW,
            min_length=0 if ends else NEW,
            end_token=names[end_id],
            sampling_topk=SAMPLING["top_k"],
            sampling_topp=SAMPLING["top_p"],
            sampling_temperature=SAMPLING["temperature"],
            repetition_penalty=SAMPLING["repetition_penalty"],
            include_prompt_in_result=False,
        )
        return sum(len(result.sequences_ids[0]) for result in results)

    return run


def vllm(path: Path, precision: str) -> Any:
    """VLLM on a GPU."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(path),
        dtype={"bf16": "bfloat16", "fp32": "float32"}[precision],
        skip_tokenizer_init=True,
        gpu_memory_utilization=0.3,  # the others are in memory, too
    )
    end_id = end_of(path)

    def run(batch: int, ends: bool) -> int:
        settings = SamplingParams(
            max_tokens=NEW,
            detokenize=False,
            ignore_eos=not ends,
            stop_token_ids=[end_id] if ends else [],
            **SAMPLING,
        )
        prompts = [{"prompt_token_ids": PROMPT}] * batch
        results = engine.generate(prompts, settings, use_tqdm=False)
        return lengths([[*r.outputs[0].token_ids] for r in results], end_id if ends else -1)

    return run


ENGINES = {
    "ours": ours,
    "transformers": transformers,
    "transformers-static": transformers_static,
    "openvino": openvino,
    "openvino-exact": openvino_exact,
    "ctranslate2": ctranslate2,
    "vllm": vllm,
}


def end_of(path: Path) -> int:
    return int(json.loads((path / "config.json").read_text())["eos_token_id"])


def main() -> None:
    name, precision = sys.argv[1].split(":")
    torch.set_num_threads(int(sys.argv[3]))
    run = ENGINES[name](Path(sys.argv[2]), precision)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        started = time.perf_counter()
        tokens = run(task["batch"], task["ends"])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(json.dumps({"seconds": time.perf_counter() - started, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
