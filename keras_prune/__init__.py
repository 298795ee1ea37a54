"""Neural-network pruning for Keras 3: from `model.fit` to a verified file on a phone."""

from keras_prune import (
    allocation,
    criteria,
    devices,
    gating,
    growth,
    patterns,
    quantization,
    schedules,
    search,
    sharing,
    structured,
)
from keras_prune.container.container import load_kpz, save_kpz
from keras_prune.devices import Device
from keras_prune.factorization.factorize import factorize
from keras_prune.factorization.report import FactorizationReport
from keras_prune.files.loading import load_model
from keras_prune.former_names import NAMES as _NAMES
from keras_prune.former_names import keep as _keep
from keras_prune.gating import report as gate_report
from keras_prune.in_step.masked_momentum import MaskMomentum
from keras_prune.in_step.parts import L1, ClipGradients, Part
from keras_prune.layers import (
    Gated,
    Prunable,
    PrunableConv1D,
    PrunableConv2D,
    PrunableDense,
    PrunableDepthwiseConv2D,
    PrunableEmbedding,
    PrunableGRU,
    PrunableLSTM,
    PrunableMultiHeadAttention,
)
from keras_prune.masks.hold import hold
from keras_prune.monitoring.adaptive import AdaptivePruning
from keras_prune.monitoring.best import RestoreBest
from keras_prune.oneshot import prune
from keras_prune.quantization import quantize_aware
from keras_prune.reconstruction.recalibration import recalibrate
from keras_prune.report.report import Report, report
from keras_prune.scope import Scope
from keras_prune.sharing.callback import WeightSharing
from keras_prune.sharing.oneshot import share
from keras_prune.strip import strip
from keras_prune.structured import StructuredPruning
from keras_prune.training.alternating import Alternating
from keras_prune.training.callbacks import DynamicPruning, GradientPruning, Pruning, PruningCallback, ThresholdPruning
from keras_prune.training.soft_threshold import SoftThreshold
from keras_prune.training.targeted_dropout import TargetedDropout

_keep(_NAMES)

__version__ = "0.1.0"

__all__ = [
    "L1",
    "AdaptivePruning",
    "Alternating",
    "ClipGradients",
    "Device",
    "DynamicPruning",
    "FactorizationReport",
    "Gated",
    "GradientPruning",
    "MaskMomentum",
    "Part",
    "Prunable",
    "PrunableConv1D",
    "PrunableConv2D",
    "PrunableDense",
    "PrunableDepthwiseConv2D",
    "PrunableEmbedding",
    "PrunableGRU",
    "PrunableLSTM",
    "PrunableMultiHeadAttention",
    "Pruning",
    "PruningCallback",
    "Report",
    "RestoreBest",
    "Scope",
    "SoftThreshold",
    "StructuredPruning",
    "TargetedDropout",
    "ThresholdPruning",
    "WeightSharing",
    "allocation",
    "criteria",
    "devices",
    "factorize",
    "gate_report",
    "gating",
    "growth",
    "hold",
    "load_kpz",
    "load_model",
    "patterns",
    "prune",
    "quantization",
    "quantize_aware",
    "recalibrate",
    "report",
    "save_kpz",
    "schedules",
    "search",
    "share",
    "sharing",
    "strip",
    "structured",
]
