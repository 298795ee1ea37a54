"""The rewrite that mirrors images, so that stride-2 layers pad the same on each side.

XNNPACK's sparse inference (`src/subgraph.c`, `xnn_check_nchw_compatibility`) takes a 3x3 stride-2 convolution of 3
channels, and depthwise convolutions 3x3 and 5x5, only where they pad half their kernel on each side, and not as 'same'
at stride 2. TensorFlow pads an even size by (0, 1): the first window begins at the first place. In the mirror the
windows begin one place before the image, which is a padding of 1; one more place after it is never read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras import layers as kl

from keras_prune.keras_seam import Flip, origin_of
from tflite_export.file.tflite_file import Change
from tflite_export.rewrites.graph import Builder, FlatGraph, is_map, joined, path_of
from tflite_export.rewrites.positions import forgets_places, is_placewise
from tflite_export.rewrites.rewrite import Pass, Refusal
from tflite_export.rewrites.turning import (
    NO_PADDING,
    Edit,
    Flips,
    apply_edit,
    changes_layer,
    folds,
    in_words,
    is_pointwise,
    is_sparse_depthwise,
    is_stem,
    plan_edit,
    turns,
)

__all__ = ["CURE", "NAME", "ORIENTATIONS", "PLAIN", "MirrorPass"]

NAME = "mirror"
ORIENTATIONS: tuple[Flips, ...] = ((False, False), (True, True), (True, False), (False, True))
CURE = "Images of another size, a multiple of 32 say, may do."
PLAIN = ORIENTATIONS[0]


@dataclass(frozen=True)
class MirrorPass(Pass):
    """Pad stride-2 layers evenly, in a mirrored image where that is what it takes.

    Taken is each region of a model, joined by maps, that XNNPACK could run sparse: one with a 3x3 stride-2
    convolution of 3 channels and with 1x1 convolutions. Of its orientations the first is chosen in which each
    depthwise convolution, and the first convolution, can pad half its kernel on each side. Every spatial kernel
    in it is reversed, what comes into it is reversed, and what leaves it as a map is reversed back; means over
    all places need nothing. A region that pads evenly is left as it is.

    Example:
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 3)),
        ...     kl.Conv2D(8, 3, strides=2, padding="same"),
        ...     kl.Conv2D(8, 1),
        ...     kl.GlobalAveragePooling2D(),
        ... ])
        >>> for change in MirrorPass().apply(model).changes:
        ...     print(change.place, "|", change.what)
        conv2d... | kernel reversed in height, width and channels; padding 'same' -> ((1, 1), (1, 1))
        input_layer... | reversed in height, width and channels
    """

    name: str = NAME

    def rewrite(self, graph: FlatGraph) -> tuple[keras.Model | None, tuple[Change, ...], tuple[Refusal, ...]]:
        regions = joined([node for node in graph.nodes if turns(node)], by=is_map)
        planned = [_plan_region(region, graph) for region in regions]
        refusals = [edits for edits in planned if isinstance(edits, Refusal)]
        plan = _without_torn_layers(graph.nodes, [edits for edits in planned if isinstance(edits, dict)], refusals)
        if not plan:
            return None, (), tuple(refusals)
        build = _Build(graph, plan)
        return build.run(), tuple(build.changes), tuple(refusals)


def _plan_region(region: Sequence[Any], graph: FlatGraph) -> dict[int, Edit] | Refusal:
    """Return the edit of each node of a region, by the node's id; none where it pads evenly or cannot run sparse."""
    if not any(map(is_pointwise, region)):
        return {}
    refused: dict[Flips, tuple[Any, str]] = {}
    for flips in ORIENTATIONS:
        edits: dict[int, Edit] = {}
        for node in region:
            edit = plan_edit(node, _before(node, graph), flips)
            if isinstance(edit, str):
                refused[flips] = node, edit
                break
            edits[id(node)] = edit
        else:
            if all(edit == Edit(PLAIN) for edit in edits.values()):
                return {}
            if any(map(is_stem, region)):
                return _turned_late(region, edits, graph)
        if flips == PLAIN and not any(map(is_stem, region)):
            node = next(node for node in region if is_sparse_depthwise(node))
            return Refusal(
                NAME,
                path_of(node.operation),
                "XNNPACK's sparse inference begins at a 3x3 stride-2 convolution of 3 channels, and none leads here",
            )
    (node, upright), (other, mirrored) = refused[PLAIN], refused[ORIENTATIONS[1]]
    where = "" if other is node else f" '{path_of(other.operation)}',"
    return Refusal(NAME, path_of(node.operation), f"{upright}; mirrored,{where} {mirrored}. {CURE}")


def _turned_late(region: Sequence[Any], edits: Mapping[int, Edit], graph: FlatGraph) -> dict[int, Edit]:
    """Return the edits with images reversed right before the first convolutions, and there in their channels too.

    TFLite reverses all axes from the height on in one run over the memory, ten times as fast as height and width
    alone (an image of 224 in LiteRT.js: 0.03 ms for 0.32, of 3 that MobileNetV3Small takes), and a convolution can
    read channels in any order. What comes before it works place by place and stays as it was.
    """
    readers: defaultdict[int, list[Any]] = defaultdict(list)
    for node in region:
        for tensor in node.input_tensors:
            if graph.producer(tensor) is not None:
                readers[id(graph.producer(tensor))].append(node)
    ahead: set[int] = set()
    folded: set[int] = set()
    for node in reversed(region):
        follow = readers[id(node)]
        if follow and all(is_stem(reader) and folds(reader, node) for reader in follow):
            folded.add(id(node))
        elif follow and is_placewise(node) and all(is_stem(r) or id(r) in ahead | folded for r in follow):
            ahead.add(id(node))
    for node in region:
        # What reads a map that is reversed already is reversed with it.
        sources = [graph.producer(tensor) for tensor in node.input_tensors]
        if id(node) in ahead and any(id(source) in edits and id(source) not in ahead for source in sources):
            ahead.discard(id(node))
    late = {key: edit for key, edit in edits.items() if key not in ahead}
    for node in region:
        before = _before(node, graph)
        source = _before(before, graph) if folds(node, before) else before
        edit = late[id(node)] if is_stem(node) else None
        if edit is not None and edit.flips[1] and edit.padding is not None and id(source) not in late:
            late[id(node)] = replace(edit, channels=True)
    return late


