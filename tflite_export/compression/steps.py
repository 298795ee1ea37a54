"""The steps by which a model becomes a candidate: each is done, and written as code, in one place.

What the search does and what the recipe says are the same list of steps.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import keras
import numpy as np

from keras_prune.devices import DEVICES, Device
from keras_prune.keras_seam import layers_in
from keras_prune.oneshot import prune
from keras_prune.reconstruction.recalibration import recalibrate
from keras_prune.sharing.callback import WeightSharing
from keras_prune.sharing.oneshot import share
from keras_prune.structured import Distillation
from keras_prune.structured import prune as prune_units
from tflite_export.compression.candidate import Candidate
from tflite_export.compression.given import TrainingData
from tflite_export.compression.space import Space

__all__ = ["Step", "Training", "distillation_as_code", "steps_for", "target_as_code"]


class Step(ABC):
    """One change of a model."""

    @abstractmethod
    def do(self, model: keras.Model, data: TrainingData) -> keras.Model:
        """Return the changed model; a step may change the one that it is given, which nothing else reads."""

    @abstractmethod
    def code(self, data: TrainingData) -> str:
        """Return the lines of Python that do it to the variable `model`."""


@dataclasses.dataclass(frozen=True)
class RemoveUnits(Step):
    """Structured pruning to a share of what there is, what is kept solved again.

    Args:
        goal: what the share is of.
        share: that may be left.
        target: the device in whose multiples units are kept; None: any number is.
    """

    goal: str
    share: float
    target: Device | None = None

    def do(self, model: keras.Model, data: TrainingData) -> keras.Model:
        return prune_units(model, target=self.target, reconstruct=data.inputs, verbose=0, **{self.goal: self.share})

    def code(self, data: TrainingData) -> str:
        target = "" if self.target is None else f", target={target_as_code(self.target)}"
        return f"model = kp.structured.prune(model, {self.goal}={self.share:g}{target}, reconstruct=inputs)"


@dataclasses.dataclass(frozen=True)
class Recalibrate(Step):
    """Statistics of batch normalisation estimated again."""

    def do(self, model: keras.Model, data: TrainingData) -> keras.Model:
        return recalibrate(model, data.inputs)

    def code(self, data: TrainingData) -> str:
        return "kp.recalibrate(model, inputs)"


@dataclasses.dataclass(frozen=True)
class Zero(Step):
    """Masks, what is kept solved again."""

    sparsity: float
    target: Device | None

    def do(self, model: keras.Model, data: TrainingData) -> keras.Model:
        return prune(model, self.sparsity, target=self.target, reconstruct=data.inputs, verbose=0)

    def code(self, data: TrainingData) -> str:
        target = "" if self.target is None else f", target={target_as_code(self.target)}"
        return f"kp.prune(model, {self.sparsity:g}{target}, reconstruct=inputs)"


@dataclasses.dataclass(frozen=True)
class ShareValues(Step):
    """Few values in each kernel."""

    values: int

    def do(self, model: keras.Model, data: TrainingData) -> keras.Model:
        return share(model, self.values)

    def code(self, data: TrainingData) -> str:
        return f"kp.share(model, {self.values})"


@dataclasses.dataclass(frozen=True)
class Training(Step):
    """Fine-tuning by the model's own optimizer and loss; its rate falls in a line to zero, epoch by epoch.

    Args:
        epochs: of `fit`.
        seed: of the generators of Python, NumPy and TensorFlow, set before.
        rate: the learning rate to begin with; None where the optimizer has a schedule of its own.
        distill: the model learns from the teacher in it too; None for labels alone.
        values: that weights share, and go on to share; None: any.
    """

    epochs: int
    seed: int
    rate: float | None
    distill: Distillation | None = None
    values: int | None = None

    def do(self, model: keras.Model, data: TrainingData) -> keras.Model:
        keras.utils.set_random_seed(self.seed)
        callbacks: list[keras.callbacks.Callback] = []
        if self.rate is not None:
            rate, epochs = self.rate, self.epochs
            callbacks.append(keras.callbacks.LearningRateScheduler(lambda epoch: rate * (1 - epoch / epochs)))
        if self.values is not None:
            callbacks.append(WeightSharing(self.values))
        options = {**data.fit, "epochs": self.epochs, "verbose": 0, "callbacks": callbacks}
        if self.distill is None:
            model.fit(**options)
        else:
            self.distill.fit(model, **options)
        return model

    def code(self, data: TrainingData) -> str:
        lines = [f"keras.utils.set_random_seed({self.seed})"]
        callbacks = []
        if self.rate is not None:
            lines.append(
                "falling = keras.callbacks.LearningRateScheduler("
                f"lambda epoch: {self.rate!r} * (1 - epoch / {self.epochs}))"
            )
            callbacks.append("falling")
        if self.values is not None:
            callbacks.append(f"kp.WeightSharing({self.values})")
        listed = f", callbacks=[{', '.join(callbacks)}]" if callbacks else ""
        call = "model.fit(" if self.distill is None else "distill.fit(model, "
        lines.append(f"{call}{data.arguments}, epochs={self.epochs}, verbose=0{listed})")
        return "\n".join(lines)


def steps_for(
    candidate: Candidate, space: Space, model: keras.Model, begun: Candidate | None = None
) -> tuple[Step, ...]:
    """Return the steps that make a candidate, before any training.

    Args:
        candidate: what is to be made.
        space: what shares and zeros are of.
        model: the plain one.
        begun: what it is made of: a larger candidate without zeros and shared values; None: the plain model.
    """
    normalised = any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers_in(model))
    again: tuple[Step, ...] = (Recalibrate(),) if normalised else ()
    steps: tuple[Step, ...] = ()
    whole = 1.0 if begun is None else begun.keep
    if candidate.keep < whole:
        share = float(f"{candidate.keep / whole:.4g}")  # as the code says it
        steps += (RemoveUnits(space.goal, share, space.units_for), *again)
    if candidate.sparsity:
        steps += (Zero(candidate.sparsity, space.zeros_for), *again)
    if candidate.values is not None:
        steps += (ShareValues(candidate.values), *again)
    return steps


def target_as_code(device: Device) -> str:
    """Return a device as code: its name, or the variable `device` for one of the user's own."""
    return repr(device.name) if DEVICES.get(device.name) == device else "device"


def distillation_as_code(distill: Distillation, model: keras.Model) -> str:
    """Return the line that makes the variable `distill`: of the variable `model`, where that is the teacher."""
    if distill.teacher is not model or distill.losses is not None:
        return "# distill: the Distillation that the search was given, its teacher and its losses"
    outputs = "" if distill.outputs is None else f", outputs={distill.outputs!r}"
    settings = f"temperature={distill.temperature!r}, alpha={distill.alpha!r}{outputs}"
    return f"distill = kp.structured.Distillation(model, {settings})"


def learning_rate(model: Any) -> float | None:
    """Return the learning rate that a model is compiled with; None where it follows a schedule, or there is none."""
    optimizer = model.optimizer
    if optimizer is None:
        return None
    config = getattr(optimizer, "inner_optimizer", optimizer).get_config()
    rate = config.get("learning_rate")
    return float(str(np.float32(rate))) if isinstance(rate, int | float) else None  # 0.002, as it was written
