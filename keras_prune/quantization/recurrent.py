"""The layer that runs a recurrent layer's steps rounded."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
from keras import layers as kl
from keras import ops

from keras_prune.keras_seam import built_shapes
from keras_prune.quantization.layers import FakeQuantize, RoundedLayer, extremes, rounded_kernels
from keras_prune.quantization.steps import STEPS, refusal_of_recurrent, tensors_of

__all__ = ["QuantizedRecurrent"]


@keras.saving.register_keras_serializable(package="keras_prune")
class QuantizedRecurrent(RoundedLayer):
    """Runs an LSTM, GRU or SimpleRNN step by step as an int8 file does: both kernels and each tensor of a step rounded.

    Kernels are rounded symmetrically with one scale for each unit of each gate. Sums and carries have a range for each
    step, since they grow along a sequence; states and what activation functions make have one for all steps, of which
    a moving one follows the extremes. Sequences have a fixed length, since each step is computed apart, as with
    `unroll=True`: that is what TFLite's converter makes int8 numbers of.

    Args:
        layer: an LSTM, GRU or SimpleRNN, or an RNN around one of their cells; if it is built, its weights are kept.
        ranges, momentum: of the tensors, as for `FakeQuantize`.
        **kwargs: what any Keras layer takes; `dtype` is the wrapped layer's.

    Call arguments: those of the wrapped layer.

    Raises:
        ValueError: the layer is another one, or its steps are not rounded, with the reason.

    Example:
        >>> layer = QuantizedRecurrent(keras.layers.GRU(2))
        >>> layer.build((None, 3, 4))
        >>> layer(keras.ops.ones((1, 3, 4))).shape, "state" in layer.tensors
        (TensorShape([1, 2]), True)
    """

    def __init__(self, layer: keras.Layer, ranges: str = "moving", momentum: float = 0.99, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.ranges, self.momentum = ranges, float(momentum)
        if layer.built:
            self.build()

    @staticmethod
    def refusal(layer: keras.Layer) -> str:
        """Return why a layer's steps are not rounded; empty where they are."""
        return refusal_of_recurrent(layer) if isinstance(layer, kl.RNN) else "it is no LSTM, GRU or SimpleRNN"

    def build_around(self) -> None:
        """Make the ranges."""
        cell = self.layer.cell
        shape = next(iter(built_shapes(self.layer).values()), None)
        steps = shape[1] if shape else 1
        self.tensors = {
            name: FakeQuantize(
                self.ranges,
                self.momentum,
                ends,
                steps if name in STEPS[type(cell)].by_step else None,
                name=f"{self.layer.name}_{name}_range",
                dtype=self.dtype_policy,
            )
            for name, ends in tensors_of(cell).items()
        }
        for tensor in self.tensors.values():
            tensor.build(())

    def running(self) -> contextlib.AbstractContextManager[Any]:
        """Return the scope in which the cell's kernels read as rounded."""
        return rounded_kernels(self.layer.cell, self.add_loss)

    def call(self, sequences: Any, initial_state: Any = None, mask: Any = None, training: bool | None = False) -> Any:
        """Run the steps; in training, move the ranges afterwards."""
        if self.at_rest:
            return self.layer(sequences, initial_state=initial_state, mask=mask, training=training)
        step = _Step(self.layer.cell, self.tensors, watched=bool(training))
        with self.running():
            results = self._loop(step).call(self._dropped(sequences, training), initial_state, mask)
        step.move()
        return results

    def _loop(self, step: _Step) -> Any:
        """Keras's own loop over the steps, without weights or state."""
        names = ("return_sequences", "return_state", "go_backwards", "zero_output_for_mask")
        options = {name: getattr(self.layer, name) for name in names}
        return kl.RNN(step, unroll=True, name="steps", dtype=self.dtype_policy, **options)

    def _dropped(self, sequences: Any, training: bool | None) -> Any:
        """The inputs with those set to zero that the cell drops, the same ones at each step."""
        cell = self.layer.cell
        if not training or not cell.dropout:
            return sequences
        mask = cell.get_dropout_mask(sequences[:, 0, :])
        cell.reset_dropout_mask()
        return sequences * ops.expand_dims(mask, 1)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "ranges": self.ranges, "momentum": self.momentum}


class _Step:
    """What Keras's loop takes for a cell, for one call.

    Args:
        cell: with the kernels.
        tensors: by name, what rounds each tensor of the step.
        watched: whether the extremes of moving ranges are gathered.
    """

    def __init__(self, cell: Any, tensors: dict[str, FakeQuantize], *, watched: bool) -> None:
        self.cell, self.tensors = cell, tensors
        self.state_size, self.output_size, self.compute_dtype = cell.state_size, cell.output_size, cell.compute_dtype
        self.seen: dict[str, list[list[tuple[Any, Any]]]] = {
            name: [[] for _ in range(one.steps or 1)] for name, one in tensors.items() if watched and one.moves
        }
        self.step = 0

    def call(self, inputs: Any, states: Any) -> tuple[Any, list[Any]]:
        found = STEPS[type(self.cell)].run(self.cell, inputs, states, self._round)
        self.step += 1
        return found

    __call__ = call

    def get_initial_state(self, batch_size: Any = None) -> Any:
        return self.cell.get_initial_state(batch_size=batch_size)

    def _round(self, name: str, values: Any) -> Any:
        if name not in self.tensors:
            return values
        if isinstance(values, list):
            return [self.tensors[name].call(part, step=self.step) for part in values]
        if name in self.seen:
            self.seen[name][self.tensors[name].place_of(self.step) or 0].append(extremes(values))
        return self.tensors[name].call(values, step=self.step)

    def move(self) -> None:
        """Move each range towards the extremes that its tensor had in its step, or in all steps together."""
        for name, found in self.seen.items():
            tensor = self.tensors[name]
            smallest, largest = [], []
            for step, pairs in enumerate(found):  # a shorter sequence has not all steps: their ranges stay
                lows, highs = zip(*(pairs or [(tensor.low[step], tensor.high[step])]), strict=True)
                smallest.append(ops.min(ops.stack(lows)))
                largest.append(ops.max(ops.stack(highs)))
            tensor.move(*(ops.reshape(ops.stack(ends), tensor.low.shape) for ends in (smallest, largest)))
