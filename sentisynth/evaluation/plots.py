"""The plots of the report, as SVG that is part of the page.

Colours are the page's CSS variables, so that a plot follows its light or dark scheme; text is text.
The same figures give the same bytes.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sentisynth import schema

# CSS variable: light, dark. The series are Okabe and Ito's colours, which remain apart for
# colour-blind readers, darkened or lightened to stand off the page.
COLOURS = {
    "surface": ("#ffffff", "#14181d"),
    "ink": ("#1b232c", "#e6eaef"),
    "muted": ("#56616e", "#a3aebb"),
    "rule": ("#d8dee5", "#323a44"),
    "blue": ("#0a6cab", "#5db3ec"),
    "sky": ("#7cbde6", "#2f6f9f"),
    "vermillion": ("#cb5a05", "#f08a45"),
    "green": ("#078060", "#3fc39b"),
    "purple": ("#9a4f84", "#d795c3"),
    "slate": ("#77828f", "#8f9aa7"),
}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
_SERIES = ("slate", "vermillion", "green", "blue", "purple", "sky")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_MOST_MARKERS = 40
_WIDTH = 5.0  # inches; 360 units of the view box

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in the name of a class is a dollar
    "font.size": 10.5,
    "axes.edgecolor": LIGHT["rule"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["ink"],
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["rule"],
    "ytick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
}
_IDS = re.compile(r' id="[A-Za-z][\w.]*_\d+"')  # of groups; nothing refers to them
_FONTS = re.compile(r"font-family: 'DejaVu Sans',[^;\"]*; ")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture for people who see it, and the same in words."""

    svg: Markup
    alt: str


@matplotlib.rc_context(STYLE)
def arm_bars(arms: Sequence[Mapping[str, Any]]) -> Plot:
    """Macro-F1 on the test rows, a bar an arm."""
    axes = new_axes(0.55 + 0.47 * len(arms))
    for i, arm in enumerate(arms):
        value = arm["test"]["macro_f1"]
        _bar_title(axes, i, arm["title"], f"{value:.3f}")
        axes.barh(i, 1.0, height=0.34, color=LIGHT["rule"], alpha=0.5)
        axes.barh(i, value, height=0.34, color=series_colour(i))
    _finish_bars(axes, len(arms))
    axes.set_xlabel("macro-F1 on test rows")
    told = ", ".join(f"{arm['title']} {arm['test']['macro_f1']:.3f}" for arm in arms)
    return finished("arms", axes, f"Bars of macro-F1 on the test rows: {told}.")


@matplotlib.rc_context(STYLE)
def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]], best_steps: Mapping[str, int]
) -> Plot:
    """Macro-F1 on the validation rows over optimiser steps, a line an arm; a ring marks the step
    whose weights were kept, which another figure than macro-F1 may have chosen.
    """
    told = []
    axes = new_axes(2.9 + 0.21 * len(histories))
    for i, (title, entries) in enumerate(histories.items()):
        _line(axes, i, entries, "macro_f1", _short(title))
        for entry in entries:
            if entry["step"] == best_steps[title]:
                _ring(axes, entry["step"], entry["macro_f1"], series_colour(i))
                told.append(f"{title}: kept {entry['macro_f1']:.3f} at step {entry['step']}")
    axes.set_xlim(left=0)
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("macro-F1 on validation rows")
    axes.figure.legend(loc="outside upper left", handlelength=2.4)
    alt = f"Lines of macro-F1 on the validation rows over steps. {'; '.join(told)}."
    return finished("curves", axes, alt)


@matplotlib.rc_context(STYLE)
def perplexity_curve(entries: Sequence[Mapping[str, float]], best_step: int) -> Plot:
    """Perplexity of the generator on the validation rows over optimiser steps."""
    axes = new_axes(2.9)
    _line(axes, 3, entries, "perplexity", "perplexity")
    for entry in entries:
        if entry["step"] == best_step:
            _ring(axes, best_step, entry["perplexity"], series_colour(3))
    values = [entry["perplexity"] for entry in entries]
    axes.update_datalim([(0, 0.85 * min(values)), (0, max(values))])  # noise shall look small
    axes.autoscale_view()
    axes.set_xlim(left=0)
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("perplexity on validation rows")
    told = ", ".join(f"{entry['perplexity']:.1f} at step {entry['step']}" for entry in entries[-8:])
    return finished("perplexity", axes, f"A line of the generator's perplexity over steps: {told}.")


