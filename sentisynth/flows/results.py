"""The table at the end of a run, and the page that goes with it."""

from pathlib import Path
from typing import Any

from sentisynth.data.files import read_json, write_text
from sentisynth.errors import RunDirectoryError
from sentisynth.evaluation.report import render_report
from sentisynth.flows.session import Session


def show_results(session: Session, metrics: dict[str, Any]) -> None:
    """Print the arms, the gain and where things lie; write report.html."""
    console, path = session.console, session.directory.path
    write_text(path / "report.html", render_report(path, metrics))
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
        columns = ["", "macro-F1 validation", "macro-F1 test", "accuracy test", "parameters"]
        console.table(f"{metrics['name']}, seed {metrics['seed']}, real rows", columns, rows)
    console.result("")
    if "synthesis" in metrics:
        console.result(synthesis_sentence(metrics["synthesis"]))
    if "gain" in metrics:
        console.result(gain_sentence(metrics["gain"]))
    for label, name in (("report", "report.html"), ("student", "student"), ("dataset", "dataset")):
        if (path / name).exists():
            console.result(f"{label:8} {path / name}")
    console.result(f"mlflow   {session.tracker.uri}")


def synthesis_sentence(synthesis: dict[str, Any]) -> str:
    """How many candidates it took."""
    generated = sum(e["generated"] for e in synthesis["ledger"].values())
    rates = ", ".join(f"{name} {rate:.0%}" for name, rate in synthesis["acceptance"].items())
    kept = ", ".join(f"{n:,} {name}" for name, n in synthesis["rows"].items())
    return f"Synthetic rows: {kept}, from {generated:,} candidates (accepted: {rates})."


def gain_sentence(gain: dict[str, Any]) -> str:
    """What the synthetic rows gave, with its uncertainty."""
    points, low, high = (100 * gain[key] for key in ("macro_f1", "low", "high"))
    verdict = "clear of zero" if low > 0 or high < 0 else "within the noise of the test rows"
    return (
        f"The synthetic rows gave the student {points:+.1f} points of test macro-F1 "
        f"(95 % interval {low:+.1f} to {high:+.1f}: {verdict})."
    )


def rewrite_report(path: Path) -> Path:
    """Write report.html of a run directory anew from metrics.json, and return its path."""
    metrics = path / "metrics.json"
    if not metrics.is_file():
        raise RunDirectoryError(f"there is no {metrics}; run `sentisynth evaluate` first")
    write_text(path / "report.html", render_report(path, read_json(metrics)))
    return path / "report.html"
