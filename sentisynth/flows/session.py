"""A run at work: its configuration, directory, MLflow run and console, and how a stage is done."""

import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import sentisynth
from sentisynth.config.load import is_base_model, is_ours
from sentisynth.config.outside import ClusterConfig
from sentisynth.config.pretrain import PretrainConfig
from sentisynth.config.types import NamedConfig, RunConfig
from sentisynth.data.files import directory_aside, write_text
from sentisynth.data.run_directory import LOCK, RunDirectory
from sentisynth.data.splits import Corpus
from sentisynth.data.storage import is_remote, probe
from sentisynth.errors import ConfigError, RunDirectoryError
from sentisynth.flows.console import Console
from sentisynth.flows.made import with_dataset, with_models
from sentisynth.models.devices import DeviceFacts
from sentisynth.runtime.nodes import check_storage, gather
from sentisynth.runtime.placement import Placement, place_stream
from sentisynth.runtime.ray_cluster import cluster_resources, connected, facts_of_an_actor
from sentisynth.runtime.tracking import StageLog, Tracker
from sentisynth.seeding import fingerprint


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What every stage works with, of a run and of a pretraining."""

    directory: RunDirectory
    tracker: Tracker
    console: Console
    cluster: ClusterConfig

    def gather(self) -> None:
        """Wait for the nodes and GPUs that are asked for: between two stages some may have been
        lost, or taken away as idle. Raises PlacementError.
        """
        gather(self.cluster, self.console.note)

    def do(
        self,
        name: str,
        title: str,
        parts: dict[str, Any],
        build: Callable[[Path, StageLog], None],
        *,
        is_artifact: bool = True,
    ) -> Path:
        """Make a stage's directory from its parts, unless that was done before; see RunDirectory.

        `build` fills an empty directory beside the final one, which is renamed when it returns.
        """
        final = self.directory.stage(name)
        if self.directory.is_done(name, parts):
            self.directory.push(name)  # a run may have ended before
            self.console.skipped(title)
            return final
        with self.stage(name, title) as log:
            with directory_aside(final) as out:
                log.params(parts)
                build(out, log)
                self.directory.stamp(out, parts)
            self.directory.push(name)
            if is_artifact:
                log.artifacts(final, name)
        return final

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[StageLog]:
        """A stage that looks after its own files: its title on the console, its MLflow run."""
        with self.console.stage(title), self.tracker.stage(name) as log:
            yield log


@dataclass(frozen=True, kw_only=True)
class Session(Workplace):
    """What every stage of a run works with."""

    config: RunConfig
    corpus: Corpus

    @cached_property
    def placement(self) -> Placement:
        """Where generation and verification run. Raises PlacementError."""
        self.gather()
        return place_stream(self.config.synthesis, cluster_resources())

    @cached_property
    def devices(self) -> tuple[DeviceFacts, DeviceFacts]:
        """What an actor of generation and one of verification work on."""
        return self.devices_of(self.placement)

    def devices_of(self, placement: Placement) -> tuple[DeviceFacts, DeviceFacts]:
        """The same of another placement. Raises PlacementError."""
        ask = partial(facts_of_an_actor, longest_s=self.cluster.wait_s, tell=self.console.note)
        return ask(placement.generate), ask(placement.verify)


@contextmanager
def workplace(
    config: NamedConfig,
    out: Path,
    console: Console,
    *,
    overwrite: bool = False,
    makes_nothing: bool = False,
) -> Iterator[Workplace]:
    """A locked run directory, a Ray session and an MLflow run, for the stages of one command."""
    if is_remote(out):
        probe(out)
    directory = RunDirectory(out if is_remote(out) else out.resolve(), overwrite)
    _refuse_foreign(directory.path)
    with directory.locked():
        directory.pull()
        _refuse_other_kind(config, directory)
        if not (directory.path / "config.yaml").is_file():
            write_config(config, directory, versions())
        console.note(f"{config.name}  →  {out}")
        tracker = Tracker(config, directory.path)
        if directory.uri is not None and tracker.is_in_run:
            console.note(
                f"   MLflow's records stay on this machine, in {directory.path / 'mlflow'}: set "
                f"MLFLOW_TRACKING_URI to have them elsewhere"
            )
        place = Workplace(
            directory=directory, tracker=tracker, console=console, cluster=config.cluster
        )
        with directory.records_kept(), tracker.parent(), connected():
            place.gather()
            check_storage(directory.uri or directory.path)
            yield place
        if tracker.outbox.error is not None:
            console.note(
                f"   {tracker.outbox.error}; {len(tracker.outbox)} records are kept in "
                f"{directory.path} and sent by the next command"
            )
        if not makes_nothing:  # what was made stands there already
            write_config(config, directory, versions())
        directory.push_files()


def _refuse_foreign(path: Path) -> None:
    """The config.yaml of something else is not written over. Raises RunDirectoryError."""
    file = path / "config.yaml"
    if not file.is_file() or file.is_symlink() or (path / LOCK).exists():  # a link is told of later
        return
    with suppress(ConfigError):
        if is_ours(path):
            return
    raise RunDirectoryError(
        f"{file} is in the way, and is not a run's; choose another directory with --out"
    )


def _refuse_other_kind(config: NamedConfig, directory: RunDirectory) -> None:
    """A run and a pretraining do not share a directory. Raises RunDirectoryError."""
    with suppress(ConfigError):  # one that is absent, or damaged, is replaced as ever
        is_base = is_base_model(directory.path)
        if is_base != isinstance(config, PretrainConfig):
            what = "a pretraining" if is_base else "a run"
            raise RunDirectoryError(
                f"{directory.path} holds {what}; choose another directory with --out"
            )


def write_config(config: NamedConfig, directory: RunDirectory, versions: dict[str, str]) -> None:
    """config.yaml: the resolved configuration and the versions that run it; of models and a dataset
    that are there, what they were made with, whatever a later command said. Where records were sent
    is no part of it: a recipe does not choose that.
    """
    values = config.model_dump(mode="json", exclude={"tracking": {"uri"}})
    if isinstance(config, RunConfig):
        values = with_models(values, ("teacher", "generator", "student"), directory)
        values = with_dataset(values, directory)
    values = {**values, "fingerprint": fingerprint(values), "versions": versions}
    write_text(directory.path / "config.yaml", yaml.safe_dump(values, sort_keys=False))


def versions() -> dict[str, str]:
    """What config.yaml records of the software; the commit where the package is a checkout."""
    names = ("ray", "torch", "transformers", "datasets", "mlflow", "pyarrow")
    found = {"python": platform.python_version(), "sentisynth": sentisynth.__version__}
    found |= {name: metadata.version(name) for name in names}
    here = Path(__file__)
    try:
        told = [
            subprocess.run(
                ["git", *asked], cwd=here.parent, capture_output=True, text=True, check=True
            ).stdout.strip()
            # installed below another's repository, this file is not one of that
            for asked in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return found
    return {**found, "git": told[1]}
