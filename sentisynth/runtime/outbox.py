"""What is to be recorded, in order; what a store does not take is kept in a file and sent later."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sentisynth.data.files import write_text
from sentisynth.errors import RunDirectoryError, TrackingError

Entry = dict[str, Any]
ARTIFACTS = "artifacts"
_REST_S = 60.0  # after a store did not answer, before it is asked again
_REST = 20  # or so many times as long as it took to say so: who asks has other work


class Outbox:
    """Entries for `send`, which raises TrackingError if the store does not answer.

    An entry is a mapping that JSON holds, with `what` is sent and of which `run`. Those of a
    process that ended before the store answered are in `file`, and go first, marked `again`.
    """

    def __init__(self, file: Path, send: Callable[[Entry], None]) -> None:
        self._file, self._send = file, send
        self._lock = threading.RLock()
        self._kept = file.is_file()
        self._entries: list[Entry] = _read(file) if self._kept else []
        self._rests_until = 0.0
        self.error: TrackingError | None = None
        """Why the last entry was not taken."""

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        """Send an entry after all before it, now or later."""
        with self._lock:
            self._entries.append(entry)
            if time.monotonic() >= self._rests_until:
                self.flush()
            else:
                with self._file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(entry) + "\n")

    def flush(self) -> bool:
        """Send what is here; returns whether nothing is left."""
        with self._lock:
            self.error, self._rests_until = None, 0.0
            left: list[Entry] = []
            for i, entry in enumerate(self._entries):
                begun = time.monotonic()
                try:
                    self._send(entry)
                except TrackingError as error:
                    failed = time.monotonic()
                    self.error = error
                    self._rests_until = failed + max(_REST_S, _REST * (failed - begun))
                    left.append(entry)
                    if entry["what"] != ARTIFACTS:  # files may be kept elsewhere, and wait alone
                        left += self._entries[i + 1 :]
                        break
            self._entries = left
            if self._entries:
                write_text(self._file, "".join(json.dumps(e) + "\n" for e in self._entries))
            elif self._kept:
                self._file.unlink(missing_ok=True)
            self._kept = bool(self._entries)
            return not self._entries


def _read(file: Path) -> list[Entry]:
    try:
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # the last line may have been cut off
        entries = [{**json.loads(line), "again": True} for line in whole.splitlines()]
        is_ours = all(isinstance(e.get(key), str) for e in entries for key in ("what", "run"))
    except (OSError, ValueError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise RunDirectoryError(
            f"{file}, records that MLflow did not take yet, is damaged; remove it"
        )
    return entries
