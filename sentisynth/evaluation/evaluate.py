"""Everything a run is judged by, computed from its files; written to metrics.json."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.files import read_json
from sentisynth.data.logits import logits_of
from sentisynth.data.run_directory import RunDirectory
from sentisynth.evaluation.calibration import calibration
from sentisynth.evaluation.metrics import (
    classification,
    distinct_n,
    mean_entropy,
    paired_bootstrap,
)
from sentisynth.models.loading import model_digest
from sentisynth.seeding import derive_seed, fingerprint

REAL_SPLITS = ("validation", "test")
_OF_A_GENERATOR = ("perplexity", "frozen_blocks", "lora_rank", "best_step")


def evaluate_run(
    config: RunConfig, directory: RunDirectory, arms: dict[str, str], compare: tuple[str, str]
) -> dict[str, Any]:
    """Figures of the trained arms (directory name to title) on the real validation and test rows.

    `compare` names two arms: what the second has over the first on the test rows is the gain.
    Arms, generator and synthetic set that are not there yet are left out.
    """
    done = {name: title for name, title in arms.items() if _is_of_this_run(directory, name)}
    k = len(config.data.labels)
    metrics: dict[str, Any] = {
        "name": config.name,
        "seed": config.seed,
        "labels": list(config.data.labels),
        "source": config.data.source,
        "rows": {
            name: pq.read_metadata(directory.stage("corpus") / f"{name}.parquet").num_rows
            for name in ("seed", *REAL_SPLITS)
        },
        "arms": [_arm(directory.stage(name), name, title, k) for name, title in done.items()],
    }
    if _is_of_this_run(directory, "generator"):
        found = read_json(directory.stage("generator") / "metrics.json")
        metrics["generator"] = {n: found[n] for n in _OF_A_GENERATOR}
    if "teacher" in done:
        metrics["calibration"] = calibration(
            *(_logits(directory.stage("teacher"), split) for split in REAL_SPLITS)
        )
    if _is_of_these_rows(directory):
        metrics["synthesis"] = _synthesis(config, directory)
    if set(compare) <= set(done):
        labels, base = predictions(directory.stage(compare[0]), "test")
        _, other = predictions(directory.stage(compare[1]), "test")
        seed = derive_seed(config.seed, "bootstrap")
        gain = paired_bootstrap(labels, base, other, k, seed)
        metrics["gain"] = {"from": compare[0], "to": compare[1], **gain}
    return metrics


def _is_of_this_run(directory: RunDirectory, name: str) -> bool:
    """Whether a model is finished, and was trained on the rows that lie there now; an arm with a
    dataset on the one that lies there, whose soft labels are of the teacher that lies there.
    """
    parts = directory.read_stamp(name)
    if parts is None or parts.get("corpus") != fingerprint(directory.read_stamp("corpus")):
        return False  # or of other rows, before --overwrite
    if "dataset" not in parts:
        return True
    dataset, pool = directory.read_stamp("dataset"), _pool_of_dataset(directory)
    if dataset is None or parts["dataset"] != fingerprint(dataset):
        return False
    if pool is None or directory.read_stamp("teacher") is None:
        return True
    return bool(pool["teacher"] == model_digest(directory.stage("teacher")))


def _is_of_these_rows(directory: RunDirectory) -> bool:
    """Whether there is a dataset, and not one whose pool was made for other rows."""
    pool = _pool_of_dataset(directory)
    if pool is None:
        return directory.read_stamp("dataset") is not None
    return bool(pool["corpus"] == fingerprint(directory.read_stamp("corpus")))


def _pool_of_dataset(directory: RunDirectory) -> dict[str, Any] | None:
    """What the pool of the dataset was made from; None where it was removed, or begun anew."""
    dataset, pool = directory.read_stamp("dataset"), directory.readable_stamp("pool") or {}
    return pool if dataset is not None and dataset["plan"] == fingerprint(pool) else None


def _arm(path: Path, name: str, title: str, n_classes: int) -> dict[str, Any]:
    found = read_json(path / "metrics.json")
    splits = {split: classification(*predictions(path, split), n_classes) for split in REAL_SPLITS}
    kept = {key: found[key] for key in ("parameters", "best_step", "steps", "seconds")}
    return {"name": name, "title": title, **kept, **splits}


def _logits(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and logits (N, K) of a trained classifier on a real split."""
    table = pq.read_table(path / "predictions" / f"{split}.parquet")
    return table[schema.LABELS].to_numpy().astype(np.int64), logits_of(table, schema.LOGITS)


def predictions(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predicted classes (N,) of a trained classifier on a real split."""
    labels_N, logits_NK = _logits(path, split)
    return labels_N, logits_NK.argmax(axis=1).astype(np.int64)


def _synthesis(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    ledger: dict[str, Any] = read_json(directory.dataset / "ledger.json")
    parts = [
        pq.read_table(directory.dataset / f"{name}.parquet")
        for name in ("train", "synthetic_validation", "synthetic_test")
    ]
    rows = pa.concat_tables(parts)
    rows = rows.filter(rows[schema.IS_SYNTH]).combine_chunks()
    texts, made = rows[schema.TEXT].to_pylist(), directory.read_stamp("dataset") or {}
    counts = np.bincount(rows[schema.LABELS].to_numpy(), minlength=len(config.data.labels))
    return {
        "tau": made["tau"],
        "n_per_class": made["n_per_class"],
        "rows": dict(zip(config.data.labels, counts.tolist(), strict=True)),
        "ledger": ledger,
        "acceptance": {n: e["accepted"] / e["generated"] for n, e in ledger.items()},
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "soft_label_entropy": mean_entropy(logits_of(rows, schema.SOFT_LABELS)),
    }
