#!/bin/sh
# All GPU tests and benchmarks that need no Ray, in one call of some minutes.
#     benchmarks/gpu.sh [OUT]        PYTHON=python3 by default; results go to OUT
set -u
cd "$(dirname "$0")/.." || exit
out=${1:-benchmarks/results}
python=${PYTHON:-python3}
stamp=$(date +%F)-gpu
export PYTHONPATH=".:benchmarks${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || exit 1
failed=0
$python -m pytest -m gpu tests/generation tests/stages tests/models || failed=1
$python benchmarks/generation.py --model "$out/gpt2-small-random" \
    --engines ours:bf16 transformers:bf16 transformers-static:bf16 --batches 256 2048 \
    --repeats 3 --json "$out/$stamp-generation.json" || failed=1
$python benchmarks/generation.py --model "$out/gpt2-small-random" --engines ours:bf16 \
    --batches 1 32 4096 8192 --repeats 3 --json "$out/$stamp-generation-sizes.json" || failed=1
$python benchmarks/generation.py --model "$out/gpt2-small-random" --ends \
    --engines ours:bf16 transformers-static:bf16 --batches 2048 --repeats 3 \
    --json "$out/$stamp-generation-ends.json" || failed=1
$python benchmarks/verification.py --length 64 --repeats 3 \
    --json "$out/$stamp-verification.json" || failed=1
$python benchmarks/verification.py --repeats 3 \
    --json "$out/$stamp-verification-real-lengths.json" || failed=1
rm -rf "$out/gpt2-small-random"
exit $failed