@matplotlib.rc_context(STYLE)
def verdict_bars(ledger: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Shares of a class's candidates by verdict, a stacked bar a class."""
    verdicts = {
        "accepted": ("blue", [e[schema.ACCEPTED] for e in ledger.values()]),
        "right class, below τ": ("sky", [e[schema.BELOW_TAU] for e in ledger.values()]),
        "wrong label": ("vermillion", [e[schema.WRONG_LABEL] for e in ledger.values()]),
        "screened out": ("slate", [sum(e["screened"].values()) for e in ledger.values()]),
    }
    generated = np.array([max(1, entry["generated"]) for entry in ledger.values()])
    axes = new_axes(0.95 + 0.47 * len(ledger))
    left = np.zeros(len(ledger))
    for title, (colour, counts) in verdicts.items():
        share = np.array(counts) / generated
        style = {"color": LIGHT[colour], "edgecolor": LIGHT["surface"], "linewidth": 0.8}
        axes.barh(range(len(ledger)), share, left=left, height=0.34, label=title, **style)
        left += share
    for i, (name, n) in enumerate(zip(ledger, generated, strict=True)):
        _bar_title(axes, i, name, f"{n:,} generated")
    _finish_bars(axes, len(ledger))
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2, handlelength=1.2)
    shares = verdicts["accepted"][1] / generated
    told = ", ".join(f"{name} {s:.0%}" for name, s in zip(ledger, shares, strict=True))
    return finished("verdicts", axes, f"Stacked bars of verdicts by class. Accepted: {told}.")


@matplotlib.rc_context(STYLE)
def confidence_histogram(
    right: Sequence[float], wrong: Sequence[float], tau: float, n_classes: int
) -> Plot:
    """The teacher's highest probability (T = 1), by whether it named the intended class."""
    axes = new_axes(3.25)
    axes.hist(
        [right, wrong],
        bins=np.linspace(1 / n_classes, 1, 26).tolist(),
        stacked=True,
        color=[LIGHT["blue"], LIGHT["vermillion"]],
        label=["names the intended class", "names another class"],
        edgecolor=LIGHT["surface"],
        linewidth=0.6,
    )
    axes.axvline(tau, color=LIGHT["ink"], linewidth=1.2, linestyle=(0, (4, 3)))
    axes.margins(y=0.14)
    left = tau > (1 + 1 / n_classes) / 2
    axes.annotate(
        f"τ = {tau:g}",
        (tau, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if left else 5, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
    )
    axes.set_xlabel("highest probability that the teacher gives a class")
    axes.set_ylabel("candidates")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2, handlelength=1.2)
    n_sure = [sum(p >= tau for p in part) for part in (right, wrong)]
    return finished(
        "confidence",
        axes,
        f"Histogram of the teacher's highest probability for {len(right) + len(wrong):,} scored "
        f"candidates. It names the intended class for {len(right):,}, {n_sure[0]:,} of them at or "
        f"above τ = {tau:g}, and another class for {len(wrong):,}, {n_sure[1]:,} at or above τ.",
    )


def new_axes(height: float) -> Any:
    """Axes of a new figure `height` inches high, to be drawn on inside `STYLE`.

    matplotlib takes a style from process-wide settings; `rc_context` puts them back.
    """
    axes = Figure(figsize=(_WIDTH, height), layout="constrained").subplots()
    axes.grid(visible=True, axis="y")
    axes.tick_params(length=0)
    return axes


def series_colour(i: int) -> str:
    return LIGHT[_SERIES[i % len(_SERIES)]]


def _short(title: str, width: int = 46) -> str:
    return title if len(title) <= width else f"{title[: width - 1]}…"


def _bar_title(axes: Any, i: int, title: str, figure: str) -> None:
    """The bar's name above its left end and its figure above the right end of the scale."""
    axes.text(0, i - 0.26, _short(title, 38), va="bottom", ha="left")
    axes.text(1, i - 0.26, figure, va="bottom", ha="right")


def _finish_bars(axes: Any, n: int) -> None:
    axes.grid(visible=False)
    axes.set(xlim=(0, 1), ylim=(n - 0.7, -0.75), yticks=[])
    axes.spines["left"].set_visible(False)


def _line(axes: Any, i: int, entries: Sequence[Mapping[str, float]], key: str, label: str) -> None:
    axes.plot(
        [entry["step"] for entry in entries],
        [entry[key] for entry in entries],
        color=series_colour(i),
        marker=_MARKERS[i % len(_MARKERS)] if len(entries) <= _MOST_MARKERS else "",
        label=label,
    )
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def _ring(axes: Any, step: float, value: float, colour: str) -> None:
    """Mark the step whose weights were kept."""
    axes.plot([step], [value], "o", markersize=12, fillstyle="none", color=colour, linewidth=1.2)


def finished(name: str, axes: Any, alt: str) -> Plot:
    """The figure as an SVG element whose colours are CSS variables. `name` keeps the ids of one
    plot apart from those of another.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The text is drawn by the reader's fonts, whatever is missing in matplotlib's own.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        axes.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    box = re.search(r'viewBox="([\d. -]+)"', svg)
    assert box is not None
    drawn = svg[svg.index("</defs>") + len("</defs>") :]  # past the header, metadata and style
    drawn = _FONTS.sub("", _IDS.sub("", drawn))
    for colour, value in LIGHT.items():
        drawn = drawn.replace(value, f"var(--{colour})")
    # matplotlib has escaped every text in it.
    return Plot(svg=Markup(f'<svg viewBox="{box[1]}">{drawn}'), alt=alt)  # noqa: S704
