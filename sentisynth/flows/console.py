"""What a person sees while a run goes on: stages by name, one line of progress, a table at the end.

On a terminal the line is redrawn; elsewhere it is printed every few seconds. Progress goes to
standard error, the results to standard output.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table
from rich.text import Text

_PLAIN_EVERY_S = 5.0


class Console:
    """Progress of a run."""

    def __init__(self) -> None:
        self._progress = RichConsole(stderr=True, highlight=False)
        self._results = RichConsole(highlight=False)
        self._live: Live | None = None
        self._title, self._started, self._printed = "", 0.0, 0.0

    def note(self, text: str) -> None:
        """A line that stays."""
        self._progress.print(text, markup=False, soft_wrap=True)

    def skipped(self, title: str) -> None:
        """A stage that was done before."""
        self._progress.print(Text.assemble(("= ", "green"), (title, "bold"), "  done before"))

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """A stage at work: its title, then its line of progress, then how long it took."""
        self._title, self._started, self._printed = title, time.monotonic(), 0.0
        failed = True
        with Live(console=self._progress, refresh_per_second=4, transient=True) as self._live:
            self.progress("")
            try:
                yield
                failed = False
            finally:
                self._live, last = None, self._last
        took = duration(time.monotonic() - self._started)
        mark = ("x ", "red") if failed else ("✓ ", "green")
        self._progress.print(
            Text.assemble(mark, (title, "bold"), f"  {took}  {last}"), soft_wrap=True
        )

    def progress(self, text: str) -> None:
        """Replace the line of progress of the stage at work."""
        self._last = text
        took = duration(time.monotonic() - self._started)
        if self._live is not None and self._progress.is_terminal:
            line = Text.assemble(("… ", "cyan"), (self._title, "bold"), f"  {took}  {text}")
            self._live.update(line)
        elif time.monotonic() - self._printed >= _PLAIN_EVERY_S:
            self._printed = time.monotonic()
            self.note(f"… {self._title}  {took}  {text}")

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table of results; the first column is text, the others are figures."""
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, pad_edge=False
        )
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        self._results.print()
        self._results.print(table)

    def result(self, text: str) -> None:
        """A line of results."""
        self._results.print(text, markup=False, soft_wrap=True)


def training_line(entry: dict[str, Any]) -> str:
    """One evaluation of a training as a line of progress."""
    figures = {
        "macro_f1": ("macro-F1", "{:.3f}"),
        "accuracy": ("accuracy", "{:.3f}"),
        "perplexity": ("perplexity", "{:.1f}"),
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
