"""The page of a run: one HTML file that needs nothing else, neither a network nor a script."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from sentisynth import schema
from sentisynth.data.files import read_json
from sentisynth.data.ledger import Tally, fill
from sentisynth.data.logits import softmax
from sentisynth.data.manifest import read_manifest, read_receipts
from sentisynth.data.receipts import Receipt
from sentisynth.data.run_directory import RunDirectory
from sentisynth.evaluation import plots
from sentisynth.evaluation.page import render_page, told_size
from sentisynth.evaluation.plots import Plot
from sentisynth.evaluation.sentences import (
    answer_sentence,
    gain_sentence,
    lead_arm,
    signed_points,
    synthesis_sentence,
)

_CANDIDATES = 4096  # read of a pool, over all classes
_CANDIDATES_OF_CLASS = (128, 1024)  # at least, at most
_ACCEPTED_SHOWN = 8  # of a class
_REJECTED_SHOWN = 4  # of a reason
_TEXT_SHOWN = 600  # characters
_CONTROLS = {code: 0x2400 + code for code in range(32)}  # their pictures: ␀, ␁, …

_REASONS = {
    schema.EMPTY: "nothing is left of it after cleaning",
    schema.TOO_SHORT: "it has fewer tokens than the least allowed",
    schema.CHARSET: "it has characters outside the allowed set",
    schema.REPETITION: "it repeats its own word pairs",
    schema.LEAK: "it matches a real validation or test row",
    schema.SEED_COPY: "it matches a real row that the generator learned from",
    schema.DUPLICATE: "it matches an earlier candidate",
    schema.UNTOKENIZABLE: "the teacher's tokenizer refuses the text",
    schema.NON_FINITE: "logits are not finite",
    schema.WRONG_LABEL: "the teacher names another class than the intended one",
    schema.BELOW_TAU: "the teacher names the intended class, with a probability below τ",
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of the pool as the page shows it."""

    text: str
    intended: str
    """The class that it was generated for."""
    verdict: str
    named: str | None
    """The class that the teacher names; none if a screen rejected the text."""
    probability: float | None
    """Of `intended`, by the teacher at T = 1."""
    highest: float | None
    """Of `named`."""


def render_report(directory: RunDirectory, metrics: dict[str, Any]) -> str:
    """The page of a run directory from its metrics.json; sections without figures are left out.

    Candidates come from the first units of each class, however large the pool. Raises
    RunDirectoryError where one of those, or the pool's manifest, is damaged.
    """
    synthesis = metrics.get("synthesis")
    run = directory.path
    candidates = _candidates(directory, metrics) if synthesis else []
    ledger = synthesis["ledger"] if synthesis else {}
    page: dict[str, Any] = {
        "colours": plots.COLOURS,
        "metrics": metrics,
        "answer": answer_sentence(metrics),
        "gain": gain_sentence(metrics["gain"]) if "gain" in metrics else None,
        "lead": lead_arm(metrics) if metrics["arms"] else None,
        "key_figures": list(_key_figures(metrics)),
        "plots": _plots(run, metrics, candidates),
        "settings": _settings(run, metrics),
        "kept_by": _metric(run),
        "synthesis_told": synthesis_sentence(synthesis) if synthesis else None,
        "screens": _screens(ledger),
        "most_entropy": math.log(len(metrics["labels"])),
        "n_read": max(map(len, candidates), default=0),
        "accepted": _accepted(metrics["labels"], candidates),
        "rejected": _rejected(ledger, candidates),
        "reasons": _REASONS,
    }
    return render_page("report.html.j2", page)


