"""Charts, drawn without a screen and without touching pyplot."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_prune.arrays.fronts import non_dominated
from keras_prune.extras import import_extra

__all__ = [
    "pareto_front",
    "plot_amounts",
    "plot_front",
    "plot_history",
    "plot_search",
    "plot_sensitivity",
    "plot_sparsity",
    "plot_trade",
]

INK = "#333333"
FAINT = "#d9d9d9"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which colour-blind readers tell apart."""

ONE_COLUMN = 24
"""Up to so many bars stand in one column."""

NAMED = 45
"""The most names that a column has."""

MOST_INCHES = 8.0
"""The height of a column of many bars."""

Path = str | os.PathLike[str]


def plot_sparsity(sparsities: Mapping[str, float], path: Path, *, mean: float | None = None) -> None:
    """Write a bar chart of sparsities by name, one bar a tensor in the order given, from the top.

    Many tensors stand in two columns; of more than ninety, not every one is named.

    Args:
        sparsities: fractions in [0, 1].
        path: the file; its ending gives the format.
        mean: the sparsity of all together, drawn as a line.
    """
    figure, columns = _bars({name: 100 * value for name, value in sparsities.items()}, "{:.1f} %")
    if mean is not None:
        figure.suptitle(f"Sparsity by tensor (together: {mean:.1%})", x=0.01, ha="left", color=INK, fontsize=12)
    for axes in columns:
        if mean is not None:
            axes.axvline(100 * mean, color=COLOURS[1], linewidth=1.5, linestyle="--", zorder=0)
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("zeros, %")
    _save(figure, path)


def plot_amounts(amounts: Mapping[str, float], path: Path, *, label: str) -> None:
    """Write a bar chart of amounts by name, in the order given, from the top.

    Many stand in two columns; of more than ninety, not every one is named.

    Args:
        amounts: numbers from 0.
        path: the file; its ending gives the format.
        label: what they are.
    """
    figure, columns = _bars(amounts, "{:,.0f}")
    for axes in columns:
        axes.set_xlim(0, 1.18 * max(amounts.values()))
        axes.set_xlabel(label)
    _save(figure, path)


