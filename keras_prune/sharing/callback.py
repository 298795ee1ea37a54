"""The callback that trains shared weights."""

from __future__ import annotations

from typing import Any

import keras

from keras_prune.keras_seam import print_msg
from keras_prune.schedules import ConstantSparsity
from keras_prune.scope import Scope, Skipped
from keras_prune.sharing.choices import Choices
from keras_prune.sharing.sharing_run import SharingRun
from keras_prune.sharing.starts import Start
from keras_prune.strategy import integer
from keras_prune.training.stepped_callback import SteppedCallback

__all__ = ["WeightSharing"]


class WeightSharing(SteppedCallback[SharingRun]):
    r"""Lets a tensor's weights share a few values, and trains these: $c_k \leftarrow c_k - \alpha \sum_{k(i) = k} g_i$.

    When training has come to `begin`, k-means puts the weights of each codebook into groups, and each weight takes the
    mean of its group. From then on every group is trained as one parameter, by the sum of its members' gradients, with
    any optimizer that moves each weight by itself: its momentum, its decay, and its part in the norm of all gradients
    are those of one parameter. Members are equal to the bit, in validation, in every checkpoint and at the end.
    Which weights are together stays as it is.

    Zeros are a value of their own, one of the `values`, and stay 0. So it goes together with a callback whose pruned
    weights stay pruned, or comes after it. A model that has no more values already keeps them, and trains them on.

    A sum over thousands of weights is large: take an optimizer that scales its steps, as Adam does, or a lower rate.
    On a model of `keras_prune.quantize_aware`, values learn by what an int8 file will make of them.
    The callback leaves nothing on the model that would hold values together in a later training without it.

    Args:
        values: the most values of a codebook, from 2 to 256, zero counted.
        start: where k-means begins: "k-means++", "linear", "density", "random", or an instance, `keras_prune.sharing`.
        granularity: "tensor" for a codebook for each tensor; "channel" for one for each output: neuron, filter.
        group_by: "value"; or "gradient", which puts weights of similar gradient together, taken on `data`.
        data: `(x, y)`, a data set or batches, for `group_by="gradient"`.
        begin: when: a step, or a text: "70%" of the training, "2 epochs".
        scope: which tensors; None for all kernels.
        seed: for starts that draw at random.

    Raises:
        ValueError: a choice is none of those that there are; the model is not built or not compiled; nothing is there
            to share, weights are not finite, or another callback brings weights back.
        ImportError: scikit-learn is not installed; the message has the command.

    Source: Han et al. 2016, "Deep Compression", section 3.

    Example:
        >>> import keras, numpy as np
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> _, sharing = kp.prune(model, 0.5, allocation="uniform"), kp.WeightSharing(4)
        >>> _ = model.fit(np.ones((80, 8)), np.ones((80, 1)), verbose=0, callbacks=[sharing])
        >>> list(sharing.values.values())
        [4, 4]
    """

    def __init__(
        self,
        values: int = 16,
        start: str | Start = "k-means++",
        *,
        granularity: str = "tensor",
        group_by: str = "value",
        data: Any = None,
        begin: int | str = 0,
        scope: Scope | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.choices = Choices.of("WeightSharing", values, start, granularity, group_by, data, scope, seed)
        self.begin = begin
        self._once = _once(begin)

    def __repr__(self) -> str:
        return (
            f"WeightSharing({self.choices.values}, {self.choices.start}, granularity={self.choices.granularity!r}, "
            f"begin={self.begin!r})"
        )

    # -- what the user can ask ----------------------------------------------------------------------------------------

    @property
    def values(self) -> dict[str, int]:
        """How many values each tensor has now, zero counted; where outputs have codebooks, in that which has most."""
        return self._running().values

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The variables whose weights share no values, each with the reason."""
        return self._running().skipped

    # -- Keras's hooks ------------------------------------------------------------------------------------------------

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Follow what other callbacks have pruned since the last step."""
        self._running().follow_masks()

    def on_step(self, steps: int = 1) -> None:
        """Note that the optimizer was called `steps` times more; see `SteppedCallback.on_step`.

        In a loop with a pruning callback, call its `on_step` first.
        """
        super().on_step(steps)
        self._running().follow_masks()

    def _tell(self, run: SharingRun) -> None:
        if run.span is None or self._told:
            return
        self._told = True
        if self.params.get("verbose", 0) != 0:
            print_msg(f"WeightSharing: from step {run.last_step} on; training ends at step {run.span.end}.")

    # -- what a run needs ---------------------------------------------------------------------------------------------

    def _begin(self, model: keras.Model, history: Any) -> SharingRun:
        return SharingRun(model, self.choices, self._once, history)

    def _shown(self, run: SharingRun) -> dict[str, float]:
        return {}

    def _too_late(self, run: SharingRun, total: int, end: str) -> str:
        return (
            f"weights are to share values from step {run.last_step} on, and training ends at step {end}: they will "
            f"not. Set begin to less than {total}, or train longer."
        )

    def _fell_short(self, run: SharingRun) -> str:
        return (
            f"training ended at step {run.now}, and weights were to share values from step {run.last_step} on: they "
            "do not. Let them begin earlier, or train longer."
        )

    def _written(self, number: int) -> str:
        return (
            f"a callback wrote weights that share no values at the end of training, to tensors of {number:,} weights "
            "(does one restore the best weights of an epoch before they did?). They share values again, by k-means "
            "without training. keras_prune.RestoreBest looks at epochs from then on only."
        )


def _once(begin: Any) -> ConstantSparsity:
    """Return a schedule of one change, of which only the time matters."""
    if isinstance(begin, str):
        return ConstantSparsity(0.0, begin=begin, end=begin)
    if isinstance(begin, float) and 0 <= begin <= 1:
        raise TypeError(
            f"WeightSharing: begin must be a step, or a text as in '70%'. Received: begin={begin!r}. Write "
            f"'{float(begin) * 100:g}%'."
        )
    step = integer("WeightSharing: begin", begin)
    return ConstantSparsity(0.0, begin_step=step, end_step=step)
