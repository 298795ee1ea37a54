"""Structured pruning: neurons, filters, channels and heads really removed, for any Keras 3 graph.

`plan(model, params=0.5)` chooses, prints and counts; its `apply()` gives a new, smaller model. `prune` does both,
`remove` takes units by hand, `count` counts, and `rule_for` teaches the graph a layer of one's own.
"""

from keras_prune.structured.activity import ActivationSum, APoZ, Entropy, MeanActivation
from keras_prune.structured.counting import Count, Counts, count
from keras_prune.structured.groups import Analysis, Group, Slot, analyse
from keras_prune.structured.importance import (
    FPGM,
    L1,
    L2,
    LAMP,
    BatchNormScale,
    Fisher,
    Gradient,
    Importance,
    Random,
    Taylor,
)
from keras_prune.structured.plan import Plan, plan, prune, remove
from keras_prune.structured.rules import Axis, Call, Cost, Dims, Effect, Width, rule_for

__all__ = [
    "FPGM",
    "L1",
    "L2",
    "LAMP",
    "APoZ",
    "ActivationSum",
    "Analysis",
    "Axis",
    "BatchNormScale",
    "Call",
    "Cost",
    "Count",
    "Counts",
    "Dims",
    "Effect",
    "Entropy",
    "Fisher",
    "Gradient",
    "Group",
    "Importance",
    "MeanActivation",
    "Plan",
    "Random",
    "Slot",
    "Taylor",
    "Width",
    "analyse",
    "count",
    "plan",
    "prune",
    "remove",
    "rule_for",
]