def _without_torn_layers(
    nodes: Sequence[Any], regions: Sequence[Mapping[int, Edit]], refusals: list[Refusal]
) -> dict[int, Edit]:
    """Return the edits of all regions but those that want a layer in two ways, as it is called in several places."""
    kept = [region for region in regions if region]
    while True:
        plan = {key: edit for region in kept for key, edit in region.items()}
        calls: defaultdict[int, list[Any]] = defaultdict(list)
        for node in nodes:
            calls[id(node.operation)].append(node)
        torn = next((uses for uses in calls.values() if len({_change(node, plan) for node in uses}) > 1), None)
        if torn is None:
            return plan
        kept = [region for region in kept if not any(id(node) in region for node in torn)]
        refusals.append(
            Refusal(NAME, path_of(torn[0].operation), "called in several places that need different paddings of it")
        )


def _change(node: Any, plan: Mapping[int, Edit]) -> Edit | None:
    edit = plan.get(id(node))
    return edit if edit is not None and changes_layer(node.operation, edit) else None


def _before(node: Any, graph: FlatGraph) -> Any:
    return graph.producer(node.input_tensors[0])


class _Build:
    """Builds the mirrored model; counts what was changed."""

    def __init__(self, graph: FlatGraph, plan: Mapping[int, Edit]) -> None:
        self.graph, self.plan = graph, plan
        self.builder = Builder()
        self.changes: list[Change] = []
        self.made: dict[tuple[int, Flips, bool], Any] = {
            (id(tensor), PLAIN, False): tensor for tensor in graph.model.inputs
        }
        self.orientation: dict[int, Flips] = {}

    def run(self) -> keras.Model:
        used = [node for node in self.graph.nodes if not self._is_folded(node)]
        for operation, edit in {id(n.operation): (n.operation, self.plan.get(id(n))) for n in used}.values():
            done = apply_edit(operation, edit) if edit is not None else None
            if done is not None:
                self.changes.append(Change(NAME, path_of(operation), done))
        for node in used:
            edit = self.plan.get(id(node))
            outputs = self._call(node, edit)
            for old, new in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
                flips = edit.flips if edit is not None and is_map(old) else PLAIN
                self.orientation[id(old)] = flips
                self.made[id(old), flips, False] = new
        return self.graph.rebuilt(lambda tensor: self._as(tensor, PLAIN))

    def _is_folded(self, node: Any) -> bool:
        """Return whether a node only pads, and every reader of it does so in its place."""
        if type(node.operation) is not kl.ZeroPadding2D:
            return False
        readers = self.graph.readers[id(node.outputs[0])]
        edits = [self.plan.get(id(reader)) for reader in readers if reader is not None and folds(reader, node)]
        outside = len(edits) < len(readers)
        return bool(readers) and not outside and all(edit is not None and edit.padding is not None for edit in edits)

    def _call(self, node: Any, edit: Edit | None) -> Any:
        if edit is not None and edit.padding is not None:
            before = _before(node, self.graph)
            source = before.input_tensors[0] if folds(node, before) else node.input_tensors[0]
            tensor = self._as(source, edit.flips, channels=edit.channels)
            if edit.padding != NO_PADDING:
                padding = kl.ZeroPadding2D(edit.padding, name=f"{node.operation.name}_padding", dtype=tensor.dtype)
                tensor = self.builder.call(padding, tensor)
            return self.builder.call(node.operation, tensor)

        def renewed(value: Any) -> Any:
            if not isinstance(value, keras.KerasTensor):
                return value
            if forgets_places(node):
                return self._as(value, self.orientation.get(id(value), PLAIN))
            return self._as(value, edit.flips if edit is not None else PLAIN)

        args, kwargs = node.arguments.convert(renewed)
        return self.builder.call(node.operation, *args, **kwargs)

    def _as(self, tensor: Any, flips: Flips, *, channels: bool = False) -> Any:
        """Return the new tensor for an old one, a map reversed in some axes."""
        have = self.orientation.get(id(tensor), PLAIN)
        if not is_map(tensor):
            return self.made[id(tensor), have, False]
        key = (id(tensor), flips, channels)
        if key not in self.made:
            turn = (have[0] != flips[0], have[1] != flips[1])
            axes = tuple(1 + axis for axis, is_turned in enumerate((*turn, channels)) if is_turned)
            flip = Flip(axes, name=f"reversed_{origin_of(tensor).name}")
            self.made[key] = self.builder.call(flip, self.made[id(tensor), have, False])
            back = " back" if have != PLAIN else ""
            words = in_words(turn, channels=channels)
            self.changes.append(Change(NAME, path_of(origin_of(tensor)), f"reversed{back} in {words}"))
        return self.made[key]
