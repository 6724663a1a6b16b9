"""Object stores: a run directory under a URI is mirrored on this machine, stage by stage.

The pool is read and written where it is, one PUT a file. Every other stage is made in the mirror
and uploaded when it is done, its stamp last; a machine that needs one fetches it into its cache.
URIs are those of fsspec (s3://, gs://, …), whose packages and credentials are the user's.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from sentisynth.config.outside import holds_secret, without_secrets
from sentisynth.errors import RunDirectoryError, SentisynthError

STAMP = "stage.json"
_CACHE = "SENTISYNTH_CACHE"
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
}


def location(text: str) -> Path:
    """A local path, or the path of a URI, which behaves like one. Raises RunDirectoryError."""
    if "://" not in text:
        return Path(text)
    from fsspec import get_filesystem_class  # type: ignore[import-untyped]
    from upath import UPath

    scheme, _, place = text.partition("://")
    refuse_secret(text)
    if not place.strip("/"):
        raise RunDirectoryError(f"{text} names no place in its store; write {scheme}://BUCKET/NAME")
    try:
        get_filesystem_class(scheme)
    except (ImportError, ValueError):
        raise RunDirectoryError(
            f"{text} cannot be used: {scheme}:// needs its fsspec package"
            + (f"; `pip install {_PACKAGES[scheme]}`" if scheme in _PACKAGES else "")
        ) from None
    with answering(without_secrets(text)):
        path = UPath(text.rstrip("/"), use_listings_cache=False)  # other processes write there too
        path.fs  # noqa: B018  made here, with what the environment says of it
        return cast(Path, path)


def refuse_secret(text: str) -> None:
    """Raise RunDirectoryError where a URI holds a password or a key."""
    if "://" in text and holds_secret(text):
        scheme = text.split("://", 1)[0]
        raise RunDirectoryError(
            f"the {scheme} URI holds a password or a key (or an @, before which one stands), and "
            f"where a run lies is written down; give credentials in the environment instead"
        )


def is_remote(path: Path) -> bool:
    """Whether a path is that of a URI."""
    return not isinstance(path, Path)


@contextmanager
def answering(place: object) -> Iterator[None]:
    """Say in a sentence that a store does not answer as it should."""
    try:
        yield
    except SentisynthError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RunDirectoryError(f"{place} cannot be used: {reason}") from error


def is_file(path: Path) -> bool:
    """Whether there is a file. Raises RunDirectoryError where a store does not say: fsspec's own
    `isfile` takes any error for a no, and what was made would be made again.
    """
    if not is_remote(path):
        return path.is_file()
    remote = cast(Any, path)
    with answering(path):
        try:
            return bool(remote.fs.info(remote.path)["type"] == "file")
        except FileNotFoundError:
            return False


def children(directory: Path) -> list[Path]:
    """What lies in a directory, in order; nothing where there is none. Raises RunDirectoryError
    where a store does not say: fsspec's globs take an error for nothing.
    """
    if not is_remote(directory):
        return sorted(directory.iterdir()) if directory.is_dir() else []
    remote = cast(Any, directory)
    with answering(directory):
        try:
            found = remote.fs.ls(remote.path, detail=False)
        except FileNotFoundError:
            return []
        own = remote.path.rstrip("/")
        return sorted(
            directory / name.rstrip("/").rpartition("/")[2]
            for name in found
            if name.rstrip("/") != own
        )


def put(path: Path, data: Any) -> None:
    """One PUT: the object is there whole, or not at all."""
    remote = cast(Any, path)
    with answering(path):
        remote.fs.pipe_file(remote.path, bytes(data))


def probe(path: Path) -> None:
    """Raise RunDirectoryError unless files can be written, read and removed under a URI."""
    file = path / ".probe"
    put(file, b"probe")
    with answering(path):
        if file.read_bytes() != b"probe":
            raise RunDirectoryError(f"{path} does not give back what was written")
        file.unlink()


def put_file(local: Path, path: Path) -> None:
    """Upload a file; it appears under its name when it is complete."""
    remote = cast(Any, path)
    with answering(path):
        remote.fs.put_file(str(local), remote.path)


def remove_tree(path: Path) -> None:
    """Remove a directory, or all objects below a prefix; its stamp last, so that what is left by
    one who was cut off is known for what it was.
    """
    if not is_remote(path):
        for child in path.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            elif child.name != STAMP:
                child.unlink()
        shutil.rmtree(path)
        return
    remote = cast(Any, path)
    with answering(path):
        files = [name for name in remote.fs.find(remote.path) if not name.endswith(f"/{STAMP}")]
        if files:
            remote.fs.rm(files)
        if remote.fs.exists(remote.path):  # without its stamp, a prefix is gone with its objects
            remote.fs.rm(remote.path, recursive=True)


def mirror_of(uri: Path) -> Path:
    """The directory of this machine that mirrors a run directory under a URI."""
    return _cache() / "runs" / _digest(str(uri))


def upload(local: Path, remote: Path) -> None:
    """Put a finished stage's files in place of what is there, the stamp last."""
    if remote.exists():
        remove_tree(remote)
    files = [path for path in sorted(local.rglob("*")) if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == STAMP):
        put_file(path, remote / path.relative_to(local).as_posix())


def download(remote: Path, local: Path) -> None:
    """Fetch a finished stage, unless what is here has the same stamp."""
    with answering(remote):
        stamp = (remote / STAMP).read_bytes()
        here = local / STAMP
        if here.is_file() and here.read_bytes() == stamp:
            return
        aside = Path(tempfile.mkdtemp(dir=_made(local.parent), prefix=".fetched-"))
        download_files(remote, aside)
        _refuse_incomplete(remote, aside, stamp)
    shutil.rmtree(local, ignore_errors=True)
    aside.replace(local)


def _refuse_incomplete(remote: Path, fetched: Path, stamp: bytes) -> None:
    """Raise RunDirectoryError where a file that the stamp lists did not come; whether it is as it
    was written is asked later.
    """
    try:
        names = [name for name in json.loads(stamp)["files"] if ".." not in Path(name).parts]
    except (ValueError, KeyError, TypeError):  # a damaged stamp is told of where it is read
        return
    missing = [name for name in names if not (fetched / name).is_file()]
    if missing:
        shutil.rmtree(fetched, ignore_errors=True)
        raise RunDirectoryError(
            f"{remote / missing[0]} could not be fetched; run the same command again, and if it is "
            f"not there, remove {remote}"
        )


def download_files(remote: Path, local: Path) -> None:
    """Fetch all files below a URI; none where there is nothing."""
    with answering(remote):
        for path in remote.rglob("*"):
            if is_file(path):
                name = path.relative_to(remote).as_posix()
                if ".." in Path(name).parts or Path(name).is_absolute():
                    raise RunDirectoryError(f"{path} is no file below {remote}; remove it")
                target = local / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())


def cache_of(uri: Path) -> Path:
    """A directory of this machine for work on what lies under a URI."""
    return _cache() / "work" / _digest(str(uri))


def here(stage: Path) -> Path:
    """A finished stage as a directory of this machine: itself, or fetched once a machine."""
    if not is_remote(stage):
        return stage
    local = _cache() / "stages" / _digest(str(stage))
    with (_made(local.parent) / f"{local.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        download(stage, local)
    return local


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(_CACHE) or Path(home) / "sentisynth")


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
