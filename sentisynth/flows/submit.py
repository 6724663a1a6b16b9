"""`sentisynth submit`: the same command as a Ray job, with the code and the data that are here."""

import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

import sentisynth
from sentisynth.config.outside import holds_secret
from sentisynth.config.pretrain import PretrainConfig
from sentisynth.config.types import NamedConfig, RunConfig
from sentisynth.data.files import sha256_file
from sentisynth.data.storage import location
from sentisynth.errors import JobError
from sentisynth.runtime.jobs import Cluster
from sentisynth.seeding import fingerprint

RECIPE, _DATA = "recipe.yaml", "data"
_MOST_BYTES = 200 * 2**20
_MODELS = ("model", "judge")  # keys that name one
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
_URI = "MLFLOW_TRACKING_URI"
_FILES: dict[type[NamedConfig], tuple[str, tuple[str, ...]]] = {
    RunConfig: ("data", ("source", "validation", "test")),
    PretrainConfig: ("text", ("source",)),
}


def submit(
    config: NamedConfig, command: Sequence[str], options: Sequence[str], *, out: str, address: str
) -> tuple[Cluster, str, bool]:
    """Start `sentisynth COMMAND RECIPE OPTIONS --out OUT` as a job, unless the same is running.

    The job gets this package, the resolved recipe, and the data files that it names. Returns the
    cluster, the job's id, and whether it was running already. Raises JobError.
    """
    check_shared(out)
    location(out)  # a URI with a secret in it goes nowhere
    variables = _variables()
    cluster = Cluster(address)
    with tempfile.TemporaryDirectory(prefix="sentisynth-job-") as directory:
        package = Path(directory)
        digests = pack(config, package)
        section, _ = _FILES[type(config)]
        uri = config.tracking.uri
        options = [*options, *([f"tracking.uri={uri}"] if uri else [])]
        same = {
            "code": tree_digest(package / "sentisynth"),
            "command": [*command, *options],
            "config": config.model_dump(mode="json", exclude={section: {*digests}}),
            "data": digests,
            "out": out,
        }
        job = cluster.running(fingerprint(same))
        if job is not None:
            return cluster, job, True
        line = ["python", "-m", "sentisynth.cli", *command, RECIPE, *options, "--out", out]
        job = cluster.submit(shlex.join(line), package, variables, fingerprint(same))
    return cluster, job, False


def pack(config: NamedConfig, package: Path) -> dict[str, str]:
    """Fill a directory with what a job needs; returns the sha256 of each data file by its key.

    That is this package (of its models, those that the recipe names), recipe.yaml and the local
    data files: no run, no model of the user's. Raises JobError if it is too large.
    """
    source = Path(sentisynth.__file__).parent
    shutil.copytree(source, package / source.name, ignore=_LEFT_OUT)
    values = config.model_dump(mode="json")
    del values["tracking"]["uri"]  # given as an override: a recipe does not say it
    section, keys = _FILES[type(config)]
    parts = [part for part in values.values() if isinstance(part, dict)]
    named = {part[key] for part in parts for key in _MODELS if key in part}
    for model in (package / source.name / "resources").glob("*/config.json"):
        if f"package:{model.parent.name}" not in named:
            shutil.rmtree(model.parent)
    size = sum(_size(Path(str(values[section][key]))) for key in keys)
    _check_size(size)
    digests = {}
    for key in keys:
        path = Path(str(values[section][key]))
        if path.is_absolute() and path.exists():
            place = Path(_DATA) / f"{key}-{path.name}"
            (package / _DATA).mkdir(exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, package / place)
                digests[key] = tree_digest(path)
            else:
                shutil.copyfile(path, package / place)
                digests[key] = sha256_file(path)
            values[section][key] = str(place)
    (package / RECIPE).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    _check_size(size)
    return digests


def _size(path: Path) -> int:
    """Bytes of a local file or directory."""
    if not path.is_absolute():
        return 0
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _check_size(size: int) -> None:
    if size > _MOST_BYTES:
        raise JobError(
            f"the package for the job has {size / 2**20:.0f} MiB, at most "
            f"{_MOST_BYTES / 2**20:.0f} are sent; put the data on storage that the cluster reads, "
            f"and submit a script of jobs/ from there with `ray job submit`"
        )


def check_shared(out: str) -> None:
    """Refuse a run directory that a job would make in its own folder. Raises JobError."""
    if "://" not in out and not out.startswith("/"):
        raise JobError(
            f"--out is {out or 'not given'}; a job needs storage that all nodes share: an absolute "
            f"path or a URI such as s3://bucket/run"
        )


def tree_digest(folder: Path) -> str:
    """sha256 over names and bytes of all files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint([[p.relative_to(folder).as_posix(), sha256_file(p)] for p in files])


def _variables() -> dict[str, str]:
    """What of this environment the job gets: where MLflow is, unless that holds a secret."""
    uri = os.environ.get(_URI, "")
    if holds_secret(uri):
        raise JobError(
            f"{_URI} holds a password, and a job's settings can be read by all who see the "
            f"cluster; set it on the cluster's nodes, and unset it here"
        )
    is_server = uri.startswith(("http://", "https://", "databricks"))  # no file of this machine
    return {_URI: uri} if is_server else {}
