"""Modules under their former names, from before they were put into rooms: imported as before, with a warning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Mapping, Sequence

__all__ = ["keep"]

NAMES = {
    "keras_prune.agreement": "keras_prune.models.agreement",
    "keras_prune.atomic": "keras_prune.files.atomic",
    "keras_prune.averages": "keras_prune.optimizers.averages",
    "keras_prune.best": "keras_prune.monitoring.best",
    "keras_prune.callbacks": "keras_prune.training.callbacks",
    "keras_prune.carrying": "keras_prune.layers.carrying",
    "keras_prune.choosing": "keras_prune.devices.pruned_tensors",
    "keras_prune.clock": "keras_prune.optimizers.clock",
    "keras_prune.compiling": "keras_prune.optimizers.compiling",
    "keras_prune.driving": "keras_prune.training.stepped_callback",
    "keras_prune.gains": "keras_prune.devices.gains",
    "keras_prune.hold": "keras_prune.masks.hold",
    "keras_prune.keras2": "keras_prune.models.keras2",
    "keras_prune.keys": "keras_prune.models.keys",
    "keras_prune.loading": "keras_prune.files.loading",
    "keras_prune.metric": "keras_prune.monitoring.metric",
    "keras_prune.names": "keras_prune.masks.recipe",
    "keras_prune.plaintext": "keras_prune.text.plaintext",
    "keras_prune.plots": "keras_prune.report.plots",
    "keras_prune.pooling": "keras_prune.graph.pooling",
    "keras_prune.pruner": "keras_prune.masks.update",
    "keras_prune.samples": "keras_prune.models.samples",
    "keras_prune.selection": "keras_prune.arrays.selection",
    "keras_prune.sensitivity": "keras_prune.training.measuring",
    "keras_prune.session": "keras_prune.training.pruning_run",
    "keras_prune.shares": "keras_prune.arrays.splitting",
    "keras_prune.slots": "keras_prune.optimizers.slots",
    "keras_prune.spans": "keras_prune.schedules.spans",
    "keras_prune.sparse_inference": "keras_prune.devices.sparse_inference",
    "keras_prune.sparse_layers": "keras_prune.devices.sparse_layers",
    "keras_prune.state": "keras_prune.masks.state",
    "keras_prune.statistics.flow": "keras_prune.statistics.synaptic_flow",
    "keras_prune.statistics.inputs": "keras_prune.statistics.kernel_inputs",
    "keras_prune.step": "keras_prune.in_step.parts",
    "keras_prune.stepping": "keras_prune.training.stepped_run",
    "keras_prune.structured.bracket": "keras_prune.structured.planning.latency_search",
    "keras_prune.structured.calls": "keras_prune.graph.calls",
    "keras_prune.structured.choice": "keras_prune.structured.planning.unit_choice",
    "keras_prune.structured.compare": "keras_prune.graph.compare",
    "keras_prune.structured.distill": "keras_prune.structured.planning.distill",
    "keras_prune.structured.elements": "keras_prune.arrays.union_find",
    "keras_prune.structured.fit.session": "keras_prune.structured.fit.structured_run",
    "keras_prune.structured.fit.shrink": "keras_prune.structured.surgery.shrink",
    "keras_prune.structured.flow": "keras_prune.structured.planning.rounds",
    "keras_prune.structured.graph": "keras_prune.graph.graph",
    "keras_prune.structured.groups": "keras_prune.structured.analysis.groups",
    "keras_prune.structured.held": "keras_prune.graph.held",
    "keras_prune.structured.latency": "keras_prune.structured.planning.latency",
    "keras_prune.structured.memory": "keras_prune.structured.counting.memory",
    "keras_prune.structured.phases": "keras_prune.graph.phases",
    "keras_prune.structured.plan": "keras_prune.structured.planning.plan",
    "keras_prune.structured.replay": "keras_prune.structured.analysis.replay",
    "keras_prune.structured.symbolic": "keras_prune.graph.symbolic",
    "keras_prune.structured.trace": "keras_prune.graph.trace",
    "keras_prune.structured.widths": "keras_prune.structured.analysis.widths",
    "keras_prune.sums": "keras_prune.in_step.gradient_sums",
    "keras_prune.tables": "keras_prune.text.tables",
    "keras_prune.training.best": "keras_prune.monitoring.best",
    "keras_prune.training.gradient_sums": "keras_prune.in_step.gradient_sums",
    "keras_prune.training.hidden_weights": "keras_prune.in_step.hidden_weights",
    "keras_prune.training.metric": "keras_prune.monitoring.metric",
    "keras_prune.training.parts": "keras_prune.in_step.parts",
    "keras_prune.training.rewinding": "keras_prune.in_step.rewinding",
    "keras_prune.variables": "keras_prune.models.variables",
    "keras_prune.windows": "keras_prune.graph.windows",
    "keras_prune.wiring": "keras_prune.graph.wiring",
}
"""Former name of a module -> its name."""


class _Renamed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its former name: the same module object, so that there is never a second one."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in self._names else None

    def exec_module(self, module: types.ModuleType) -> None:
        name = self._names[module.__name__]
        warnings.warn(
            f"The module {module.__name__!r} is now {name!r}. Import it under that name; the former one goes in 0.2.",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[module.__name__] = importlib.import_module(name)


class _Package(types.ModuleType):
    """A package whose function stays where a module is imported that had the function's name."""

    def __setattr__(self, name: str, value: object) -> None:
        # The import statement puts a module into its package, here under the former name: `tflite_export.verify`.
        is_former = isinstance(value, types.ModuleType) and value.__name__ != f"{self.__name__}.{name}"
        if not (is_former and callable(vars(self).get(name))):
            super().__setattr__(name, value)


def keep(names: Mapping[str, str]) -> None:
    """Let modules be imported under their former names too.

    `import keras_prune.selection` gives `keras_prune.arrays.selection`, say. Call it where the packages are loaded.

    Args:
        names: former name -> name. A former name that is a package today cannot be kept.
    """
    sys.meta_path.append(_Renamed(names))
    for package in {name.rpartition(".")[0] for name in names} & set(sys.modules):
        sys.modules[package].__class__ = _Package
