"""The table at the end of a run, and the page that goes with it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from sentisynth.config.load import is_base_model
from sentisynth.data.files import read_json, write_text
from sentisynth.data.run_directory import RunDirectory
from sentisynth.errors import ConfigError, RunDirectoryError
from sentisynth.evaluation.report import render_report
from sentisynth.evaluation.sentences import gain_sentence, synthesis_sentence
from sentisynth.flows.session import Session

# what a page of figures that are absent, or of another kind, raises
_UNFIT = (ValueError, LookupError, TypeError, AttributeError, RecursionError, TemplateError)


def show_results(session: Session, metrics: dict[str, Any]) -> None:
    """Print the arms, the gain and where things lie; write report.html."""
    console, path = session.console, session.directory.path
    write_text(path / "report.html", render_report(session.directory, metrics))
    if metrics["arms"]:
        rows = [
            [
                arm["title"],
                f"{arm['validation']['macro_f1']:.3f}",
                f"{arm['test']['macro_f1']:.3f}",
                f"{arm['test']['accuracy']:.3f}",
                f"{arm['parameters'] / 1e6:.1f} M",
            ]
            for arm in metrics["arms"]
        ]
        columns = ["", "F1 val.", "F1 test", "acc. test", "params"]
        title = f"{metrics['name']}, seed {metrics['seed']}: macro-F1 on real rows"
        console.table(title, columns, rows)
    console.result("")
    if "synthesis" in metrics:
        console.result(synthesis_sentence(metrics["synthesis"]))
    if "gain" in metrics:
        console.result(gain_sentence(metrics["gain"]))
    for label, name in (("report", "report.html"), ("student", "student"), ("dataset", "dataset")):
        if (path / name).exists():
            console.result(f"{label:8} {path / name}")
    console.result(f"mlflow   {session.tracker.uri}")


def rewrite_report(path: Path) -> Path:
    """Write report.html of a run directory anew from metrics.json, and return its path."""
    directory = RunDirectory(path)
    directory.refuse_links()
    directory.pull()
    metrics = directory.path / "metrics.json"
    with suppress(ConfigError):  # a directory that is no run's has no metrics.json either
        if is_base_model(directory.path):
            raise RunDirectoryError(
                f"{path} is of a pretraining, which has no report; its figures are in "
                f"model/metrics.json, in the model's card and in MLflow"
            )
    if not metrics.is_file():
        raise RunDirectoryError(
            f"there is no {path / 'metrics.json'}; run `sentisynth evaluate …` first"
        )
    try:
        page = render_report(directory, read_json(metrics))
    except _UNFIT as error:
        reason = " ".join(str(error).split())[:200]
        raise RunDirectoryError(
            f"{metrics} is damaged ({type(error).__name__}: {reason}); run `sentisynth evaluate` "
            f"to make it again"
        ) from None
    write_text(directory.path / "report.html", page)
    directory.push_files()
    return path / "report.html"
