"""A run at work: its configuration, directory, MLflow run and console, and how a stage is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sentisynth.config.types import RunConfig
from sentisynth.data.files import directory_aside, write_text
from sentisynth.data.run_directory import RunDirectory
from sentisynth.data.splits import Corpus
from sentisynth.flows.console import Console
from sentisynth.models.devices import DeviceFacts
from sentisynth.runtime.ray_cluster import (
    Placement,
    cluster_resources,
    facts_of_an_actor,
    place_stream,
)
from sentisynth.runtime.tracking import StageLog, Tracker
from sentisynth.seeding import fingerprint


@dataclass(frozen=True, kw_only=True)
class Session:
    """What every stage of a run works with."""

    config: RunConfig
    corpus: Corpus
    directory: RunDirectory
    tracker: Tracker
    console: Console

    @cached_property
    def placement(self) -> Placement:
        """Where generation and verification run. Raises PlacementError."""
        return place_stream(self.config.synthesis, cluster_resources())

    @cached_property
    def devices(self) -> tuple[DeviceFacts, DeviceFacts]:
        """What an actor of generation and one of verification work on."""
        return facts_of_an_actor(self.placement.generate), facts_of_an_actor(self.placement.verify)

    def do(
        self,
        name: str,
        title: str,
        parts: dict[str, Any],
        build: Callable[[Path, StageLog], None],
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
            log.artifacts(final, name)
        return final

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[StageLog]:
        """A stage that looks after its own files: its title on the console, its MLflow run."""
        with self.console.stage(title), self.tracker.stage(name) as log:
            yield log


def write_config(config: RunConfig, directory: RunDirectory, versions: dict[str, str]) -> None:
    """config.yaml: the resolved configuration and the versions that run it."""
    values = config.model_dump(mode="json")
    values = {**values, "fingerprint": fingerprint(values), "versions": versions}
    write_text(directory.path / "config.yaml", yaml.safe_dump(values, sort_keys=False))
