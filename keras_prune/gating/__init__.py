"""What gates do on data: which channels samples open, what that would save, and channels that none opens removed.

`keras_prune.Gated` is the layer; `report(model, data)`, also `keras_prune.gate_report`, counts;
`remove_closed(model, data)` gives a model without the channels that no sample opens.
"""

from keras_prune.gating.removal import remove_closed
from keras_prune.gating.report import GatedCount, GateReport, report

__all__ = ["GateReport", "GatedCount", "remove_closed", "report"]
