"""What may import what, how full a room may be, and the former names of modules."""

import ast
import collections
import importlib
import pathlib
import sys

import pytest

from keras_prune import former_names
from tflite_export import former_names as former_export_names

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Each line may import the lines above it: a room (a folder, or a module at the root), lowest first.
ORDER = [
    "keras_prune.former_names",
    "keras_prune.arrays",
    "keras_prune.text",
    "keras_prune.models",
    "keras_prune.strategy",
    "keras_prune.schedules",
    "keras_prune.patterns",
    "keras_prune.criteria",
    "keras_prune.allocation",
    "keras_prune.growth",
    "keras_prune.scope",
    "keras_prune.optimizers",
    "keras_prune.statistics",
    "keras_prune.graph",
    "keras_prune.masks",
    "keras_prune.devices",
    "keras_prune.layers",
    "keras_prune.training",
    "keras_prune.oneshot",
    "keras_prune.strip",
    "keras_prune.structured.rules",
    "keras_prune.structured.analysis",
    "keras_prune.structured.counting",
    "keras_prune.structured.importances",
    "keras_prune.structured.surgery",
    "keras_prune.structured.planning",
    "keras_prune.structured.fit",
    "keras_prune.structured",
    "keras_prune.report",
    "keras_prune.files",
    "keras_prune.cli",
    "keras_prune",
    "tflite_export.former_names",
    "tflite_export.errors",
    "tflite_export.file",
    "tflite_export.xnnpack",
    "tflite_export.processes",
    "tflite_export.runtimes",
    "tflite_export.web",
    "tflite_export.targets",
    "tflite_export.model",
    "tflite_export.convert",
    "tflite_export.rewrites",
    "tflite_export.source",
    "tflite_export.plan",
    "tflite_export.edits",
    "tflite_export.verification",
    "tflite_export.tflm",
    "tflite_export.bench",
    "tflite_export.other_runtimes",
    "tflite_export.report",
    "tflite_export.dense",
    "tflite_export.inspection",
    "tflite_export.export",
    "tflite_export.latency",
    "tflite_export.demo",
    "tflite_export.cli",
    "tflite_export",
]

FULLEST = 12
"""Modules in a room, its `__init__` not counted."""


def modules():
    """Name of each module -> its file."""
    found = {}
    for package in ("keras_prune", "tflite_export"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if ".assets" not in name}


MODULES = modules()


def room(name):
    parts = name.split(".")
    return ".".join(parts[: 3 if parts[:2] == ["keras_prune", "structured"] else 2])


def imports(path):
    """Modules of ours that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES or node.module in MODULES:
                    yield inner if inner in MODULES else node.module


def test_every_room_has_its_place_in_the_order():
    assert {room(name) for name in MODULES} == set(ORDER)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name):
    own = room(name)
    up = [
        other for other in imports(MODULES[name]) if room(other) != own and ORDER.index(room(other)) > ORDER.index(own)
    ]
    assert not up, f"{name} imports from rooms above its own"


def test_no_room_is_too_full():
    full = collections.Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    assert {str(folder): number for folder, number in full.items() if number > FULLEST} == {}


@pytest.mark.parametrize("names", [former_names.NAMES, former_export_names.NAMES])
def test_former_names_lead_to_modules_and_hide_none(names):
    assert set(names.values()) <= set(MODULES)
    assert not set(names) & set(MODULES)


def test_a_module_under_its_former_name_is_the_module():
    sys.modules.pop("keras_prune.selection", None)
    with pytest.warns(DeprecationWarning, match=r"'keras_prune\.selection' is now 'keras_prune\.arrays\.selection'"):
        former = importlib.import_module("keras_prune.selection")
    assert former is importlib.import_module("keras_prune.arrays.selection")
