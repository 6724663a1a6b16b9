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
from sentisynth.data.documents import document_files
from sentisynth.data.files import sha256_file
from sentisynth.data.sources import FORMATS
from sentisynth.data.storage import refuse_secret
from sentisynth.errors import JobError
from sentisynth.runtime.jobs import Cluster
from sentisynth.seeding import fingerprint

RECIPE, _DATA = "recipe.yaml", "data"
_MOST_BYTES = 90 * 2**20  # Ray's dashboard takes 100 MiB at once
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
    refuse_secret(out)
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
    local = {key: _local_files(config, str(values[section][key])) for key in keys}
    _check_size(sum(file.stat().st_size for files in local.values() for file in files))
    digests = {}
    for key, files in local.items():
        if not files:
            continue
        path = Path(str(values[section][key]))
        place = Path(_DATA) / f"{key}-{path.name}"
        for file in files:
            copy = package / place / file.relative_to(path)  # of a single file: itself
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        copied = package / place
        digests[key] = tree_digest(copied) if copied.is_dir() else sha256_file(copied)
        values[section][key] = str(place)
    (package / RECIPE).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    _check_size(size)
    return digests


def _local_files(config: NamedConfig, reference: str) -> list[Path]:
    """The files of a reference to what is here: that of a corpus may be a directory, of which
    nothing but documents is sent. Raises DataError and JobError.
    """
    path = Path(reference)
    if not path.is_absolute() or not path.exists():
        return []
    if not isinstance(config, PretrainConfig):
        is_table = path.is_file() and {path.suffix, path.resolve().suffix} <= {*FORMATS}
        if not is_table:  # a recipe may name anything; what is no table is not sent
            raise JobError(
                f"{path} is not a file of labelled texts ({', '.join(FORMATS)}), and nothing else "
                f"is sent to the cluster; check the data section"
            )
        return [path]
    files = document_files(config.text)
    for file in files:
        leads_to = file.resolve()
        is_inside = not path.is_dir() or leads_to.is_relative_to(path.resolve())
        if not is_inside or leads_to.suffix != file.suffix or not leads_to.is_file():
            raise JobError(
                f"{file} is a link to {leads_to}, outside of the corpus, and would be sent "
                f"to the cluster; put a copy there, or take the link away"
            )
    return files


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
