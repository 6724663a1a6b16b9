"""The plots of a sweep: a grid, points that fill none, a curve over one dimension."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from sentisynth.evaluation.plots import LIGHT, STYLE, Plot, finished, new_axes, series_colour

_LOG_SPAN = 100


@matplotlib.rc_context(STYLE)
def heat_map(points: Sequence[Mapping[str, Any]], x: str, y: str, labels: Sequence[str]) -> Plot:
    """Mean macro-F1 of each point of a grid over two dimensions; the best is framed."""
    columns = sorted({p["point"][x] for p in points})
    rows = sorted({p["point"][y] for p in points})
    low, high = min(p["mean"] for p in points), max(p["mean"] for p in points)
    axes = new_axes(1.1 + 0.38 * len(rows))
    axes.grid(visible=False)
    size = 9.0 if len(columns) < 8 else 7.0
    for p in points:
        i, j = columns.index(p["point"][x]), rows.index(p["point"][y])
        share = (p["mean"] - low) / (high - low) if high > low else 0.0
        is_best = p["mean"] == high
        cell = Rectangle(
            (i - 0.5, j - 0.5), 1, 1, facecolor=LIGHT["blue"], alpha=0.08 + 0.5 * share
        )
        axes.add_patch(cell)
        if is_best:
            frame = Rectangle((i - 0.46, j - 0.46), 0.92, 0.92, fill=False, edgecolor=LIGHT["ink"])
            axes.add_patch(frame)
        axes.text(i, j, f"{p['mean']:.3f}", ha="center", va="center", fontsize=size)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5))
    axes.set_xticks(range(len(columns)), [f"{c:g}" for c in columns])
    axes.set_yticks(range(len(rows)), [f"{r:g}" for r in rows])
    axes.set(xlabel=labels[0], ylabel=labels[1])
    best = max(points, key=lambda p: p["mean"])
    told = f"{labels[0]} {best['point'][x]:g}, {labels[1]} {best['point'][y]:g}"
    return finished(
        "heat", axes, f"Map of macro-F1 on the validation rows; best {high:.3f} at {told}."
    )


@matplotlib.rc_context(STYLE)
def spread_curve(
    points: Sequence[Mapping[str, Any]], dim: str, label: str, title: str, of: str = ""
) -> Plot:
    """A line over one dimension: the mean, a band of one standard deviation and bars of the 95 %
    interval over the seeds; or `of`, a measure of the selected rows.
    """
    axes = new_axes(2.9)
    xs = [p["point"][dim] for p in points]
    means = [p["diversity"][of] if of else p["mean"] for p in points]
    colour = series_colour(1 if of else 3)
    if not of:
        deviations = np.array([p["std"] or 0.0 for p in points])
        middle = np.array(means)
        axes.fill_between(
            xs, middle - deviations, middle + deviations, color=colour, alpha=0.15, linewidth=0
        )
        lows = [p["mean"] if p["low"] is None else p["low"] for p in points]
        highs = [p["mean"] if p["high"] is None else p["high"] for p in points]
        axes.vlines(xs, lows, highs, color=colour)
    axes.plot(xs, means, color=colour, marker="o")
    axes.set(xlabel=label, ylabel=title)
    told = ", ".join(f"{x:g}: {m:.3f}" for x, m in zip(xs, means, strict=True))
    return finished(f"curve-{of or 'f1'}", axes, f"Line of {title} over {label}. {told}.")


@matplotlib.rc_context(STYLE)
def scatter(points: Sequence[Mapping[str, Any]], x: str, y: str, labels: Sequence[str]) -> Plot:
    """Points that fill no grid, over two dimensions: the stronger their colour, the higher their
    mean macro-F1; the best is ringed. A dimension that spans two orders of magnitude is
    logarithmic.
    """
    axes = new_axes(3.2)
    low, high = min(p["mean"] for p in points), max(p["mean"] for p in points)
    best = max(points, key=lambda p: p["mean"])
    for p in points:
        share = (p["mean"] - low) / (high - low) if high > low else 1.0
        place = ([p["point"][x]], [p["point"][y]])
        axes.plot(*place, "o", color=LIGHT["blue"], alpha=0.12 + 0.88 * share, markersize=7)
    axes.plot([best["point"][x]], [best["point"][y]], "o", markersize=13, fillstyle="none",
              color=LIGHT["ink"], linewidth=1.2)  # fmt: skip
    for name, axis, scale in ((x, axes.xaxis, axes.set_xscale), (y, axes.yaxis, axes.set_yscale)):
        values = [p["point"][name] for p in points]
        if min(values) > 0 and max(values) >= _LOG_SPAN * min(values):
            scale("log")
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(xlabel=labels[0], ylabel=labels[1])
    scale_told = f"stronger colour, higher macro-F1: {low:.3f} to {high:.3f}"
    axes.figure.suptitle(scale_told, fontsize=STYLE["font.size"], x=0.01, ha="left")
    told = f"{labels[0]} {best['point'][x]:.3g}, {labels[1]} {best['point'][y]:.3g}"
    alt = f"{len(points)} points by macro-F1 on the validation rows; best {high:.3f} at {told}."
    return finished("scatter", axes, alt)
