"""Generation engines side by side: tokens a second of the shape of GPT-2 small.

    python benchmarks/generation.py [--engines NAME:PRECISION ...] [--batches 1 32 256]
        [--repeats 5] [--ends] [--model DIR] [--json FILE]

Random weights of GPT-2 small's shape (124 M parameters, 50,257 tokens), a prompt of 4 tokens, 64
new ones, temperature 0.8, top-k 50, top-p 0.95, repetition penalty 1.2. Each engine runs in a
process of its own, in turn in each repetition, so that all see the same weather. With `--ends`
rows end as real texts do (the end token is made likely enough for some 22 tokens a row), and
tokens are those before the end. The limit of ours and of transformers is that of the precision,
from the best rate of matrix products and memory bandwidth that are measured before each batch size
and after; with `--ends`, and of peers with formats of their own, none is reckoned. Peers:
the extra `bench`; OpenVINO and CTranslate2 need the model in their own formats
beside it (`benchmarks/export_peers.sh DIR`), and are left out otherwise.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from engines import NEW, PROMPT
from environment import environment
from limits import limit, limits

HERE = Path(__file__).parent
CPU_ENGINES = [
    "ours",
    "transformers",
    "openvino",
    "openvino-exact",
]  # in the precision that ours takes there
GPU_ENGINES = ["ours:bf16", "transformers:bf16", "transformers-static:bf16", "vllm:bf16"]
END_LOGIT = 2.5  # about one token in 22 is the end then; found by trial


class Worker:
    """An engine in its process."""

    def __init__(self, name: str, model: Path, threads: int) -> None:
        command = [sys.executable, str(HERE / "engines.py"), name, str(model), str(threads)]
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  kept as long as the worker
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.is_ready = self._answer() is not None

    def run(self, batch: int, ends: bool) -> dict[str, Any] | None:
        try:
            print(json.dumps({"batch": batch, "ends": ends}), file=self._process.stdin, flush=True)
        except BrokenPipeError:  # it has ended
            return None
        return self._answer()

    def _answer(self) -> Any:
        for line in self._process.stdout or ():
            try:
                return json.loads(line)
            except ValueError:  # libraries print
                continue
        return None

    def why(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode().strip().splitlines()
        return lines[-1] if lines else "it ended without a word"

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def make_model(directory: Path) -> None:
    """GPT-2 small's shape with random weights, and an end token as likely as in real texts."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    end_id = model.config.eos_token_id
    with torch.no_grad():
        row = model.transformer.wte.weight[end_id]
        row.zero_()
        row[0] = 1.0  # the end's logit is the first element of the last norm's output
        model.transformer.ln_f.weight[0] = 0.0
        model.transformer.ln_f.bias[0] = END_LOGIT
    model.save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ends", action="store_true")
    parser.add_argument("--model", type=Path, default=Path("runs/benchmarks/gpt2-small-random"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not (arguments.model / "config.json").is_file():
        make_model(arguments.model)
    on_gpu = torch.cuda.is_available()
    names = arguments.engines or (GPU_ENGINES if on_gpu else cpu_engines())
    measured: dict[str, float] = {}
    workers, left_out = [], dict[str, str]()
    for name in names:
        worker = Worker(name, arguments.model, arguments.threads)
        if worker.is_ready and worker.run(2, arguments.ends) is not None:
            workers.append(worker)
        else:
            left_out[name] = worker.why()
            print(f"{name} is left out: {left_out[name]}", file=sys.stderr)
    rates: dict[int, dict[str, list[float]]] = {}
    for batch in arguments.batches:
        measured = largest(measured, limits(arguments.threads))
        found = rates[batch] = {}
        for turn in range(-(3 if arguments.ends and on_gpu else 1), arguments.repeats):
            for worker in list(workers):
                answer = worker.run(batch, arguments.ends)
                if answer is None:
                    left_out[worker.name] = f"at batch {batch}: {worker.why()}"
                    print(f"{worker.name} ended {left_out[worker.name]}", file=sys.stderr)
                    workers.remove(worker)
                    found.pop(worker.name, None)
                elif turn >= 0:  # what an engine does once for a shape is not timed
                    rate = answer["tokens"] / answer["seconds"]
                    found.setdefault(worker.name, []).append(rate)
        measured = largest(measured, limits(arguments.threads))
        if found:
            print_table(batch, found, measured, arguments.ends)
        result = {
            **environment(),
            "threads": arguments.threads,
            "ends": arguments.ends,
            "measured limits": measured,
            "left out": left_out,
            "tokens per second": {
                batch: {name: [round(rate, 1) for rate in taken] for name, taken in by.items()}
                for batch, by in rates.items()
            },
        }
        if arguments.json:  # after each batch: the next one may be too large
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    for worker in workers:
        worker.end()
    if arguments.engines and left_out:
        sys.exit(1)  # who names engines wants them


def largest(*measured: dict[str, float]) -> dict[str, float]:
    """Of each figure the best that was seen."""
    return {name: max(found.get(name, 0.0) for found in measured) for name in measured[-1]}


def cpu_engines() -> list[str]:
    """The engines of a CPU: bf16 where it multiplies that; where it does not, fp32, and ours with
    weights in fp16 too. Ours in int8 where that is multiplied.
    """
    from sentisynth.models.devices import inference_dtype, multiplies_int8

    has_bf16 = inference_dtype("auto", torch.device("cpu")) == torch.bfloat16
    precision = "bf16" if has_bf16 else "fp32"
    more = [] if has_bf16 else ["ours:fp16"]
    more += ["ours:int8"] if multiplies_int8("cpu") else []
    return [*(f"{name}:{precision}" for name in CPU_ENGINES), *more, "ctranslate2:int8"]


def print_table(
    batch: int, rates: dict[str, list[float]], measured: dict[str, float], ends: bool
) -> None:
    medians = {name: statistics.median(found) for name, found in rates.items()}
    own = next((name for name in rates if name.startswith("ours:")), "ours:bf16")
    base = rates.get(own) or max(rates.values(), key=statistics.median)
    positions = len(PROMPT) + NEW / 2
    shares = {}
    for name in rates:
        engine, _, precision = name.partition(":")
        bound = limit(batch, measured, precision, positions)
        is_known = not ends and engine.startswith(("ours", "transformers"))
        shares[name] = f"{medians[name] / bound:9.0%}" if is_known else f"{'–':>9}"
    print(f"\nbatch {batch}   measured {measured}")
    print(f"{'engine':24} {'tokens/s':>10} {'min':>9} {'max':>9} {'ours / it':>10} {'of limit':>9}")
    for name, found in rates.items():
        ratio = statistics.median(x / y for x, y in zip(base, found, strict=True))
        print(
            f"{name:24} {medians[name]:10,.0f} {min(found):9,.0f} {max(found):9,.0f} "
            f"{ratio:10.2f} {shares[name]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
