"""Measured time: of whole models with more and more layers factorised, and of single layers beside their factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_prune.factorization.candidates import Candidate
from keras_prune.factorization.choosing import steps
from keras_prune.models.variables import assign, read
from keras_prune.structured.planning.latency import Measure
from keras_prune.structured.planning.latency_search import search

__all__ = ["Chosen", "by_latency", "seconds_of", "speed_of"]

Chosen = dict[int, int]
"""Layer -> which of its choices."""


def by_latency(
    found: Sequence[Candidate],
    model: keras.Model,
    whole_macs: int,
    target: float,
    measure: Measure,
    build: Callable[[Mapping[int, int]], keras.Model],
) -> tuple[Chosen, float]:
    """Return choices with which the model was measured to take no more than a share of its time, and its seconds.

    Models along the way of least loss for multiplications saved are made and measured, ten or so.

    Args:
        found: the layers.
        model: as it is; it is measured first.
        whole_macs: its multiplications.
        target: the share of its time that may be left.
        measure: gives the seconds of a run.
        build: makes the model with these choices.

    Raises:
        ValueError: no model met it.
    """
    way = steps([one.choices for one in found], "macs")
    before = seconds_of(measure, model)
    shares: dict[int, float] = {0: 1.0}

    def chosen(number: int) -> Chosen:
        return {step.layer: step.choice for step in way[:number]}

    def share(number: int) -> float:
        if number not in shares:
            shares[number] = seconds_of(measure, build(chosen(number))) / before
        return shares[number]

    def left(number: int) -> float:
        return 1.0 - sum(step.saved for step in way[:number]) / whole_macs

    number = search(share, left, 0, len(way), target)
    if number is None:
        best = min(shares.values())
        raise ValueError(
            f"factorize: latency={target} cannot be met: of {len(shares) - 1} models measured, the fastest takes "
            f"{best:.4f} of the whole one's {1e3 * before:.3f} ms."
        )
    return chosen(number), before


def speed_of(layer: Any, shape: Sequence[int | None], chain: Sequence[Any], measure: Measure) -> float:
    """Return how many times as fast as a layer the layers in its place are, each as a model of its own.

    Args:
        layer: the old layer; it stays as it is.
        shape: of its input, with the batch.
        chain: new layers, made for this.
        measure: gives the seconds of a run.
    """
    alone = type(layer).from_config(layer.get_config())
    models = []
    for layers in ([alone], chain):
        inputs = keras.Input(tuple(size or 32 for size in shape[1:]))
        x = inputs
        for one in layers:
            x = one(x)
        models.append(keras.Model(inputs, x, name=layer.name))
    for old, new in zip(layer.weights, alone.weights, strict=True):
        assign(new, read(old))
    before = seconds_of(measure, models[0])
    return before / seconds_of(measure, models[1])


def seconds_of(measure: Measure, model: keras.Model) -> float:
    """Measure, and refuse what cannot be a time."""
    seconds = float(measure(model))
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"factorize: measure must give the seconds of a run, above 0. Received: {seconds}")
    return seconds
