"""Diagrams."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

OURS, THEIRS = "#0b57a4", "#a9b4c0"

Bar = tuple[str, float, tuple[float, float] | None, bool]
"""Name, rate in 0..1, its 95% interval if there is one, whether it is ours."""


def _pyplot() -> Any:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=160)
    _pyplot().close(figure)


def success(bars: Sequence[Bar], path: Path) -> None:
    """Success rates as bars, from the first at the top."""
    figure, axis = _pyplot().subplots(figsize=(7.2, 0.5 + 0.3 * len(bars)), layout="constrained")
    for place, (_, rate, interval, ours) in enumerate(bars):
        axis.barh(place, 100 * rate, color=OURS if ours else THEIRS, height=0.7)
        end = rate
        if interval is not None:
            low, end = interval
            axis.plot([100 * low, 100 * end], [place, place], color="#1f2328", linewidth=1.3, marker="|", markersize=7)
        axis.text(100 * max(rate, end) + 1.2, place, f"{100 * rate:.4g}%", va="center", fontsize=8)
    axis.set_yticks(range(len(bars)), [name for name, *_ in bars])
    axis.invert_yaxis()
    axis.set_xlim(0, 108)
    axis.set_xticks(range(0, 101, 20))
    axis.set_xlabel("success, %", fontsize=8)
    _plain(axis)
    _save(figure, path)


def latency(milliseconds: dict[str, np.ndarray], path: Path) -> None:
    """Histograms of the time of a policy step, one panel a name, with median and 99th percentile."""
    count = len(milliseconds)
    figure, axes = _pyplot().subplots(count, 1, figsize=(7.2, 1.9 * count), squeeze=False, layout="constrained")
    most = max(float(np.percentile(times, 99.5)) for times in milliseconds.values())
    for axis, (name, times) in zip(axes.flat, milliseconds.items(), strict=True):
        axis.hist(np.minimum(times, 1.2 * most), bins=60, range=(0, 1.2 * most), color=OURS)
        for share, style in ((50, "-"), (99, "--")):
            axis.axvline(np.percentile(times, share), color="#1f2328", linewidth=1, linestyle=style)
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_xlabel("milliseconds", fontsize=8)
        _plain(axis)
    _save(figure, path)


def token_map(rows: np.ndarray, names: Sequence[str], columns: Sequence[str], title: str, path: Path) -> None:
    """Shares as a table of colours: rows [R, C] float, with the names of rows and columns."""
    height = 0.9 + (0.26 if len(rows) <= 24 else 0.1) * len(rows)
    figure, axis = _pyplot().subplots(figsize=(1.6 + 0.8 * len(columns), height), layout="constrained")
    axis.imshow(rows, cmap="Blues", vmin=0, vmax=max(float(rows.max()), 1e-9), aspect="auto")
    if len(rows) <= 24:
        for (y, x), value in np.ndenumerate(rows):
            colour = "white" if value > 0.6 * rows.max() else "#1f2328"
            axis.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(names)), names)
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7, length=0)
    axis.spines[:].set_visible(False)
    _save(figure, path)


def pairs(groups: Sequence[tuple[str, float, float]], names: tuple[str, str], unit: str, path: Path) -> None:
    """Two bars beside each other for each group: (group, first, second)."""
    figure, axis = _pyplot().subplots(figsize=(7.2, 2.4), layout="constrained")
    places = np.arange(len(groups))
    for side, colour, label in ((0, OURS, names[0]), (1, THEIRS, names[1])):
        values = [group[1 + side] for group in groups]
        drawn = axis.bar(places + 0.4 * side - 0.2, values, 0.38, color=colour, label=label)
        axis.bar_label(drawn, fmt="%.1f", fontsize=8, padding=2)
    axis.set_xticks(places, [group[0] for group in groups])
    axis.set_ylabel(unit, fontsize=8)
    axis.margins(y=0.15)
    axis.legend(fontsize=8, frameon=False)
    _plain(axis)
    _save(figure, path)
