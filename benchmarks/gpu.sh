#!/bin/sh
# All GPU tests and benchmarks that need no Ray, in one call of less than 9 minutes.
#     benchmarks/gpu.sh [OUT]        PYTHON=python3 by default; results go to OUT
set -u
cd "$(dirname "$0")/.." || exit
out=${1:-${OUT:-benchmarks/results}}
python=${PYTHON:-python3}
export PYTHONPATH=".:benchmarks${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr 'A-Z ' 'a-z-') || exit 1
stamp=$(date +%F)-${gpu:?no GPU}
model=$out/gpt2-small-random
failed=0

# bounded SECONDS COMMAND...: so that one that hangs leaves time for the others
bounded() {
    timeout -k 5 "$@" || { echo "failed, or not done in $1 s: $*"; failed=1; }
}

bounded 120 "$python" -m pytest -m gpu tests/generation/test_engines_gpu.py
bounded 130 "$python" benchmarks/generation.py --model "$model" \
    --engines ours:bf16 transformers:bf16 transformers-static:bf16 --batches 256 2048 \
    --repeats 3 --json "$out/$stamp-generation.json"
bounded 60 "$python" benchmarks/verification.py --length 64 --repeats 3 \
    --json "$out/$stamp-verification.json"
bounded 60 "$python" benchmarks/verification.py --repeats 3 \
    --json "$out/$stamp-verification-real-lengths.json"
bounded 70 "$python" benchmarks/generation.py --model "$model" --engines ours:bf16 \
    --batches 1 32 4096 8192 --repeats 3 --json "$out/$stamp-generation-sizes.json"
bounded 80 "$python" benchmarks/generation.py --model "$model" --ends \
    --engines ours:bf16 transformers-static:bf16 --batches 2048 --repeats 3 \
    --json "$out/$stamp-generation-ends.json"
rm -rf "$model"
exit $failed
