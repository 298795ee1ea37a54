"""What may import what, how full a room may be, and the former names of modules."""

import ast
import collections
import functools
import importlib
import pathlib
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_export
from keras_prune import former_names, keras_seam
from tflite_export import former_names as former_export_names

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Each line may import the lines above it: a room (a folder, or a module at the root), lowest first.
ORDER = [
    "keras_prune.former_names",
    "keras_prune.extras",
    "keras_prune.keras_seam",
    "keras_prune.arrays",
    "keras_prune.layer_kinds",
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
    "keras_prune.in_step",
    "keras_prune.devices",
    "keras_prune.layers",
    "keras_prune.reconstruction",
    "keras_prune.training",
    "keras_prune.monitoring",
    "keras_prune.oneshot",
    "keras_prune.strip",
    "keras_prune.sharing",
    "keras_prune.quantization",
    "keras_prune.structured.rules",
    "keras_prune.structured.analysis",
    "keras_prune.structured.counting",
    "keras_prune.structured.importances",
    "keras_prune.structured.surgery",
    "keras_prune.structured.planning",
    "keras_prune.structured.fit",
    "keras_prune.structured",
    "keras_prune.gating",
    "keras_prune.factorization",
    "keras_prune.report",
    "keras_prune.trials",
    "keras_prune.search",
    "keras_prune.files",
    "keras_prune.container",
    "keras_prune.cli",
    "keras_prune",
    "tflite_export.former_names",
    "tflite_export.tolerances",
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
    "tflite_export.vela",
    "tflite_export.bench",
    "tflite_export.measures",
    "tflite_export.other_runtimes",
    "tflite_export.report",
    "tflite_export.stages",
    "tflite_export.inspection",
    "tflite_export.export",
    "tflite_export.latency",
    "tflite_export.compression",
    "tflite_export.compress",
    "tflite_export.commands",
    "tflite_export.demo",
    "tflite_export.cli",
    "tflite_export",
]

SEAM = "keras_prune.keras_seam"
"""The one room that may reach into Keras and TensorFlow."""
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


@functools.cache
def tree_of(name):
    """The syntax tree of a module."""
    return ast.parse(MODULES[name].read_text())


def room(name):
    parts = name.split(".")
    return ".".join(parts[: 3 if parts[:2] == ["keras_prune", "structured"] else 2])


def imports(name):
    """Modules of ours that a module imports, anywhere in it."""
    for node in ast.walk(tree_of(name)):
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
    up = [other for other in imports(name) if room(other) != own and ORDER.index(room(other)) > ORDER.index(own)]
    assert not up, f"{name} imports from rooms above its own"


# -- what Keras has no public name for --------------------------------------------------------------------------------


def is_private(name):
    return name.startswith("_") and name != "_" and not name.endswith("__")


