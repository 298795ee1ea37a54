"""A target -> a plan of which units go, which can be printed before it is applied."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from rich import box
from rich.table import Table

from keras_prune.devices import Device, resolve_device
from keras_prune.masks.hold import under_masks
from keras_prune.models.keras2 import refuse_keras2
from keras_prune.models.samples import first_inputs
from keras_prune.reconstruction.kernels import warn_of_left
from keras_prune.reconstruction.narrower import reconstruct_narrower
from keras_prune.scope import Scope, Skipped
from keras_prune.strategy import check_fraction
from keras_prune.structured.analysis.groups import Analysis, Keep, analyse, labels_of_layer
from keras_prune.structured.analysis.widths import Kept
from keras_prune.structured.counting.counting import Count, Counter
from keras_prune.structured.importances.names import resolve_importance
from keras_prune.structured.planning.latency import Latency, Measure, Trials, find_measure
from keras_prune.structured.planning.unit_choice import (
    Ranking,
    check_reachable,
    keep_best,
    kept_after,
    limits_of,
    multiples_for,
)
from keras_prune.structured.surgery.rewrite import rebuild
from keras_prune.text.plaintext import printable
from keras_prune.text.progress import progress
from keras_prune.text.tables import plain_lines

__all__ = ["Plan", "plan", "prune", "remove"]

WIDTH = 110


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What is to be removed; `str(plan)` is a table, `apply()` does it.

    Attributes:
        analysis: of the model.
        keep: for each unit, whether it stays.
        notes: what the importance found.
        latency: what was measured, if latency was the target.
        inputs: a few inputs on which the smaller model is compared with the planned one; None draws some.
    """

    analysis: Analysis
    keep: Keep
    notes: tuple[str, ...] = ()
    latency: Latency | None = None
    inputs: Any = None

    @property
    def kept(self) -> Kept:
        """How many units of each group stay."""
        return self.analysis.counts(self.keep)

    @property
    def before(self) -> Count:
        """Parameters, multiplications and memory of the model as it is."""
        counter = Counter(self.analysis)
        return counter.total(counter.sizes)

    @property
    def after(self) -> Count:
        """Parameters, multiplications and memory that will be left."""
        return Counter(self.analysis).total(self.kept)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What stays although its layer makes units, and each call without a rule, with the reasons."""
        return self.analysis.skipped

    def apply(self, *, reconstruct: Any = None, verbose: Any = "auto") -> keras.Model:
        """Return the smaller model; the planned one stays as it is. See `rewrite.rebuild`.

        Args:
            reconstruct: inputs, or batches of them (labels are not looked at; a thousand are enough). Layer after
                layer, kernels and biases are solved by least squares, so that the units that stay take over what the
                removed ones did, and each output is what it was in the planned model.
            verbose: whether a bar shows how far that is: 1, 0, or "auto" where a terminal or notebook shows it.
        """
        smaller = rebuild(self.analysis, self.keep, inputs=self.inputs)
        if reconstruct is not None:
            targets = Scope().survey(smaller).targets
            dense, indices = self.analysis.graph.model, functools.partial(self.analysis.indices, keep=self.keep)
            with progress("plan", len(targets), verbose) as done:
                left = reconstruct_narrower(smaller, dense, targets, indices, reconstruct, done)
            warn_of_left("plan", left)
        return smaller

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        return {
            "model": self.analysis.graph.model.name,
            "before": dataclasses.asdict(self.before),
            "after": dataclasses.asdict(self.after),
            "groups": [
                {"variables": self._names(i), "units": group.size, "kept": int(kept)}
                for i, (group, kept) in enumerate(zip(self.analysis.groups, self.kept, strict=True))
            ],
            "skipped": [dataclasses.asdict(skipped) for skipped in self.skipped],
            "notes": list(self.notes),
            "latency": None if self.latency is None else dataclasses.asdict(self.latency),
        }

    def _names(self, group: int) -> list[str]:
        slots = [self.analysis.slots[i] for i in self.analysis.groups[group].slots]
        return [f"{slot.variable.path}[{slot.axis}]" for slot in slots if slot.variable is not None]

    def __str__(self) -> str:
        table = Table(title=f"Plan for {self.analysis.graph.model.name}", title_justify="left", box=box.SIMPLE)
        for name in ("units of", "slices"):
            table.add_column(name, overflow="fold")
        for name in ("units", "kept"):
            table.add_column(name, justify="right", no_wrap=True)
        for i, (group, kept) in enumerate(zip(self.analysis.groups, self.kept, strict=True)):
            names = self._names(i)
            table.add_row(names[0] if names else "", str(len(names)), str(group.size), str(kept))
        before, after = self.before, self.after
        lines = plain_lines(table, width=WIDTH)
        lines.append(f"parameters {before.params:,} -> {after.params:,} ({_share(after.params, before.params)})")
        lines.append(f"MACs {before.macs:,} -> {after.macs:,} ({_share(after.macs, before.macs)})")
        lines.append(f"peak activation bytes {before.peak:,} -> {after.peak:,} ({_share(after.peak, before.peak)})")
        if self.latency is not None:
            lines.append(str(self.latency))
        lines += self.notes
        lines += [f"left alone: {skipped.path} ({skipped.reason})" for skipped in self.skipped]
        return printable("\n".join(lines).strip("\n"))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%} left" if whole else "none"


def plan(
    model: keras.Model,
    *,
    params: float | None = None,
    flops: float | None = None,
    memory: float | None = None,
    latency: float | None = None,
    threshold: float | None = None,
    measure: Measure | None = None,
    importance: Any = "l2",
    data: Any = None,
    scope: str = "local",
    target: str | Device | Mapping[str, Any] | None = None,
    round_to: int | Mapping[str, int] | None = None,
    min_width: int | Mapping[str, int] = 1,
    max_share: float | Mapping[str, float] = 1.0,
    frozen: Iterable[str] = (),
    exact: bool = True,
    input_shape: Any = None,
) -> Plan:
    """Choose the units to remove so that at most a share of a model is left, or none that is not important enough.

    Args:
        model: built; compiled, if the importance takes gradients. It stays as it is.
        params: the share of parameters that may be left, a fraction in (0, 1): 0.5 leaves at most half of them.
        flops: the share of floating-point operations that may be left, likewise. With several shares, all are met.
        memory: the share of peak activation memory that may be left, likewise (`Count.peak`).
        latency: the share of measured latency that may be left, likewise. Plans along the order of removal are made and
            measured until one meets it with no more than 0.03 to spare, ten at most; the plan returned is one that was
            measured to meet it.
        measure: the way to measure: a function from a model to the seconds of a run. None for that of an installed
            package: `tflite_export` times the exported file in LiteRT, in turn with the whole model's, or has it
            compiled for the NPU of the `target`, whose compiler estimates the time.
        threshold: instead of a share: units whose score, not normalised, is not above it go, as far as limits allow.
        importance: an `Importance`, or a name: of weights "l1", "l2", "fpgm", "lamp", "batch_norm_scale", "random"; of
            gradients "taylor", "gradient", "fisher", "second_order"; of activations "mean_activation", "apoz",
            "activation_sum", "entropy"; or "learned", which measures a sample of units and predicts the others.
        data: `(x, y)` or batches of it, for an importance that takes data and has none of its own, and to run files on
            when latency is measured.
        scope: "local" takes the same share of units in each group, "global" the lowest of the whole model.
        target: the device that the model is for: "android", "ethos-u55", or a `Device` of your own: units are kept in
            its multiple, and a latency is estimated for its NPU. None: no particular one.
        round_to: groups that shrink keep a multiple of this many units, if they have as many; or numbers by layer.
            None: the multiple of the `target` (8 for XNNPACK and the Ethos-U), else 1.
        min_width: units that each group keeps at least; or numbers by layer (name or path).
        max_share: the share of units that may go in each group; or shares by layer (name or path), 0 to keep all.
        frozen: layers or nested models that stay as they are: names, paths or regular expressions.
        exact: whether only such removals are allowed that leave outputs as they are once the removed weights are 0;
            without it, channels of layer normalisations may go.
        input_shape: for a subclassed model, see `trace`.

    Raises:
        ValueError: no target or one outside (0, 1); the target cannot be met (with the nearest that can); a layer named
            in `max_share` makes no units that can be removed (with the reason); no graph can be traced; masks are on.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(2)])
        >>> made = plan(model, params=0.5)
        >>> made.before.params, made.after.params
        (178, 79)
        >>> [layer.units for layer in made.apply().layers]
        [7, 2]
    """
    _check(model, {"params": params, "flops": flops, "memory": memory, "latency": latency}, threshold, measure, scope)
    device = None if target is None else resolve_device(target)
    analysis = analyse(model, exact=exact, frozen=frozen, input_shape=input_shape)
    counter, limits = Counter(analysis), limits_of(analysis, max_share, min_width, multiples_for(round_to, device))
    targets = {"params": params, "macs": flops, "peak": memory}
    check_reachable(analysis, counter, targets, limits.least)
    chosen = resolve_importance(importance, data)
    chosen.check_data()
    inputs = first_inputs(chosen.data if data is None else data)
    scored = (chosen if threshold is None else chosen.as_measured()).score(model, analysis)
    if threshold is not None:
        kept = kept_after(analysis, np.flatnonzero(scored.scores <= threshold), limits)
        return Plan(analysis, keep_best(analysis, scored.scores, kept), scored.notes, inputs=inputs)
    ranking = Ranking(analysis, counter, scored.scores, scope, limits)
    number, found = ranking.fewest(targets), None
    if latency is not None:
        build = functools.partial(rebuild, analysis, inputs=inputs)
        trials = Trials(measure or find_measure(model, data, device), model, ranking, build)
        number, found = trials.meet(latency, number)
    return Plan(analysis, ranking.keep(number), scored.notes, found, inputs)


def prune(model: keras.Model, *, reconstruct: Any = None, verbose: Any = "auto", **options: Any) -> keras.Model:
    """Return a smaller model: `plan(model, ...).apply(reconstruct=..., verbose=...)`.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(2)])
        >>> prune(model, flops=0.5, importance="l1").count_params()
        90
    """
    return plan(model, **options).apply(reconstruct=reconstruct, verbose=verbose)


def remove(
    model: keras.Model, units: Mapping[str, Iterable[int]], *, exact: bool = True, input_shape: Any = None
) -> Plan:
    """Choose units by hand: for layers, by name or path, which of their outputs go; all that is tied to them goes too.

    Raises:
        ValueError: no layer has that name or no output that number, an output has to stay (with the reason), all units
            of a group would go, or masks are on.

    Example:
        >>> a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")
        >>> model = keras.Sequential([keras.Input((4,)), a, b])
        >>> remove(model, {"a": [0]}).apply().layers[0].units
        2
        >>> remove(model, {"b": [0]})
        Traceback (most recent call last):
            ...
        ValueError: 'b' cannot lose output 0: it is an output of the model.
    """
    _check_bare(model)
    analysis = analyse(model, exact=exact, input_shape=input_shape)
    keep = np.ones(analysis.size, bool)
    for name, indices in units.items():
        labels = labels_of_layer(analysis, name)
        for index in indices:
            if not 0 <= index < len(labels):
                raise ValueError(f"{name!r} has the outputs 0 to {len(labels) - 1}. Received: {index}")
            unit = analysis.units_of(labels[[index]])[0]
            if unit < 0:
                raise ValueError(f"{name!r} cannot lose output {index}: {analysis.reason(labels[[index]])}.")
            keep[unit] = False
    for group in analysis.groups:
        if not keep[group.start : group.stop].any():
            slot = analysis.slots[group.slots[0]]
            raise ValueError(f"{slot.path!r} must keep one unit at least. Received: all {group.size} to be removed.")
    return Plan(analysis, keep)


def _check(
    model: keras.Model,
    shares: Mapping[str, float | None],
    threshold: float | None,
    measure: Measure | None,
    scope: str,
) -> None:
    if all(share is None for share in shares.values()) == (threshold is None):
        received = ", ".join(f"{name}={value}" for name, value in (*shares.items(), ("threshold", threshold)))
        raise ValueError(
            "plan needs one kind of target: params=0.5, flops=0.5, memory=0.5 or latency=0.5 leaves at most half, "
            f"threshold=0.1 the units with a score above it. Received: {received}."
        )
    for name, value in shares.items():
        if value is not None:
            check_fraction(f"plan: {name}", value)
            if value == 0.0:
                raise ValueError(f"plan: {name} is the share that may be left, so it is above 0. Received: {value}")
    if measure is not None and shares["latency"] is None:
        raise ValueError("plan: measure is how latency is taken. Received: measure without latency. Give latency=0.5.")
    if scope not in ("local", "global"):
        raise ValueError(f"plan: scope must be 'local' or 'global'. Received: {scope!r}")
    _check_bare(model)


def _check_bare(model: keras.Model) -> None:
    """Refuse a model with masks: they would go, and what they hold at zero could come back."""
    refuse_keras2("plan", model)
    masked = [variable.path for variable in under_masks(model)]
    if masked:
        raise ValueError(
            f"{model.name!r} has masks on {len(masked)} variables, the first {masked[0]!r}. Take them off first: "
            "plan(kp.strip(model), ...)."
        )
