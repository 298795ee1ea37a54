"""A layer made of layers, made again: by its class with another configuration, or with other parts in their places."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras.saving import deserialize_keras_object

from keras_prune.graph.graph import Inside, Node, fill
from keras_prune.graph.held import find, held, is_layer, is_variable
from keras_prune.graph.symbolic import flat_tensors, specified_by_call, stand_in
from keras_prune.keras_seam import layers_in, layers_of, own_variables, set_mask, unrecorded
from keras_prune.optimizers.compiling import known_objects
from keras_prune.structured.analysis.groups import Analysis, Copies, Keep
from keras_prune.structured.analysis.replay import departure, record, replay, shape_now, width_choices, widths_inside
from keras_prune.structured.surgery.constructor import (
    config_of,
    configurations,
    described,
    make,
    own_build,
    write_down,
    written,
)
from keras_prune.structured.surgery.resized import Changes, Resized, resized

__all__ = ["compose"]

CopyOf = Callable[[Any, Node], Any]


def compose(
    layer: Any,
    bodies: Sequence[Inside],
    analysis: Analysis,
    keep: Keep | Copies,
    copies: dict[int, Any],
    copy_of: CopyOf,
    found: dict[str, Any],
    *,
    alone: bool,
) -> Any:
    """Return a layer that does what is left of what `layer` does.

    Its inner layers are made again first. Then a configuration is looked for from which its class makes just these: a
    copy of it is a plain layer. Where there is none (heads of another size than `width // heads`, say), the inner
    layers are put into a copy as it was, which becomes a `Resized`.

    Args:
        layer: what is made again; it stays as it is.
        bodies: what its `call` does, each time that it is called.
        analysis: of the model.
        keep: what stays of it.
        copies: new layers by the id of the old one; those inside are added.
        copy_of: gives the copy of an inner layer that a node calls.
        found: what was found for layers of the same kind; more is added.
        alone: whether the layer is in no other layer made of layers, so that files hold it by itself.

    Raises:
        ValueError: it cannot be rebuilt from its configuration.
    """
    known = set(copies)
    with _scope(layer):
        for body in bodies:
            _build_inner(body, analysis, keep, copy_of)
    parts = _Parts(layer, bodies, analysis, keep, copies, known, found)
    if not parts.called & known:
        made = parts.by_class(alone)
        if made is not None:
            return made
    return parts.in_place()


@contextlib.contextmanager
def _scope(layer: Any) -> Iterator[None]:
    """Weights made in it have the layer's name in their paths."""
    with keras.name_scope(layer.name, caller=layer):
        yield


def _symbols(body: Inside, analysis: Analysis, keep: Any, numbers: Sequence[int]) -> dict[int, Any]:
    made = {i: stand_in(shape_now(analysis, keep, body, i), body.symbols[i]) for i in {*numbers, *body.masks.values()}}
    for number, mask in body.masks.items():
        if number in made:
            set_mask(made[number], made[mask])
    return made


def _build_inner(body: Inside, analysis: Analysis, keep: Any, copy_of: CopyOf) -> None:
    """Make and build the inner layers, each on inputs of the new sizes."""
    for node in body.nodes:
        if not is_layer(node.operation):
            continue
        args, kwargs = fill((node.args, node.kwargs), _symbols(body, analysis, keep, node.inputs))
        copy = copy_of(node.operation, node)
        with unrecorded(copy), specified_by_call(copy):
            made = flat_tensors(copy(*args, **kwargs))
        for number, tensor in zip(node.outputs, made, strict=True):
            wanted = shape_now(analysis, keep, body, number)
            if tuple(tensor.shape) != tuple(wanted):
                raise ValueError(
                    f"{type(node.operation).__name__} {node.path!r} made again gives {tuple(tensor.shape)}, where "
                    f"{tuple(wanted)} is left: its rule is wrong."
                )


