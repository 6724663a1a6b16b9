"""A run directory: what lies where, what is done, what was it made from, and who holds it."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sentisynth.data.files import json_text, sha256_file, write_bytes, write_json
from sentisynth.data.storage import (
    STAMP,
    answering,
    download,
    is_file,
    is_remote,
    mirror_of,
    remove_tree,
    upload,
)
from sentisynth.errors import RunDirectoryError
from sentisynth.seeding import fingerprint

LOCK = ".lock"
_STAMP, _CARD = STAMP, "README.md"
_FILES = ("config.yaml", "metrics.json", "report.html")
_PENDING = "mlflow-pending-*.jsonl"
_RECORDS = ("mlflow.json", _PENDING)
STAGES = (
    *("corpus", "teacher", "generator", "dataset", "student_labels", "student_real", "student"),
    *("tokenizer", "rows", "embeddings", "start", "model"),  # of a pretraining
)
_ABSENT = "absent"
_SHOWN = 40  # characters of a value that are told


class RunDirectory:
    """Paths of a run and the stamps of its stages.

    A stage's stamp lies in its directory and says what it was made from: a mapping of names to
    values, whose sha256 is the fingerprint. The same parts again: nothing is done again. Other
    parts: an error that names the first differences, unless `overwrite`.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        self.uri = path if is_remote(path) else None
        self.path = mirror_of(path) if is_remote(path) else path
        self._overwrite = overwrite

    @property
    def overwrites(self) -> bool:
        """Whether what was made from other parts is to be replaced."""
        return self._overwrite

    @property
    def pool(self) -> Path:
        """Candidates, one file a unit; under a URI they are not mirrored."""
        return (self.uri or self.path) / "pool"

    @property
    def dataset(self) -> Path:
        """What the student trains on."""
        return self.path / "dataset"

    def stage(self, name: str) -> Path:
        """The directory of a stage: teacher, generator, corpus, student, …"""
        return self.pool if name == "pool" else self.path / name

    def shared(self, name: str) -> Path:
        """A finished stage as other machines find it; see `storage.here`."""
        return (self.uri or self.path) / name

    def pull(self) -> None:
        """Mirror the finished stages that lie under the URI, if there is one."""
        if self.uri is None:
            return
        with answering(self.uri):
            for name in STAGES:
                if is_file(self.uri / name / _STAMP):
                    download(self.uri / name, self.path / name)
            found = [self.uri / name for name in _FILES if is_file(self.uri / name)]
            found += [path for pattern in _RECORDS for path in self.uri.glob(pattern)]
            for file in found:
                write_bytes(self.path / file.name, file.read_bytes())

    def push(self, name: str) -> None:
        """Bring a finished stage to the URI, if there is one and it is not there yet."""
        if self.uri is None:
            return
        with answering(self.uri):
            stamp = self.uri / name / _STAMP
            if is_file(stamp) and stamp.read_bytes() == (self.path / name / _STAMP).read_bytes():
                return
        upload(self.path / name, self.uri / name)

    def push_files(self) -> None:
        """Bring configuration, figures, report and records to the URI, if there is one."""
        self._push({name for name in _FILES if (self.path / name).is_file()})
        self._push_records()

    @contextmanager
    def records_kept(self) -> Iterator[None]:
        """Bring what MLflow's run is, and what it did not take, to the URI, whatever ends the
        block: another machine may go on.
        """
        self._push_records()
        try:
            yield
        except BaseException:
            with suppress(RunDirectoryError):  # what ended the block comes first
                self._push_records()
            raise

    def _push_records(self) -> None:
        if self.uri is None:
            return
        here = {path.name for pattern in _RECORDS for path in self.path.glob(pattern)}
        self._push(here)
        with answering(self.uri):
            for path in self.uri.glob(_PENDING):
                if path.name not in here:
                    path.unlink()

    def _push(self, names: set[str]) -> None:
        if self.uri is None:
            return
        for name in sorted(names):
            write_bytes(self.uri / name, (self.path / name).read_bytes())

    def read_stamp(self, name: str) -> dict[str, Any] | None:
        """What a finished stage was made from, or None if it is not finished."""
        return self._read(name, "parts") if is_file(self.stage(name) / _STAMP) else None

    def _read(self, name: str, key: str) -> dict[str, Any]:
        path = self.stage(name) / _STAMP
        try:
            text = path.read_text(encoding="utf-8")
            stamp = json.loads(text)
            value: dict[str, Any] = dict(stamp[key])
            whole = text == json_text(stamp) and stamp["fingerprint"] == fingerprint(stamp["parts"])
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise RunDirectoryError(f"{path} is damaged; remove {path.parent} to redo")
        return value

    def readable_stamp(self, name: str) -> dict[str, Any] | None:
        """As `read_stamp`, and None if it is damaged."""
        if not is_file(self.stage(name) / _STAMP):
            return None
        try:
            return self._read(name, "parts")
        except RunDirectoryError:
            return None

    def is_done(self, name: str, parts: dict[str, Any]) -> bool:
        """Whether a stage was made from these parts.

        Raises RunDirectoryError where it was made from others or was damaged since, unless told
        to overwrite: then what lies there is removed. What no run made is never removed.
        """
        found = self.read_stamp(name)
        if found is None:
            self._refuse_foreign(name)
            return False
        same = fingerprint(found) == fingerprint(parts)
        problems = self.damage(name) if same else []
        if same and not problems:
            return True
        if not self._overwrite:
            wrong = problems[0] if same else f"{self.stage(name)} was made from something else"
            told = "" if same else f": {differences(found, parts)}"
            remedy = "choose another directory with --out, or replace it with --overwrite"
            raise RunDirectoryError(f"{wrong}{told}; {remedy}")
        remove_tree(self.stage(name))
        return False

    def _refuse_foreign(self, name: str) -> None:
        place = self.stage(name)
        if place.is_file() or (place.is_dir() and any(place.iterdir())):
            raise RunDirectoryError(
                f"{place} is in the way, and is not ours (it has no {_STAMP}); move it, or choose "
                f"another directory with --out"
            )

    def begin(self, name: str, parts: dict[str, Any]) -> Path:
        """A directory for a stage at work, which keeps what a killed command had done.

        Raises RunDirectoryError if it was begun from other parts, unless told to overwrite: then
        it is emptied.
        """
        work = self.path / name
        begun = self.readable_stamp(name)
        if begun is None or fingerprint(begun) != fingerprint(parts):
            if begun is not None and not self._overwrite:
                raise RunDirectoryError(
                    f"{work} was begun from something else: {differences(begun, parts)}; choose "
                    f"another directory with --out, or begin anew with --overwrite"
                )
            if work.exists():
                remove_tree(work)
            work.mkdir(parents=True)
            self.stamp(work, parts, is_done=False)
        return work

    def refuse_others(self, name: str, parts: dict[str, Any]) -> None:
        """Raise as `is_done` would; nothing is removed, told to overwrite or not."""
        found = self.readable_stamp(name)
        if found is not None and not self._overwrite:
            self.is_done(name, parts)

    def stamp(self, directory: Path, parts: dict[str, Any], *, is_done: bool = True) -> None:
        """Say what the stage in `directory` is made from; of one that is done, its files' sha256
        too: then this is its last file.
        """
        files = {
            path.relative_to(directory).as_posix(): sha256_file(path)
            for path in (sorted(directory.rglob("*")) if is_done else ())
            if path.is_file() and path.name != _CARD
        }
        stamp = {"fingerprint": fingerprint(parts), "parts": parts, "files": files}
        write_json(directory / _STAMP, stamp)

    def damage(self, name: str) -> list[str]:
        """What is wrong with a finished stage's files, one sentence each."""
        problems = []
        for file, digest in self._read(name, "files").items():
            path = self.stage(name) / file
            if ".." in Path(file).parts or Path(file).is_absolute():
                problems.append(f"{self.stage(name)} lists {file!r}, which lies outside of it")
            elif not path.is_file():
                problems.append(f"{path} is missing")
            elif sha256_file(path) != digest:
                problems.append(f"{path} was altered after it was made")
        return problems

    def require(self, name: str, command: str) -> Path:
        """The directory of a finished stage. Raises RunDirectoryError that names the command."""
        if self.read_stamp(name) is None:
            raise RunDirectoryError(
                f"there is no finished {name} in {self.path}; run `sentisynth {command}` first"
            )
        return self.stage(name)

    def require_trained(self, name: str) -> Path:
        """As `require`, of a model that learned from the rows that lie in `corpus` now."""
        path = self.require(name, f"{name} …")
        self.refuse_other_rows(name, self.read_stamp("corpus"))
        return path

    def refuse_other_rows(self, name: str, corpus: dict[str, Any] | None) -> None:
        """Raise RunDirectoryError where a finished model learned from another corpus than one that
        is made from these parts: predictions would be paired with rows that they are not of, and
        rows that were learned from may be test rows now.
        """
        trained = self.read_stamp(name)
        if trained is not None and trained.get("corpus") != fingerprint(corpus):
            raise RunDirectoryError(
                f"{self.stage(name)} was trained on other rows than those of the data section; run "
                f"`sentisynth {name} … --overwrite` first, or choose another directory with --out"
            )

    def refuse_damaged(self, *names: str) -> None:
        """Raise RunDirectoryError where a file of these finished stages is not what was written."""
        for name in names:
            for problem in self.damage(name)[:1]:
                raise RunDirectoryError(
                    f"{problem}; run `sentisynth {name} … --overwrite` to make it anew"
                )

    def refuse_links(self) -> None:
        """Raise RunDirectoryError if what lies in the directory leads out of it."""
        root = self.path.resolve()
        for folder, folders, files in os.walk(self.path):
            inside = Path(folder)
            # of units there may be millions; they are renamed over a link, never through it
            names = folders if inside.parent == self.path / "pool" else [*folders, *files]
            for path in (inside / name for name in names):
                if path.is_symlink() and not path.resolve().is_relative_to(root):
                    raise RunDirectoryError(
                        f"{path} is a link to {path.resolve()}, outside of the run directory; "
                        f"remove it, or make the run where it leads to"
                    )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one process of this machine. Raises RunDirectoryError."""
        self.refuse_links()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stream = (self.path / LOCK).open("w")
        except OSError as error:
            raise RunDirectoryError(f"{self.path} cannot be written: {error.strerror}") from None
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunDirectoryError(
                    f"another sentisynth is at work in {self.path}; wait for it or use --out"
                ) from None
            except OSError as error:
                raise RunDirectoryError(
                    f"{self.path} cannot be locked ({error.strerror}): its file system has no "
                    f"flock; mount it with that, or choose another place with --out"
                ) from None
            yield


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first values that differ, what they were and what they are now."""
    old, new = _flat(found), _flat(wanted)
    changed = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    told = []
    for key in changed[:3]:
        was, now = (str(values.get(key, _ABSENT)) for values in (old, new))
        differing = (i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b)
        start = max(0, next(differing, min(len(was), len(now))) - _SHOWN // 4)
        told.append(f"{key} was {_part(was, start)}, is now {_part(now, start)}")
    more = len(changed) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def _part(text: str, start: int) -> str:
    """A text, or where it is long a part from about `start` on."""
    if len(text) <= _SHOWN:
        return text
    end = start + _SHOWN // 2
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, child in value.items():
        flat |= _flat(child, f"{prefix}.{key}" if prefix else str(key))
    return flat
