#!/bin/sh
# The model of benchmarks/generation.py in the formats of OpenVINO and CTranslate2, beside it.
#     benchmarks/export_peers.sh [DIR]
# Their exporters need an older transformers, so they get an environment of their own.
set -eu
model=${1:-runs/benchmarks/gpt2-small-random}
here=$(cd "$(dirname "$0")" && pwd)
environment=$model/exporters
python3 -m venv "$environment"
torch=$(grep '^torch==' "$here/../constraints.txt")
"$environment/bin/pip" install --quiet 'optimum-intel==2.2.*' 'transformers==4.57.*' \
    openvino-tokenizers 'ctranslate2==4.8.*' "$torch"
"$environment/bin/pip" uninstall --quiet --yes torchvision
"$environment/bin/python" "$here/made_up_tokenizer.py" "$model"
"$environment/bin/optimum-cli" export openvino --model "$model" \
    --task text-generation-with-past --weight-format fp16 "$model/openvino"
"$environment/bin/ct2-transformers-converter" --model "$model" --output_dir "$model/ctranslate2" \
    --force
