"""A training whose run lies in an object store: it works in this machine's cache.

Inputs are fetched, checkpoints are brought to the store with each report, the result at the end.
All workers of such a training are on one machine.
"""

import fcntl
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sentisynth.data.storage import answering, cache_of, download_files, here, put_file, remove_tree
from sentisynth.training.checkpoint import PROGRESS
from sentisynth.training.loop import Report
from sentisynth.training.rows import is_first_worker

Job = Callable[..., None]
_ROWS = ".arrow"  # made again faster than fetched
_BEGUN = ".fetched"


def run_here(
    job: Job, inputs: Sequence[Path], out: Path, work: Path, report: Report, _: str
) -> None:
    """`job(*inputs, out=…, work=…, report=…)` where all machines see these directories."""
    job(*inputs, out=out, work=work, report=report)


def run_from_store(
    job: Job, inputs: Sequence[Path], out: Path, work: Path, report: Report, attempt: str
) -> None:
    """`job(*inputs, out=…, work=…, report=…)` with local directories for all of these URIs.

    `attempt` is the same for all workers of an attempt and for no two attempts: each begins from
    what lies under `work`, not from what another attempt left on this machine.
    """
    place = cache_of(work)
    local, made = place / "work", place / "out"
    _begin(place, work, attempt)

    brought = [b""]

    def bring(entry: dict[str, Any]) -> None:
        if is_first_worker() and (local / PROGRESS).is_file():  # it alone writes checkpoints
            reached = (local / PROGRESS).read_bytes()
            if reached != brought[0]:
                _bring(local, work)
                brought[0] = reached
        report(entry)

    job(*map(here, inputs), out=made, work=local, report=bring)
    if is_first_worker():
        _bring(local, work)
        for path in sorted(p for p in made.rglob("*") if p.is_file()):
            put_file(path, out / path.relative_to(made).as_posix())
        shutil.rmtree(place)


def _begin(place: Path, work: Path, attempt: str) -> None:
    """Fetch the checkpoint, once a machine and attempt."""
    place.mkdir(parents=True, exist_ok=True)
    with (place.parent / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        begun = place / _BEGUN
        if begun.is_file() and begun.read_text(encoding="utf-8") == attempt:
            return
        for name in ("work", "out"):
            shutil.rmtree(place / name, ignore_errors=True)
            (place / name).mkdir()
        download_files(work, place / "work")
        begun.write_text(attempt, encoding="utf-8")


def _bring(local: Path, work: Path) -> None:
    """Bring new checkpoint files to the store, then the progress that names them, then clean up."""
    files = {
        path.name: path
        for path in local.iterdir()
        if path.is_file() and path.suffix != _ROWS and not path.name.startswith(".")
    }
    if PROGRESS not in files:
        return
    with answering(work):
        known = {p.name for p in work.iterdir()} if work.exists() else set()
    for name, path in files.items():
        if name not in known and name != PROGRESS:
            put_file(path, work / name)
    put_file(files[PROGRESS], work / PROGRESS)
    for name in known - files.keys():
        remove_tree(work / name)