def _bars(values: Mapping[str, float], form: str) -> tuple[Any, list[Any]]:
    """A bar for each name, with its number at the end, in one column or two.

    Rows get thinner as there are more, down to what a line of text needs. From there on one name stands for a few, and
    no numbers, which would cover the bars beside them.
    """
    names, amounts = list(values), list(values.values())
    count = 1 if len(names) <= ONE_COLUMN else 2
    rows = max(1, -(-len(names) // count))
    every = -(-rows // NAMED)
    inches = min(0.32 * rows, max(MOST_INCHES, 0.32 * ONE_COLUMN if count == 1 else 0.0))
    figure = _figure(height=1.2 + inches, width=8 * count)
    columns = list(figure.subplots(1, count, squeeze=False)[0])
    if every > 1:
        figure.supxlabel(f"one name in {every} is written", color=INK, fontsize=9)
    size = min(10.0, 0.65 * 72 * inches * every / rows)
    for axes, start in zip(columns, range(0, len(names), rows), strict=True):
        _style(axes)
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        part = amounts[start : start + rows]
        axes.barh(np.arange(len(part)), part, height=0.7, color=COLOURS[0])
        named = range(0, len(part), every)
        axes.set_yticks(named, [names[start + place] for place in named], fontsize=size)
        axes.set_ylim(rows - 0.4, -0.6)
        for place in named if every == 1 else ():
            axes.annotate(
                form.format(part[place]),
                (part[place], place),
                (4, 0),
                textcoords="offset points",
                va="center",
                color=INK,
                fontsize=size,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            )
    return figure, columns


def plot_history(
    steps: Sequence[float], series: Mapping[str, Sequence[float | None]], path: Path, *, title: str | None = None
) -> None:
    """Write curves over training steps: sparsity and accuracy, say, all fractions in [0, 1].

    Args:
        steps: the steps, `[n]`.
        series: values by name, `[n]` each; None or NaN where there is none (accuracy known at ends of epochs only).
        path: the file; its ending gives the format.
        title: a line above the chart.

    Raises:
        ImportError: matplotlib is not installed; the message has the command.
        ValueError: a series is not as long as the steps.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> plot_history([0, 10, 20], {"sparsity": [0, 0.5, 0.9], "accuracy": [0.6, None, 0.9]}, folder + "/run.png")
        >>> os.listdir(folder)
        ['run.png']
    """
    for name, values in series.items():
        if len(values) != len(steps):
            raise ValueError(
                f"plot_history: each series has one value a step. Received: {len(values)} values of {name!r} for "
                f"{len(steps)} steps."
            )
    figure = _figure(height=3.6)
    axes = figure.add_subplot()
    _style(axes)
    for number, (name, values) in enumerate(series.items()):
        ys = 100 * np.array(values, dtype=float)
        known = ~np.isnan(ys)
        marker = "o" if known.sum() <= 40 else None
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(np.asarray(steps)[known], ys[known], color=colour, marker=marker, markersize=4, label=name)
    axes.set_ylim(0, 102)
    axes.set_xlabel("step")
    axes.set_ylabel("%")
    axes.grid(color=FAINT, linewidth=0.8)
    axes.legend(frameon=False, labelcolor=INK, loc="best")
    if title:
        axes.set_title(title, loc="left", color=INK)
    _save(figure, path)


def plot_sensitivity(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: Path,
    *,
    label: str,
    whole: float,
    order: Sequence[str],
) -> None:
    """Write a metric against sparsity, a curve for each tensor; the first of an order have colours and names.

    Args:
        curves: sparsities, fractions in [0, 1], and values, by name.
        path: the file; its ending gives the format.
        label: the metric's name.
        whole: its value without pruning, drawn as a line.
        order: the names, the most telling first.
    """
    figure = _figure(height=4.2)
    axes = figure.add_subplot()
    _style(axes)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.axhline(whole, color=INK, linewidth=1.0, linestyle="--", label=f"nothing pruned: {whole:.4g}")
    rest = order[len(COLOURS) :]
    for number, name in enumerate(rest):
        sparsities, values = curves[name]
        others = f"{len(rest)} more" if number == 0 else None
        axes.plot(100 * np.asarray(sparsities), values, color="#b0b0b0", linewidth=1.0, label=others, zorder=1)
    for colour, name in zip(COLOURS, order, strict=False):
        sparsities, values = curves[name]
        axes.plot(100 * np.asarray(sparsities), values, color=colour, marker="o", markersize=4, label=name, zorder=2)
    axes.set_xlim(0, 102)
    axes.set_xlabel("zeros in one tensor, the others as they are, %")
    axes.set_ylabel(label)
    figure.legend(frameon=False, labelcolor=INK, loc="outside right upper", fontsize=9)
    _save(figure, path)


def plot_search(
    numbers: Sequence[int], values: Sequence[float], path: Path, *, label: str, rises: bool, dense: float
) -> None:
    """Write the values of trials as dots, and the best so far as a line.

    Args:
        numbers: of the trials, `[n]`.
        values: `[n]`.
        path: the file; its ending gives the format.
        label: what the values are.
        rises: whether more is better.
        dense: the value before anything was tried, drawn as a line.
    """
    figure = _figure(height=3.6)
    axes = figure.add_subplot()
    _style(axes)
    best = np.maximum.accumulate(values) if rises else np.minimum.accumulate(values)
    axes.axhline(dense, color=COLOURS[1], linewidth=1.5, linestyle="--", zorder=0, label="dense")
    axes.plot(numbers, values, "o", color=COLOURS[0], markersize=4, label="trial")
    axes.step(numbers, best, where="post", color=COLOURS[2], label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(label)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.legend(frameon=False, labelcolor=INK, loc="best")
    _save(figure, path)


def plot_trade(values: Mapping[str, Sequence[float]], front: Sequence[bool], path: Path) -> None:
    """Write trials as dots, the first value against each of the others, and those on the Pareto front joined.

    Args:
        values: name -> `[n]`, two or more names.
        front: `[n]`, which are on the front.
        path: the file; its ending gives the format.
    """
    (first, heights), *others = values.items()
    figure = _figure(height=4.2, width=6 * len(others))
    on = np.array(front, dtype=bool)
    ys = np.asarray(heights, dtype=float)
    for axes, (name, amounts) in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        _style(axes)
        xs = np.asarray(amounts, dtype=float)
        axes.plot(xs[~on], ys[~on], "o", color=COLOURS[5], markersize=4, label="trial")
        order = np.argsort(xs[on], kind="stable")
        line = "-" if len(others) == 1 else ""  # a front in more than two dimensions is no line here
        axes.plot(xs[on][order], ys[on][order], f"o{line}", color=COLOURS[0], markersize=5, label="front")
        axes.set_xlabel(name)
        axes.set_ylabel(first)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.legend(frameon=False, labelcolor=INK, loc="best")
    _save(figure, path)


def plot_front(
    groups: Mapping[str, Sequence[tuple[float, float]]],
    path: Path,
    *,
    chosen: tuple[float, float],
    least: float,
    rises: bool,
    across: str,
    up: str,
) -> None:
    """Write points by group, gain across and metric up, the Pareto front through them, and the chosen point marked.

    Args:
        groups: (gain, metric) of each point, by what the points have in common.
        path: the file; its ending gives the format.
        chosen: the point to mark.
        least: the metric that is still good enough, drawn as a line.
        rises: whether more of the metric is better.
        across: what the gain is.
        up: what the metric is.

    Raises:
        ImportError: matplotlib is not installed; the message has the command.
    """
    figure = _figure(height=4.2)
    axes = figure.add_subplot()
    _style(axes)
    axes.grid(color=FAINT, linewidth=0.8)
    front = pareto_front([point for points in groups.values() for point in points], rises=rises)
    axes.plot(*zip(*front, strict=True), color=FAINT, linewidth=2, zorder=1, label="Pareto front")
    axes.axhline(least, color=COLOURS[1], linewidth=1.2, linestyle="--", zorder=1, label="good enough")
    for number, (name, points) in enumerate(groups.items()):
        axes.scatter(*zip(*points, strict=True), s=28, color=COLOURS[number % len(COLOURS)], label=name, zorder=2)
    axes.scatter(*chosen, s=140, facecolors="none", edgecolors=INK, linewidths=1.6, label="chosen", zorder=3)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(frameon=False, labelcolor=INK, loc="best", fontsize=9)
    _save(figure, path)


def pareto_front(points: Sequence[tuple[float, float]], *, rises: bool) -> list[tuple[float, float]]:
    """Return the points that no other beats in both gain and metric, by gain.

    Example:
        >>> pareto_front([(1, 0.9), (2, 0.8), (2, 0.7), (3, 0.85)], rises=True)
        [(1, 0.9), (3, 0.85)]
    """
    sign = 1.0 if rises else -1.0
    stays = non_dominated([(-gain, -sign * metric) for gain, metric in points])
    return sorted({point for point, one in zip(points, stays, strict=True) if one})


def _save(figure: Any, path: Path) -> None:
    """Write a figure.

    Raises:
        OSError: the path cannot be written. ValueError: its ending is no format.
    """
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(
            f"The plot cannot be written to {os.fspath(path)!r}: {error}. "
            "Choose a folder that exists and may be written, and an ending such as .png, .svg or .pdf."
        ) from error


def _figure(height: float, width: float = 8) -> Any:
    """A figure of its own, without pyplot, so that no window, backend or setting of the user's is touched."""
    canvas = import_extra("matplotlib.backends.backend_agg", "viz", "plots").FigureCanvasAgg
    figure = import_extra("matplotlib.figure", "viz", "plots").Figure(
        figsize=(width, height), dpi=120, layout="constrained", facecolor="white"
    )
    canvas(figure)
    return figure


def _style(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
