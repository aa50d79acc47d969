"""Learning curves of one or several experiments."""

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speechattn.evaluation.svg import GRID, MUTED, RC, SERIES, WIDTH, to_svg


def learning_curves(metrics: Mapping[str, np.ndarray]) -> str:
    """Draw losses, validation error and learning rate over epochs as SVG; "" without any."""
    panels = {
        "loss": {
            "train": "train_loss",
            "validation": "valid_loss",
            "validation, CTC": "valid_ctc_loss",
            "validation, attention": "valid_att_loss",
            "validation, right to left": "valid_reverse_loss",
            "validation, intermediate CTC": "valid_intermediate_loss",
            "validation, transducer": "valid_transducer_loss",
        },
        "validation token error, %": {"": "valid_error"},
        "learning rate": {"": "lr"},
    }
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for title, names in panels.items():
        lines = {label: by_epoch(metrics, name) for label, name in names.items()}
        lines = {label: line for label, line in lines.items() if line is not None}
        if lines:
            found[title] = lines
    if not found:
        return ""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        grid = figure.subplots(1, len(found), squeeze=False)[0]
        unit = "epoch" if "epoch" in metrics else "step"
        for axes, (title, lines) in zip(grid, found.items(), strict=True):
            _lines(axes, title, lines, unit)
        return to_svg(figure)


def compare_curves(curves: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Draw the validation errors of several experiments as one SVG; "" for fewer than two."""
    series = {name: by_epoch(metrics, "valid_error") for name, metrics in curves.items()}
    series = {name: line for name, line in series.items() if line is not None}
    if len(series) < 2:
        return ""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        axes = figure.add_subplot()
        _lines(axes, "validation token error, %", series)
        return to_svg(figure)


def by_epoch(metrics: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (epochs, mean values), or steps without an epoch column; None below two of them."""
    values = metrics.get(name)
    if values is None:
        return None
    x = metrics.get("epoch", metrics.get("step", np.arange(len(values), dtype=float)))
    known = np.isfinite(values) & np.isfinite(x)
    epochs, index = np.unique(x[known], return_inverse=True)
    if len(epochs) < 2:
        return None
    return epochs, np.bincount(index, weights=values[known]) / np.bincount(index)


def _lines(
    axes: Axes, title: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]], unit: str = "epoch"
) -> None:
    for i, (label, (x, y)) in enumerate(series.items()):
        style = "-" if i < 2 else "--"
        axes.plot(x, y, style, color=SERIES[i % len(SERIES)], linewidth=1.6, label=label)
    if "error" in title and len(series) == 1:
        x, y = next(iter(series.values()))
        best = int(np.argmin(y))
        axes.plot(x[best], y[best], "o", color=SERIES[0], markersize=4)
        text = f"best {y[best]:.3g} at {unit} {x[best]:g}"
        corner = {"transform": axes.transAxes, "ha": "right", "va": "top"}
        axes.text(0.98, 0.97, text, **corner, fontsize=8, color=MUTED)
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(length=0)
    if "error" in title or all(line[1].min() >= 0 for line in series.values()):
        axes.set_ylim(bottom=0)
    if any(series):
        axes.legend(frameon=False, fontsize=8)
