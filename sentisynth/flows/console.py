"""What is seen while a run goes on: stages by name, one line of progress, a table at the end.

For people (`line`): on a terminal the line is redrawn, elsewhere it is printed every few seconds.
For machines (`json`): a JSON object a line, with an `event` and the figures behind the words.
`ray` is `line` with Ray Data's own progress in place of ours for the stream. Progress goes to
standard error, the results to standard output. A terminal that is gone stops nothing.
"""

import errno
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO, cast

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sentisynth.data.text import shown

Style = Literal["line", "json", "ray"]
_PLAIN_EVERY_S = 5.0
_JSON_EVERY_S = 1.0


class Console:
    """Progress of a run."""

    def __init__(self, style: Style = "line") -> None:
        self._json = style == "json"
        self.shows_ray = style == "ray"
        self._progress = RichConsole(file=cast(TextIO, _Steadfast(sys.stderr)), highlight=False)
        self._results = RichConsole(file=cast(TextIO, _Steadfast(sys.stdout)), highlight=False)
        self._live: Live | None = None
        self._title, self._started, self._printed, self._last = "", 0.0, 0.0, ""
        self._held: dict[str, Any] = {}

    def note(self, text: str) -> None:
        """A line that stays."""
        text = shown(text)
        if not self._event("note", text=text):
            self._progress.print(text, markup=False, soft_wrap=True)

    def event(self, event: str, text: str, **figures: Any) -> None:
        """A line that stays, with the figures behind it."""
        if not self._event(event, text=text, **figures):
            self.note(text)

    def skipped(self, title: str) -> None:
        """A stage that was done before."""
        title = shown(title)
        if not self._event("skipped", stage=title):
            self._progress.print(Text.assemble(("= ", "green"), (title, "bold"), "  done before"))

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """A stage at work: its title, then its line of progress, then how long it took."""
        title = shown(title)
        self._tell_held()
        self._title, self._started, self._printed = title, time.monotonic(), 0.0
        self._event("started", stage=title)
        failed = True
        try:
            with self._redrawn():
                self.progress("")
                yield
            failed = False
        finally:
            self._ended(title, failed)

    @contextmanager
    def _redrawn(self) -> Iterator[None]:
        """Redraw the line of progress, where there is a terminal and a person before it."""
        if self._json or self.shows_ray or not self._progress.is_terminal:
            yield
            return
        with Live(console=self._progress, refresh_per_second=4, transient=True) as self._live:
            try:
                yield
            finally:
                self._live = None

    def _ended(self, title: str, failed: bool) -> None:
        seconds = time.monotonic() - self._started
        self._tell_held()
        if self._event("failed" if failed else "finished", stage=title, seconds=seconds):
            return
        mark = ("x ", "red") if failed else ("✓ ", "green")
        told = f"  {duration(seconds)}  {self._last}"
        self._progress.print(Text.assemble(mark, (title, "bold"), told), soft_wrap=True)

    def progress(
        self, text: str, figures: dict[str, Any] | None = None, *, stays: bool = False
    ) -> None:
        """Replace the line of progress of the stage at work; `figures` are what it says, for
        machines at most once a second, and the last of a stage, unless each of them `stays`.
        """
        text = self._last = shown(text)
        seconds = time.monotonic() - self._started
        if self._live is not None:
            told = f"  {duration(seconds)}  {text}"
            self._live.update(Text.assemble(("… ", "cyan"), (self._title, "bold"), told))
        elif self._json:
            where = {"stage": self._title, "seconds": seconds}
            self._held = {"time": time.time(), **where, **figures} if figures else self._held
            if figures and (stays or time.monotonic() - self._printed >= _JSON_EVERY_S):
                self._printed = time.monotonic()
                self._tell_held()
        elif not self.shows_ray and time.monotonic() - self._printed >= _PLAIN_EVERY_S:
            self._printed = time.monotonic()
            self.note(f"… {self._title}  {duration(seconds)}  {text}")

    def _tell_held(self) -> None:
        """The last figures, if nobody was told them."""
        held, self._held = self._held, {}
        if held:
            self._event("progress", **held)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table of results; the first column is text, the others are figures."""
        if self._json:
            entry = {"event": "table", "title": title, "columns": columns, "rows": rows}
            self._results.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            return
        table = Table(
            title=shown(title), title_justify="left", title_style="bold", box=None, pad_edge=False
        )
        for i, column in enumerate(columns):
            table.add_column(shown(column), justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(shown(cell)) for cell in row))
        self._results.print()
        self._results.print(table)

    def result(self, text: str) -> None:
        """A line of results."""
        if self._json:
            self._results.file.write(json.dumps({"event": "result", "text": text.strip()}) + "\n")
            return
        self._results.print(shown(text), markup=False, soft_wrap=True)

    def _event(self, event: str, **values: Any) -> bool:
        """Write a JSON line, if that is the style."""
        if self._json:
            entry = {"event": event, "time": time.time(), **values}
            self._progress.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._progress.file.flush()
        return self._json


class _Steadfast:
    """A stream that goes on without its terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        with _unless_gone():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _unless_gone():
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


@contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:  # what a terminal answers after it was closed
            raise


def training_line(entry: dict[str, Any]) -> str:
    """One evaluation of a training as a line of progress."""
    figures = {
        "macro_f1": ("macro-F1", "{:.3f}"),
        "accuracy": ("accuracy", "{:.3f}"),
        "perplexity": ("perplexity", "{:.1f}"),
        "masked_loss": ("masked", "{:.3f}"),
        "detection_f1": ("detection F1", "{:.3f}"),
        "judged_detection_f1": ("judged", "{:.3f}"),
        "train_loss": ("loss", "{:.3f}"),
    }
    told = [
        f"{name} {form.format(entry[key])}" for key, (name, form) in figures.items() if key in entry
    ]
    return f"step {entry['step']}/{entry['total_steps']}  " + "  ".join(told)


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
