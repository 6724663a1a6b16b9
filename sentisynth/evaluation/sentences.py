"""What a run found, in sentences: the same words on the terminal and on the page."""

from typing import Any

_MOST_CLASSES_TOLD = 4


def answer_sentence(metrics: dict[str, Any]) -> str:
    """What the student, or what there is in its place, reached on the real test rows."""
    by_name = {arm["name"]: arm for arm in metrics["arms"]}
    if not by_name:
        return "No classifier has been trained yet; this page shows what is there."
    lead, teacher = lead_arm(metrics), by_name.get("teacher")
    who = f"The {lead['name']}" if lead["name"] in ("student", "teacher") else f"“{lead['title']}”"
    reached = f"{who} reaches a macro-F1 of {lead['test']['macro_f1']:.3f}"
    sentence = f"{reached} on {metrics['rows']['test']:,} real test rows"
    if lead is teacher:
        return f"{sentence}. No student has been trained yet."
    if teacher is not None:
        ratio = f"{teacher['parameters'] / lead['parameters']:.1f}"
        with_parameters = "" if ratio == "1.0" else f", with {ratio} times its parameters,"
        sentence += f"; the teacher{with_parameters} reaches {teacher['test']['macro_f1']:.3f}"
    return f"{sentence}."


def lead_arm(metrics: dict[str, Any]) -> dict[str, Any]:
    """The arm that the run is about: the student, or the last one that is there."""
    arms: list[dict[str, Any]] = metrics["arms"]
    return next((arm for arm in arms if arm["name"] == "student"), arms[-1])


def synthesis_sentence(synthesis: dict[str, Any]) -> str:
    """How many candidates it took; of many classes the extremes are told."""
    rows, rates = synthesis["rows"], synthesis["acceptance"]
    generated = sum(e["generated"] for e in synthesis["ledger"].values())
    if len(rows) <= _MOST_CLASSES_TOLD:
        kept = ", ".join(f"{n:,} {name}" for name, n in rows.items())
        told = ", ".join(f"{name} {rate:.0%}" for name, rate in rates.items())
    else:
        kept = f"{sum(rows.values()):,} in {len(rows)} classes"
        low, high = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
        told = f"from {rates[low]:.0%} of {low} to {rates[high]:.0%} of {high}"
    return f"Synthetic rows: {kept}, from {generated:,} candidates (accepted: {told})."


def gain_sentence(gain: dict[str, Any]) -> str:
    """What the synthetic rows gave, with its uncertainty."""
    points, low, high = (signed_points(gain[key]) for key in ("macro_f1", "low", "high"))
    interval = f"95% interval {low} to {high}"
    if gain["low"] > 0:
        return (
            f"The synthetic rows gave the student {points} points of test macro-F1 "
            f"({interval}, clear of zero)."
        )
    if gain["high"] < 0:
        return (
            f"The synthetic rows cost the student test macro-F1: {points} points "
            f"({interval}, clear of zero)."
        )
    return (
        f"With the synthetic rows the student's test macro-F1 differs by {points} points, "
        f"but the {interval} contains zero: these test rows do not show a gain or a loss."
    )


def signed_points(difference: float) -> str:
    """A difference of two macro-F1 in points of 0.01, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")
