"""Structured pruning: neurons, filters, channels and heads really removed, for any Keras 3 graph.

`plan(model, params=0.5)` chooses, prints and counts; its `apply()` gives a new, smaller model. `prune` does both,
`remove` takes units by hand, `iterate` removes and trains in rounds. In `fit`, `StructuredPruning` closes units and
`StructureAdjustment` closes and opens them. `widen`, `deepen` and `drop_layers` change a model otherwise, `count`
counts, and `rule_for` teaches the graph a layer of one's own.
"""

from keras_prune.structured.analysis.groups import Analysis, Group, Slot, analyse
from keras_prune.structured.counting.counting import Count, Counts, count
from keras_prune.structured.fit.adjust import StructureAdjustment
from keras_prune.structured.fit.adjustments import Adjustment, Adjustments
from keras_prune.structured.fit.callback import StructuredPruning
from keras_prune.structured.fit.gates import Gates
from keras_prune.structured.fit.regularise import GroupLasso, GrowingRegularisation, Slimming
from keras_prune.structured.importances.ablation import ablate
from keras_prune.structured.importances.activity import ActivationSum, APoZ, Entropy, MeanActivation
from keras_prune.structured.importances.features import Features, features
from keras_prune.structured.importances.importance import AxisImportance, Importance, ScoredUnits
from keras_prune.structured.importances.learned import Learned
from keras_prune.structured.importances.of_gradients import Fisher, Gradient, Taylor
from keras_prune.structured.importances.of_weights import FPGM, L1, L2, BatchNormScale, LAMPScore, Random
from keras_prune.structured.importances.second_order import SecondOrder
from keras_prune.structured.planning.distill import Distillation
from keras_prune.structured.planning.latency import Latency
from keras_prune.structured.planning.plan import Plan, plan, prune, remove
from keras_prune.structured.planning.rounds import PruningHistory, Round, iterate
from keras_prune.structured.rules.registry import Axis, Call, Cost, Dims, Effect, Width, rule_for
from keras_prune.structured.surgery.deepen import deepen
from keras_prune.structured.surgery.depth import BlockCost, RemovableBlock, depth_costs, drop_layers, droppable
from keras_prune.structured.surgery.net2net import widen
from keras_prune.structured.surgery.shrink import shrink

Block = RemovableBlock  # former names
Flow = PruningHistory
LAMP = LAMPScore
Scored = ScoredUnits

__all__ = [
    "FPGM",
    "L1",
    "L2",
    "APoZ",
    "ActivationSum",
    "Adjustment",
    "Adjustments",
    "Analysis",
    "Axis",
    "AxisImportance",
    "BatchNormScale",
    "BlockCost",
    "Call",
    "Cost",
    "Count",
    "Counts",
    "Dims",
    "Distillation",
    "Effect",
    "Entropy",
    "Features",
    "Fisher",
    "Gates",
    "Gradient",
    "Group",
    "GroupLasso",
    "GrowingRegularisation",
    "Importance",
    "LAMPScore",
    "Latency",
    "Learned",
    "MeanActivation",
    "Plan",
    "PruningHistory",
    "Random",
    "RemovableBlock",
    "Round",
    "ScoredUnits",
    "SecondOrder",
    "Slimming",
    "Slot",
    "StructureAdjustment",
    "StructuredPruning",
    "Taylor",
    "Width",
    "ablate",
    "analyse",
    "count",
    "deepen",
    "depth_costs",
    "drop_layers",
    "droppable",
    "features",
    "iterate",
    "plan",
    "prune",
    "remove",
    "rule_for",
    "shrink",
    "widen",
]
