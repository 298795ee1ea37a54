"""Which candidates a target can use: the number types, zeros and shares that may make its files cheaper.

Asked is the device's data, never its name: the number types that its runtime takes, the kernels that skip zeros,
whether a weight may be stored sparse at all.

| minimised | zeros are tried | in number types |
| --- | --- | --- |
| latency | where a kernel skips them, in the pattern that it skips (`kp.prune(target=...)`) | float32 |
| latency, on an NPU | in the kernels that its compiler packs | int8 |
| size, flash | where a file can store them, single ones in all kernels | all |
| size, flash, on a microcontroller or an NPU | in the kernels where they save flash | int8 |

Structured shares leave units in the multiples of the device (`Device.multiple`) where time is minimised, and on an NPU.

Values that weights share are tried where few of them take less room: in records of a microcontroller, and in what an
NPU's compiler packs. Everywhere else a weight takes its byte, whatever the others are.
"""

from __future__ import annotations

import dataclasses

import keras

from keras_prune.devices import Device
from keras_prune.devices.choosing import choose
from keras_prune.extras import import_extra
from keras_prune.scope import Scope
from keras_prune.structured import analyse
from tflite_export.compression.candidate import Candidate
from tflite_export.plan.plan import Optimize

__all__ = ["HALF_THE_WIDTH", "VALUES", "Line", "Space", "space_for"]

SHARES: tuple[float, ...] = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.06)
"""What may be left of a model: each about 0.7 of the one before, which is a step that a metric shows."""
HALF_THE_WIDTH = 0.25
"""The share of multiplications, or of parameters, that is left of a network half as wide."""
ZEROS_FOR_SPEED = (0.7, 0.8, 0.9)
"""XNNPACK's sparse inference switches on above 2/3."""
ZEROS_FOR_BYTES = (0.6, 0.8, 0.9)
"""A form that stores zeros needs room for their places: below half, little is gained."""


VALUES = 16
"""Values in a kernel: half the bits of int8, and a metric that hardly shows it."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Candidates that differ in how much is left only: along it, cost and metric fall together.

    Args:
        sparsity: of each.
        quantize: number type of each.
        values: that the weights of a kernel share in each; None: any.
    """

    sparsity: float
    quantize: str | None
    values: int | None = None

    def at(self, keep: float) -> Candidate:
        """Return the candidate at a share."""
        return Candidate(keep, self.sparsity, self.quantize, self.values)


@dataclasses.dataclass(frozen=True)
class Space:
    """What is searched.

    Args:
        device: the target.
        goal: what shares are of: "flops" or "params", as `kp.structured.prune` calls them.
        optimize: of the export.
        number_types: that the target takes; the first is that of the reference.
        shares: that may be left, falling from 1.
        lines: of candidates.
        zeros_for: the device whose kernels choose pattern and tensors of zeros; None: single zeros in all kernels.
        notes: what is not searched, and why.
    """

    device: Device
    goal: str
    optimize: Optimize
    number_types: tuple[str | None, ...]
    shares: tuple[float, ...]
    lines: tuple[Line, ...]
    zeros_for: Device | None = None
    notes: tuple[str, ...] = ()

    @property
    def units_for(self) -> Device | None:
        """The device in whose multiples units are kept, where time is minimised and on an NPU; None: any number is."""
        kept = self.device.multiple > 1 and (self.goal == "flops" or self.device.npu is not None)
        return self.device if kept else None

    @property
    def reference(self) -> Candidate:
        """The plain file that costs are compared with."""
        return Candidate(quantize=self.number_types[0])

    @property
    def baselines(self) -> tuple[Candidate, ...]:
        """Single means, which the combinations are seen beside: number types, half the width, zeros, shared values."""
        plain = [Candidate(quantize=kind) for kind in dict.fromkeys((None, *self.number_types))]
        first = self.number_types[0]
        half = [Candidate(HALF_THE_WIDTH, 0.0, first)] if HALF_THE_WIDTH in self.shares else []
        own = [line for line in self.lines if line.quantize == first]
        zeros = [line.at(1.0) for line in own if line.sparsity == 0.8 and line.values is None]
        values = [line.at(1.0) for line in own if line.sparsity == 0.0 and line.values is not None]
        return (*plain, *half, *zeros, *values)


def space_for(device: Device, objective: str, model: keras.Model) -> Space:
    """Return what to search for a model on a device.

    Args:
        device: the target.
        objective: "latency", "size" or "flash".
        model: built, without masks.

    Example:
        >>> from keras_prune.devices import DEVICES
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(2)])
        >>> space = space_for(DEVICES["mcu"], "flash", model)
        >>> space.number_types, space.goal, sorted({line.sparsity for line in space.lines})
        (('int8',), 'params', [0.0, 0.6, 0.8, 0.9])
    """
    fast = objective == "latency"
    wanted: tuple[str | None, ...] = (None, "int8") if fast else (None, "int8", "float16")
    kinds = wanted if device.quantize is None else tuple(device.quantize)
    notes = list[str]()
    zeros: tuple[float, ...] = (0.0,)
    zeros_for = None
    packs = device.packs_zeros and (device.npu is not None or not fast)
    if fast and not packs and not device.skips_zeros:
        notes.append(f"zeros are not tried: the runtime of '{device.name}' has no kernel that skips them")
    elif fast or packs:
        reason = _why_no_zeros(device, model)
        if reason:
            notes.append(f"zeros are not tried: {reason}")
        elif not packs and None not in kinds:
            notes.append("zeros are not tried: kernels that skip them are for float32, which the target does not take")
        else:
            zeros, zeros_for = (0.0, *(ZEROS_FOR_BYTES if packs else ZEROS_FOR_SPEED)), device
    elif device.densify or device.kernels:
        zeros = (0.0, *ZEROS_FOR_BYTES)
    else:
        notes.append(f"zeros are not tried: the runtime of '{device.name}' reads no weight that is stored sparse")
    skipped = fast and not packs
    values: tuple[int | None, ...] = (None,)
    if packs:
        reason = _why_no_values()
        values = (None,) if reason else (None, VALUES)
        notes += [f"shared values are not tried: {reason}"] if reason else []
    lines = tuple(
        Line(sparsity, kind, shared)
        for shared in values
        for sparsity in zeros
        for kind in kinds
        if not (skipped and sparsity and kind is not None)
    )
    shares = SHARES
    try:
        analyse(model)
    except ValueError as error:
        shares = (1.0,)
        notes.append(f"structured shares are not tried: {error}")
    return Space(
        device,
        "flops" if fast else "params",
        # Where weights are decoded in each run, none of them is where time counts.
        ("portable" if device.decode else "speed") if fast else "size",
        kinds,
        shares,
        lines,
        zeros_for,
        tuple(notes),
    )


def _why_no_values() -> str:
    """Return why weights cannot come to share values here; empty where they can."""
    try:
        import_extra("sklearn", "compression", "weight sharing")
    except ImportError as error:
        return str(error)
    return ""


def _why_no_zeros(device: Device, model: keras.Model) -> str:
    """Return why zeros gain nothing on a device; empty where they may."""
    try:
        choose(device, model, Scope().survey(model))
    except ValueError as error:
        return str(error)
    return ""
