"""What was pruned, what was not, and why: as a table, a dictionary, a plot."""

from keras_prune.report.report import Report, report

__all__ = ["Report", "report"]