def _key_figures(metrics: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, figure and a note for each of the figures on top of the page."""
    arms = {arm["name"]: arm for arm in metrics["arms"]}
    if arms:
        lead = lead_arm(metrics)
        test, validation = lead["test"]["macro_f1"], lead["validation"]["macro_f1"]
        who = lead["name"] if lead["name"] in ("student", "teacher") else lead["title"]
        yield f"Test macro-F1, {who}", f"{test:.3f}", f"{validation:.3f} on validation rows"
    if "gain" in metrics:
        gain = metrics["gain"]
        low, high = signed_points(gain["low"]), signed_points(gain["high"])
        note = f"95% interval {low} to {high}"
        yield "Gain from synthetic rows", f"{signed_points(gain['macro_f1'])} points", note
    if {"teacher", "student"} <= set(arms):
        student, teacher = arms["student"]["parameters"], arms["teacher"]["parameters"]
        yield (
            "Student's parameters",
            told_size(student),
            f"{student / teacher:.0%} of the teacher's",
        )
    if "synthesis" in metrics:
        ledger = metrics["synthesis"]["ledger"].values()
        accepted, generated = (sum(e[k] for e in ledger) for k in ("accepted", "generated"))
        note = f"{accepted:,} of {generated:,}"
        yield "Candidates accepted", f"{accepted / max(1, generated):.0%}", note


def _plots(
    run: Path, metrics: dict[str, Any], candidates: list[list[Candidate]]
) -> dict[str, Plot | None]:
    """Every plot of the page by name; none where there is nothing to draw."""
    arms, synthesis = metrics["arms"], metrics.get("synthesis")
    histories = {arm["title"]: _evaluations(run, arm["name"]) for arm in arms}
    histories = {title: entries for title, entries in histories.items() if entries}
    best_steps = {arm["title"]: arm["best_step"] for arm in arms}
    perplexities = _evaluations(run, "generator") if "generator" in metrics else []
    sure = {
        is_right: [
            candidate.highest
            for rows in candidates
            for candidate in rows
            if candidate.highest is not None and (candidate.named == candidate.intended) == is_right
        ]
        for is_right in (True, False)
    }
    return {
        "arms": plots.arm_bars(arms) if arms else None,
        "curves": plots.learning_curves(histories, best_steps) if histories else None,
        "perplexity": plots.perplexity_curve(perplexities, metrics["generator"]["best_step"])
        if perplexities
        else None,
        "verdicts": plots.verdict_bars(synthesis["ledger"]) if synthesis else None,
        "confidence": plots.confidence_histogram(
            sure[True], sure[False], synthesis["tau"], len(metrics["labels"])
        )
        if synthesis and (sure[True] or sure[False])
        else None,
    }


def _evaluations(run: Path, stage: str) -> list[dict[str, float]]:
    path = run / stage / "metrics.json"
    return list(read_json(path)["evaluations"]) if path.is_file() else []


def _settings(run: Path, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """What the stages' stamps say they were made with; config.yaml may be of a later run."""
    directory = RunDirectory(run)
    stamps = {name: directory.read_stamp(name) or {} for name in ("dataset", "student")}
    found = [
        ("Seed", metrics["seed"]),
        ("τ, the least probability of an accepted row", stamps["dataset"].get("tau")),
        ("n_per_class, synthetic rows of each class", stamps["dataset"].get("n_per_class")),
        ("β, the weight of a synthetic row", stamps["dataset"].get("beta")),
        ("T, the temperature of the soft labels", stamps["dataset"].get("temperature")),
        ("α, the share of the soft-label term in the loss", stamps["student"].get("alpha")),
    ]
    return [
        (name, f"{value:,}" if isinstance(value, int) and name != "Seed" else str(value))
        for name, value in found
        if value is not None
    ]


def _metric(run: Path) -> str:
    """What the students' weights were chosen by, in words."""
    found: Any = RunDirectory(run).read_stamp("student")
    for key in ("student", "train", "metric"):  # of a stranger's stamp nothing is sure
        found = found.get(key) if isinstance(found, dict) else None
    metric = str(found or "macro_f1")
    return {"macro_f1": "macro-F1", "validation_loss": "the loss"}.get(metric, metric)


def _screens(ledger: dict[str, Any]) -> dict[str, int]:
    """How many candidates each screen rejected, in the screens' order."""
    return {
        reason: sum(entry["screened"].get(reason, 0) for entry in ledger.values())
        for reason in schema.SCREEN_REASONS
    }


def _candidates(directory: RunDirectory, metrics: dict[str, Any]) -> list[list[Candidate]]:
    """The first candidates of each class, in index order; none where the pool is not there."""
    manifest, stamp = read_manifest(directory.pool), directory.read_stamp("pool")
    if manifest is None or stamp is None:
        return []
    labels, synthesis = metrics["labels"], metrics["synthesis"]
    near_duplicates = stamp["synthesis"]["screens"]["near_duplicates"]
    least, most = _CANDIDATES_OF_CLASS
    share = min(most, max(least, _CANDIDATES // len(labels)))
    found = []
    for label, name in enumerate(labels):
        n = min(share, synthesis["ledger"][name]["generated"])
        units = read_receipts(directory.pool, manifest, label, near_duplicates)
        tally = Tally(synthesis["tau"], near_duplicates)
        found.append(list(islice(_judged(units, tally, labels), n)))
    return found


def _judged(
    units: Iterable[tuple[pa.Table, Receipt]], tally: Tally, labels: list[str]
) -> Iterator[Candidate]:
    """Rows of a class's units, with the verdicts that the ledger counts."""
    for table, receipt in units:
        verdicts = fill(table, receipt.rows, tally.add(receipt))
        for row, verdict in zip(table.to_pylist(), verdicts, strict=True):
            yield _candidate(row, verdict, labels)


def _candidate(row: dict[str, Any], verdict: str, labels: list[str]) -> Candidate:
    named = probability = highest = None
    if row[schema.TEACHER_LOGITS] is not None:
        probs_K = softmax(row[schema.TEACHER_LOGITS])
        named, highest = labels[int(probs_K.argmax())], float(probs_K.max())
        probability = float(probs_K[row[schema.LABEL]])
    return Candidate(
        text=_shown(row[schema.TEXT]),
        intended=labels[row[schema.LABEL]],
        verdict=verdict,
        named=named,
        probability=probability,
        highest=highest,
    )


def _accepted(labels: list[str], found: list[list[Candidate]]) -> dict[str, list[Candidate]]:
    """The first accepted candidates of each class."""
    return {
        name: list(islice((c for c in rows if c.verdict == schema.ACCEPTED), _ACCEPTED_SHOWN))
        for name, rows in zip(labels, found, strict=False)
    }


def _rejected(
    ledger: dict[str, Any], found: list[list[Candidate]]
) -> list[tuple[str, int, list[Candidate]]]:
    """Each reason that occurs, its count in the ledger, and its first candidates by turns."""
    groups = []
    for reason in _REASONS:
        n = sum(e["screened"].get(reason, 0) + e.get(reason, 0) for e in ledger.values())
        by_class = [[c for c in rows if c.verdict == reason] for rows in found]
        in_turn = [rows[i] for i in range(_REJECTED_SHOWN) for rows in by_class if i < len(rows)]
        if n:
            groups.append((reason, n, in_turn[:_REJECTED_SHOWN]))
    return groups


def _shown(text: str) -> str:
    """A text that can be read: control characters as their pictures, and not too long."""
    return (text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]} …").translate(_CONTROLS)
