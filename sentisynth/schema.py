"""Names of columns and Arrow schemas of every artefact. The contract between stages.

K is the number of classes.
"""

import pyarrow as pa

# Corpus: real rows.
TEXT = "text"
LABELS = "labels"

# Pool: one row per candidate, facts only; decisions are made by `data.select`.
CANDIDATE_ID = "candidate_id"
LABEL = "label"
PROMPT = "prompt"
N_TOKENS = "n_tokens"
REJECT_REASON = "reject_reason"
TEACHER_LOGITS = "teacher_logits"

# Dataset: what a student trains on.
SOFT_LABELS = "soft_labels"
WEIGHTS = "weights"
IS_SYNTH = "is_synth"

# Predictions of one model on one real split.
LOGITS = "logits"

# Reasons of a screen, in the order in which they are tried.
EMPTY = "empty"
TOO_SHORT = "too_short"
CHARSET = "charset"
REPETITION = "repetition"
LEAK = "leak"
SEED_COPY = "seed_copy"
DUPLICATE = "duplicate"

# Reasons why the models could not make or score a row: faults that are data.
UNTOKENIZABLE = "untokenizable"
NON_FINITE = "non_finite"
QUARANTINED = (UNTOKENIZABLE, NON_FINITE)

SCREEN_REASONS = (EMPTY, TOO_SHORT, CHARSET, REPETITION, LEAK, SEED_COPY, DUPLICATE, *QUARANTINED)

# Verdicts on what the teacher scored.
ACCEPTED = "accepted"
WRONG_LABEL = "wrong_label"
BELOW_TAU = "below_tau"

CORPUS = pa.schema([pa.field(TEXT, pa.string(), False), pa.field(LABELS, pa.int32(), False)])

POOL = pa.schema(
    [
        pa.field(CANDIDATE_ID, pa.string(), nullable=False),
        pa.field(LABEL, pa.int32(), nullable=False),
        pa.field(TEXT, pa.string(), nullable=False),
        pa.field(PROMPT, pa.string(), nullable=False),
        pa.field(N_TOKENS, pa.int32(), nullable=False),
        pa.field(REJECT_REASON, pa.string()),
        pa.field(TEACHER_LOGITS, pa.list_(pa.float32())),
    ]
)

DATASET = pa.schema(
    [
        pa.field(TEXT, pa.string(), nullable=False),
        pa.field(LABELS, pa.int32(), nullable=False),
        pa.field(SOFT_LABELS, pa.list_(pa.float32()), nullable=False),
        pa.field(WEIGHTS, pa.float32(), nullable=False),
        pa.field(IS_SYNTH, pa.bool_(), nullable=False),
        pa.field(CANDIDATE_ID, pa.string()),
    ]
)

PREDICTIONS = pa.schema(
    [pa.field(LABELS, pa.int32(), False), pa.field(LOGITS, pa.list_(pa.float32()), False)]
)


def candidate_id(label: int, index: int) -> str:
    """The name of a candidate: the intended class and its index within that class."""
    return f"{label}-{index}"


SPLITS = """\
configs:
- config_name: default
  data_files:
  - {split: train, path: train.parquet}
  - {split: validation, path: validation.parquet}
  - {split: test, path: test.parquet}
- config_name: drift
  data_files:
  - {split: validation, path: synthetic_validation.parquet}
  - {split: test, path: synthetic_test.parquet}
"""
"""What `load_dataset` takes from a directory; without it, a file's name decides, and synthetic rows
would join the real ones that a student is judged by."""
