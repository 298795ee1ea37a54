"""The chart of a search: what each file gains, and what it costs in the metric."""

from __future__ import annotations

import os

from keras_prune.report.plots import plot_front as draw_front
from tflite_export.compression.report import CompressReport

__all__ = ["plot_front"]


def plot_front(report: CompressReport, path: str | os.PathLike[str]) -> None:
    """Write a chart of metric against gain, with the Pareto front and what may be lost.

    Args:
        report: of the search.
        path: the file; its ending gives the format.

    Raises:
        ImportError: matplotlib is not installed; the message has the command.
    """
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in report.rows:
        if row.cost is not None and row.metric is not None:
            candidate = row.candidate
            means = [
                name for name, used in (("fewer channels", candidate.keep < 1), ("zeros", candidate.sparsity)) if used
            ]
            groups.setdefault(" + ".join([*means, candidate.number_type]), []).append((row.ratio, row.metric))
    assert report.chosen.metric is not None
    sign = -1.0 if report.metric.rises else 1.0
    draw_front(
        groups,
        path,
        chosen=(report.ratio, report.chosen.metric),
        least=report.baseline + sign * report.max_drop,
        rises=report.metric.rises,
        across=f"times less {report.objective} than the plain file",
        up=report.metric.name,
    )