class _Parts:
    """What a layer is to be made of."""

    def __init__(
        self,
        layer: Any,
        bodies: Sequence[Inside],
        analysis: Analysis,
        keep: Keep | Copies,
        copies: dict[int, Any],
        known: set[int],
        found: dict[str, Any],
    ) -> None:
        self.layer = layer
        self.bodies = bodies
        self.analysis = analysis
        self.keep = keep
        self.copies = copies
        self.known = known
        self.found = found
        self.called = {id(node.operation) for body in bodies for node in body.nodes if is_layer(node.operation)}

    # -- by its class -------------------------------------------------------------------------------------------------

    def by_class(self, alone: bool) -> Any:
        """The layer as its class makes it from a configuration in which numbers follow from widths; None for none."""
        if isinstance(self.layer, Resized) or any(isinstance(self.copies[key], Resized) for key in self.called):
            return None
        for i, config in enumerate(configurations(self.layer)):
            key = repr((type(self.layer), _nameless(config), self._wanted()))
            if key not in self.found:
                self.found[key] = self._search(config)
            values = self.found[key]
            made = None if values is None else self._candidate({**config, **values})
            if made is None or self._wrong(made):
                continue
            self._adopt(self.layer, made)
            if alone and not self._is_written(config, i):
                return resized(made, written(made, {**config, **(values or {})}), Changes({}, {}, {}))
            return made
        return None

    def _search(self, config: Mapping[str, Any]) -> dict[str, int] | None:
        """The entries to change so that all parts come out as they should: one after the other, each if it helps."""
        pairs = set().union(*(widths_inside(self.analysis, body, self.keep) for body in self.bodies))
        numbers = {key: value for key, value in config.items() if type(value) is int}
        values: dict[str, int] = {}
        first = self._candidate(config)
        least = math.inf if first is None else self._wrong(first)
        for name, options in width_choices(pairs, numbers).items():
            for option in options:
                if not least:
                    return values
                made = self._candidate({**config, **values, name: option})
                wrong = math.inf if made is None else self._wrong(made)
                if wrong < least or (made is not None and wrong == least == math.inf):
                    values, least = {**values, name: option}, wrong
        return values if not least else None

    def _wanted(self) -> list[Any]:
        """What is to come out, in a form that can be compared."""
        parts = [self.copies[id(a)] for a in layers_in(self.layer) if id(a) in self.called]
        shapes = [self._shape(variable) for variable in own_variables(self.layer)]
        return [shapes, *([_nameless(described(one)), [v.shape for v in one.variables]] for one in parts)]

    def _candidate(self, config: Mapping[str, Any]) -> Any:
        """The layer from a configuration; None if its class does not take it."""
        try:
            with known_objects(self.layer):
                made = make(type(self.layer), config)
            with unrecorded(made), specified_by_call(made), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a class that is given numbers that do not fit
                for body in self.bodies:  # it may build other layers when it trains
                    symbols = _symbols(body, self.analysis, self.keep, body.inputs)
                    args, kwargs = fill((body.args, dict(body.kwargs)), symbols)
                    made(*args, **kwargs)
        except Exception:
            return None
        return made

    def _is_written(self, config: Mapping[str, Any], place: int) -> bool:
        """Whether it is by `get_config` that the layer was made again, as Keras would do it."""
        return place == 0 and config_of(self.layer) is not None

    def _wrong(self, made: Any) -> float:
        """How many parts of a layer are not what is wanted; a half if all are, and it does something else with them."""
        inner = list(_parallel(self.layer, made, self.called))
        pairs = [pair for pair in inner if pair is not None]
        own = [
            (self._shape(a), tuple(b.shape))
            for a, b in zip(own_variables(self.layer), own_variables(made), strict=False)
        ]
        if len(pairs) < len(inner) or len(own_variables(self.layer)) != len(own_variables(made)):
            return math.inf
        wrong = sum(not self._same(*pair) for pair in pairs) + sum(a != b for a, b in own)
        partner = {id(a): b for a, b in pairs}
        if not wrong:
            for body in self.bodies:
                again, _ = record(self.analysis, body, self.keep, made)
                if again is None or departure(
                    self.analysis, body, again, self.keep, lambda a, b: partner.get(id(a)) is b
                ):
                    return 0.5
        return wrong

    def _same(self, old: Any, new: Any) -> bool:
        """Whether a part is what is wanted in the place of an old one."""
        wanted = self.copies.get(id(old), old) if id(old) in self.called else old
        if _class(wanted) is not _class(new) or isinstance(wanted, Resized):
            return False
        if new.built and [tuple(v.shape) for v in wanted.variables] != [tuple(v.shape) for v in new.variables]:
            return False
        return bool(_nameless(described(wanted)) == _nameless(described(new)))

    def _shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """The shape that is left of a variable."""
        stays = self.analysis.indices(variable, self.keep)
        return tuple(size if i is None else len(i) for size, i in zip(variable.shape, stays, strict=True))

    # -- part by part -------------------------------------------------------------------------------------------------

    def in_place(self) -> Any:
        """The layer as its class makes it, with other parts in their places."""
        base, record_, numbers = self._base()
        inside: dict[Any, Any] = {}
        for place, old in held(self.layer, lambda value: id(value) in self.called, through=True).items():
            new = find(base, place)[1]
            if new.built and id(old) not in self.known and self._same(old, new):
                self._adopt(old, new)
            else:
                inside[place] = self.copies[id(old)]
        weights = {
            place: self._shape(variable)
            for place, variable in held(self.layer, is_variable).items()
            if self._shape(variable) != tuple(find(base, place)[1].shape)
        }
        numbers |= replay(self.analysis, self.bodies, self.keep)
        changes = Changes(inside, weights, numbers)
        if changes or record_ is not None:
            with _scope(self.layer):
                base = resized(base, write_down(base) if record_ is None else record_, changes)
        if base.trainable != self.layer.trainable:
            base.trainable = self.layer.trainable
        return base

    def _base(self) -> tuple[Any, Mapping[str, Any] | None, dict[str, Any]]:
        """The layer as its class makes it; how it is written down, if not as Keras would; attributes to change."""
        layer = self.layer
        if isinstance(layer, Resized):
            with known_objects(layer):
                plain = deserialize_keras_object(dict(layer._made_from))
            return plain, layer._made_from, dict(layer._changes.numbers)
        failures: list[str] = []
        for i, config in enumerate(configurations(layer)):
            try:
                with known_objects(layer):
                    base = make(type(layer), config)
                    if own_build(layer):
                        base.build_from_config(layer.get_build_config())
                if base.built and [v.shape for v in own_variables(base)] != [v.shape for v in own_variables(layer)]:
                    raise ValueError("its weights come out with other shapes")
            except Exception as error:
                failures.append(" ".join(str(error).split()).rstrip("."))
                continue
            return base, None if self._is_written(config, i) else written(base, config), {}
        raise ValueError(
            f"{type(layer).__name__} {layer.name!r} cannot be rebuilt from its configuration ({failures[0]}). "
            "Give its class get_config() and from_config()."
        )

    def _adopt(self, old: Any, new: Any) -> None:
        for a, b in zip(layers_in(old), layers_in(new), strict=True):
            if id(a) in self.copies:
                self.copies[id(a)] = b


def _parallel(old: Any, new: Any, called: set[int]) -> Iterator[tuple[Any, Any] | None]:
    """Inner layers of both, in the order in which they are held; those inside of a layer that is called are its own."""
    inner, others = layers_of(old), layers_of(new)
    if len(inner) != len(others):
        yield None
        return
    for a, b in zip(inner, others, strict=True):
        yield a, b
        if id(a) not in called:
            yield from _parallel(a, b, called)


def _class(layer: Any) -> type:
    return type(layer).__mro__[2] if isinstance(layer, Resized) else type(layer)


def _nameless(config: Any) -> Any:
    """A configuration without names: they are given anew."""
    if isinstance(config, Mapping):
        return {key: _nameless(value) for key, value in config.items() if key != "name"}
    if isinstance(config, list | tuple):
        return [_nameless(value) for value in config]
    return config
