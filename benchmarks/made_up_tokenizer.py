"""A byte-level BPE of 50,257 made-up pieces: the exporters of the peers insist on a tokenizer."""

import json
import sys
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import GPT2TokenizerFast

out = Path(sys.argv[1])
letters = sorted(ByteLevel.alphabet())
pairs = [(a, b) for a in letters for b in letters][: 50_256 - len(letters)]
pieces = [*letters, *(a + b for a, b in pairs), "<|endoftext|>"]
vocabulary, merges = out / "vocab.json", out / "merges.txt"
vocabulary.write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
merges.write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in pairs) + "\n")
GPT2TokenizerFast(str(vocabulary), str(merges)).save_pretrained(out)