def own_names(tree):
    """Private names that a file gives to things of ours: functions, classes, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node, ast.Name):
                yield node.id
            elif isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr


@functools.cache
def names_of_keras():
    """Private names of what Keras and TensorFlow give us: of classes, and of the attributes of built objects."""
    first, last = keras.layers.LSTM(2), keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((3, 2)), first, last])
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    functional = keras.Model(model.inputs, model.outputs)
    attention = keras.layers.MultiHeadAttention(1, 2)
    attention(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)))
    things = [model, functional, first, last, attention, model.optimizer, last.kernel, model.outputs[0]]
    things += [keras.losses.MeanSquaredError(), keras.metrics.Mean(), keras.DTypePolicy("float32")]
    things += [keras.callbacks.Callback(), keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())]
    things += [tf.lite.TFLiteConverter.from_keras_model(functional), *keras_seam.calls_in(functional)]
    names = {name for thing in things for name in (*dir(thing), *vars(type(thing)))}
    return {name for name in names if is_private(name)} | {"_batch_input_shape", "_keras_mask", "_user_metrics"}


@functools.cache
def names_of_ours():
    """Private names of our own; the last one is put on models."""
    return {name for module in MODULES for name in own_names(tree_of(module))} | {"_pruning_state"}


ASKING = ("getattr", "hasattr", "setattr", "delattr")


def reached_into(tree, of_keras):
    """Places at which a file reaches into Keras or TensorFlow."""
    here, own = {*own_names(tree)}, names_of_ours()
    asks = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) in ASKING]
    asked = {id(argument) for call in asks for argument in call.args}
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = ast.unparse(node)
            if any(hidden in names for hidden in ("keras.src", "keras._", "tensorflow.python", "tensorflow.lite")):
                yield names
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            ours = node.attr in own and node.attr not in of_keras
            # Python documents os._exit and sys._current_frames.
            if not ours and not (owner in ("self", "cls") and node.attr in here) and owner not in ("os", "sys"):
                yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            hidden = node.value in of_keras and (id(node) in asked or node.value not in own)
            yield from [repr(node.value)] if hidden or "keras.src" in node.value else []


def test_only_the_seam_reaches_into_keras_and_tensorflow():
    of_keras = names_of_keras()
    assert {"_flatten_layers", "_iterations", "_nodes_by_depth", "_output_dense"} <= of_keras
    found = {name: [*reached_into(tree_of(name), of_keras)] for name in MODULES if room(name) != SEAM}
    assert {name: places for name, places in found.items() if places} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from keras.src.ops.numpy import Mean",
        "model._flatten_layers()",
        "getattr(model, '_inputs_struct', None)",
        "hasattr(layer, '_layers')",
        "type(layer).__module__.startswith('keras.src.')",
        "class Mine(keras.Layer):\n    def call(self, x):\n        return self._losses",
        "layer._a_name_that_is_in_no_file",
    ],
)
def test_what_reaches_into_keras_is_seen(source):
    assert len([*reached_into(ast.parse(source), names_of_keras())]) == 1


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


def test_a_class_under_its_former_name_is_the_class():
    sys.modules.pop("tflite_export.runtime", None)
    with pytest.warns(DeprecationWarning, match=r"'tflite_export\.runtime' is now"):
        former = importlib.import_module("tflite_export.runtime")
    assert former.Session is former.LiteRTSession


def test_what_a_module_held_is_found_under_its_former_name():
    sys.modules.pop("tflite_export.verify", None)
    with pytest.warns(DeprecationWarning, match=r"'tflite_export\.verify' is now 'tflite_export\.tflm\.verifying'"):
        former = importlib.import_module("tflite_export.verify")
    assert former.verify is tflite_export.verify
    assert former.Verification is tflite_export.Verification
    assert {"CONFIGURATIONS", "Answers", "Run", "answers", "compare_runs"} <= set(vars(former))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_former_module_hides_no_function_of_its_name():
    former = {**former_names.NAMES, **former_export_names.NAMES}
    places = [(sys.modules.get(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in former]
    same = [(package, own) for package, own in places if own in getattr(package, "__all__", ())]
    assert (tflite_export, "verify") in same
    for package, own in same:
        sys.modules.pop(f"{package.__name__}.{own}", None)
        public = getattr(package, own)
        importlib.import_module(f"{package.__name__}.{own}")
        assert getattr(package, own) is public
        assert callable(public)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "design").glob("*.md")), ids=lambda page: page.name)
def test_modules_that_a_page_names_exist(page):
    text = page.read_text()
    named = re.findall(r"`((?:[a-z_0-9]+/)+(?:[a-z_0-9]+\.py)?|[a-z_0-9]+\.py)`", text)
    roots = [ROOT, ROOT / "keras_prune", ROOT / "tflite_export", ROOT / "keras_prune" / "structured"]
    names_of_files = {path.name for path in MODULES.values()}
    missing = [
        name for name in named if name not in names_of_files and not any((root / name).exists() for root in roots)
    ]
    assert not missing
