"""`sentisynth check`: is a run directory what it says it is?"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sentisynth import schema
from sentisynth.config.load import read_any_config
from sentisynth.config.synthesis import ScreensConfig
from sentisynth.config.types import RunConfig
from sentisynth.data.manifest import check_counts, check_pool, readable_manifest
from sentisynth.data.run_directory import STAGES, RunDirectory
from sentisynth.data.storage import answering
from sentisynth.data.text import normal_form
from sentisynth.errors import RunDirectoryError
from sentisynth.seeding import fingerprint

_SYNTHETIC = ("synthetic_validation", "synthetic_test")
_TABLES = ("train", "validation", "test", *_SYNTHETIC)


def check_run(path: Path) -> list[str]:
    """What is wrong with a run, one sentence each; empty if nothing is.

    Files of every stage, files and ledger of the pool; and of the dataset: the schema, exactly
    `n_per_class` synthetic rows a class and none of them twice, no synthetic row in a real split,
    no text of the real validation and test rows among what is learned from. Raises
    RunDirectoryError where there is no run.
    """
    with answering(path):
        is_there = path.is_dir()
    if not is_there:
        raise RunDirectoryError(f"there is no run directory {path}; check the path")
    directory = RunDirectory(path)
    if directory.uri is None:
        return _check(directory)
    with tempfile.TemporaryDirectory(prefix="sentisynth-") as fresh, answering(path):
        directory.path = Path(fresh)  # not the mirror: what lies under the URI is looked at
        directory.pull()
        return _check(directory)


def _check(directory: RunDirectory) -> list[str]:
    path = directory.path
    directory.refuse_links()
    config = read_any_config(path)
    problems = [
        problem
        for name in STAGES
        if (path / name).is_dir()
        for problem in _check_stage(directory, name)
    ]
    if not isinstance(config, RunConfig):
        made = (path / "model").is_dir()
        return problems if made else [*problems, f"{path} has no finished model yet"]
    if directory.pool.is_dir():
        found = check_pool(directory.pool)
        near, labels = _near_duplicates(directory, config), _labels(directory, config)
        problems += found or check_counts(directory.pool, labels, near)
        problems += _check_plan(directory)
    if (path / "dataset").is_dir():
        problems += _check_dataset(directory, config)
    if not directory.pool.is_dir() and not (path / "dataset").is_dir():
        problems.append(f"{path} has neither a pool nor a dataset yet")
    return problems


def _check_stage(directory: RunDirectory, name: str) -> list[str]:
    try:
        if directory.read_stamp(name) is None:
            return [f"{directory.stage(name)} is not finished: it has no stage.json"]
        return directory.damage(name)
    except RunDirectoryError as error:
        return [str(error)]


def _near_duplicates(directory: RunDirectory, config: RunConfig) -> float:
    """What the pool was made with: config.yaml may have been given another value since."""
    stamp: Any = directory.readable_stamp("pool")
    try:
        return ScreensConfig(**stamp["synthesis"]["screens"]).near_duplicates
    except (KeyError, TypeError, ValueError):  # told as damage
        return config.synthesis.screens.near_duplicates


def _labels(directory: RunDirectory, config: RunConfig) -> Sequence[str]:
    """Classes of the corpus, from which pool and dataset were made: config.yaml is as it was where
    a later command was killed.
    """
    made: Any = directory.readable_stamp("corpus")
    labels = (made or {}).get("labels")
    return labels if isinstance(labels, list) else config.data.labels


def _check_plan(directory: RunDirectory) -> list[str]:
    """Whether the pool's stamp is there and names the plan of the manifest."""
    stamp = directory.readable_stamp("pool")
    if stamp is None:
        return [f"{directory.pool / 'stage.json'} is missing or damaged"]
    manifest = readable_manifest(directory.pool)
    if manifest is not None and manifest["plan"] != fingerprint(stamp):
        return [f"{directory.pool / 'stage.json'} is not that of the pool's manifest"]
    return []


def _check_dataset(directory: RunDirectory, config: RunConfig) -> list[str]:
    path, tables, problems = directory.dataset, dict[str, pa.Table](), list[str]()
    made = directory.readable_stamp("dataset")
    if made is None:
        return []  # told with the stages
    if not {"plan", "n_per_class"} <= made.keys():
        return [f"{path / 'stage.json'} is damaged"]
    manifest = readable_manifest(directory.pool)
    if manifest is not None and manifest["plan"] != made["plan"]:
        problems.append(f"{path} was made from another pool than {directory.pool}")
    if not _names_its_splits(path):
        problems.append(
            f"{path / 'README.md'} does not name the splits: load_dataset would join synthetic "
            f"rows to real ones; remove {path} and run `sentisynth synthesize …` again"
        )
    for name in _TABLES:
        file = path / f"{name}.parquet"
        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowException):
            problems.append(f"{file} is missing or damaged")
            continue
        if not table.schema.equals(schema.DATASET):
            problems.append(f"{file} has other columns than a dataset")
            continue
        tables[name] = table
    if len(tables) < len(_TABLES):
        return problems
    problems += [
        f"{path / name}.parquet holds synthetic rows"
        for name in ("validation", "test")
        if any(tables[name][schema.IS_SYNTH].to_pylist())
    ]
    synthetic = pa.concat_tables(
        table.filter(table[schema.IS_SYNTH])
        for table in (tables["train"], *(tables[name] for name in _SYNTHETIC))
    )
    problems += _check_quota(synthetic, _labels(directory, config), made["n_per_class"])
    learned = set(map(normal_form, tables["train"][schema.TEXT].to_pylist()))
    for name in ("validation", "test"):
        shared = learned & set(map(normal_form, tables[name][schema.TEXT].to_pylist()))
        if shared:
            problems.append(f"{len(shared)} texts of train.parquet are in {name}.parquet as well")
    return problems


def _names_its_splits(dataset: Path) -> bool:
    try:
        card = (dataset / "README.md").read_text(encoding="utf-8")
        head = yaml.safe_load(card.split("---\n", 2)[1]) if card.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError, RecursionError):
        return False
    wanted = yaml.safe_load(schema.SPLITS)["configs"]
    return isinstance(head, dict) and head.get("configs") == wanted


def _check_quota(synthetic: pa.Table, names: Sequence[str], quota: int) -> list[str]:
    labels = synthetic[schema.LABELS].to_pylist()
    problems = [
        f"class {name} has {labels.count(label)} synthetic rows, not {quota}"
        for label, name in enumerate(names)
        if labels.count(label) != quota
    ]
    ids = synthetic[schema.CANDIDATE_ID].to_pylist()
    if len(set(ids)) != len(ids):
        problems.append(f"{len(ids) - len(set(ids))} candidates are in the dataset twice")
    texts = zip(labels, map(normal_form, synthetic[schema.TEXT].to_pylist()), strict=True)
    again = len(labels) - len(set(texts))
    if again:
        problems.append(f"{again} synthetic texts are in the dataset twice in one class")
    return problems
