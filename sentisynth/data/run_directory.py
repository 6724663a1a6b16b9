"""A run directory: what lies where, what is done, what was it made from, and who holds it."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentisynth.data.files import write_json
from sentisynth.errors import RunDirectoryError
from sentisynth.seeding import fingerprint

_STAMP = "stage.json"
_ABSENT = "absent"


class RunDirectory:
    """Paths of a run and the stamps of its stages.

    A stage's stamp lies in its directory and says what it was made from: a mapping of names to
    values, whose sha256 is the fingerprint. The same parts again: nothing is done again. Other
    parts: an error that names the first differences, unless `overwrite`.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        self.path = path
        self._overwrite = overwrite

    @property
    def pool(self) -> Path:
        """Candidates, one file a unit."""
        return self.path / "pool"

    @property
    def dataset(self) -> Path:
        """What the student trains on."""
        return self.path / "dataset"

    def stage(self, name: str) -> Path:
        """The directory of a stage: teacher, generator, corpus, student, …"""
        return self.path / name

    def read_stamp(self, name: str) -> dict[str, Any] | None:
        """What a finished stage was made from, or None if it is not finished."""
        path = self.stage(name) / _STAMP
        if not path.is_file():
            return None
        try:
            parts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["parts"]
        except (ValueError, KeyError):
            raise RunDirectoryError(f"{path} is damaged; remove {path.parent} to redo") from None
        return parts

    def is_done(self, name: str, parts: dict[str, Any]) -> bool:
        """Whether a stage was made from these parts.

        Raises RunDirectoryError where it was made from others, unless told to overwrite: then what
        lies there is removed.
        """
        found = self.read_stamp(name)
        if found is None:
            return False
        if fingerprint(found) == fingerprint(parts):
            return True
        if not self._overwrite:
            raise RunDirectoryError(
                f"{self.stage(name)} was made from something else: {_differences(found, parts)}; "
                f"choose another directory with --out, or replace it with --overwrite"
            )
        shutil.rmtree(self.stage(name))
        return False

    def stamp(self, directory: Path, parts: dict[str, Any]) -> None:
        """Say what the stage in `directory` was made from: its last file."""
        write_json(directory / _STAMP, {"fingerprint": fingerprint(parts), "parts": parts})

    def require(self, name: str, command: str) -> Path:
        """The directory of a finished stage. Raises RunDirectoryError that names the command."""
        if self.read_stamp(name) is None:
            raise RunDirectoryError(
                f"there is no finished {name} in {self.path}; run `sentisynth {command}` first"
            )
        return self.stage(name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one process of this machine. Raises RunDirectoryError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stream = (self.path / ".lock").open("w")
        except OSError as error:
            raise RunDirectoryError(f"{self.path} cannot be written: {error.strerror}") from None
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunDirectoryError(
                    f"another sentisynth is at work in {self.path}; wait for it or use --out"
                ) from None
            yield


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    old, new = _flat(found), _flat(wanted)
    changed = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    told = [f"{k} was {_short(old, k)}, is now {_short(new, k)}" for k in changed[:3]]
    more = len(changed) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def _short(values: dict[str, Any], key: str) -> str:
    text = str(values.get(key, _ABSENT))
    return text if len(text) <= 40 else f"{text[:12]}…"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, child in value.items():
        flat |= _flat(child, f"{prefix}.{key}" if prefix else str(key))
    return flat
