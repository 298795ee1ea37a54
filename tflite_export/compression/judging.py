"""How good a file is: its answers to the validation inputs, put through the metrics that the model is compiled with.

A number type changes answers, so that the metric of the Keras model is not that of the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops, tree
from numpy.typing import NDArray

from keras_prune.keras_seam import own_methods
from keras_prune.monitoring.metric import Metric, Score, check_mode, value_of
from keras_prune.optimizers.compiling import known_objects
from keras_prune.statistics.batches import Batches
from keras_prune.statistics.input_shapes import InputShapes
from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.runtimes.opening import open_own
from tflite_export.tflm.decode_operators import without_decode
from tflite_export.verification.golden import Golden
from tflite_export.verification.ports import ports_of

__all__ = ["Judge"]

OWN_STEPS = ("test_step", "compute_loss", "compute_metrics")
"""Methods by which a class of the user's computes metrics in a way of its own."""


class Judge:
    """Gives the metric of candidates.

    Args:
        model: as it was given, compiled.
        validation: `(x, y)` or a data set; or a function from a Keras model to a number.
        name: of the metric; None for the first one beside the loss.
        mode: "max", "min" or "auto", as Keras finds it; a function's value rises with "auto".

    Attributes:
        metric: its name and direction, known once something was judged.
        note: what is judged, where it is not the file.

    Raises:
        ExportError: the model is not compiled, and data are to judge by.
    """

    def __init__(self, model: keras.Model, validation: Any, name: str | None, mode: str) -> None:
        check_mode("compress", mode)
        self._mode, self._name, self._data = mode, name, validation
        self._score: Score | None = None
        self._answers: keras.Model | None = None
        self.metric: Metric | None = None
        self.note = ""
        if callable(validation):
            self._score = Score("compress", validation, name, mode)
            self.metric = self._score.metric
            self.note = (
                f"{self._score.metric.name if self._score.metric else 'the metric'} is the function's value of the "
                "Keras model; the file was verified to answer as that does, within the tolerance of its number type"
            )
            return
        own = own_methods(model, OWN_STEPS)
        if own:
            self._score = Score("compress", validation, name, mode)
            self.note = (
                f"the metric is that of the Keras model, since its class has its own {', '.join(own)}; the file was "
                "verified to answer as the model does, within the tolerance of its number type"
            )
            return
        self._answers = _Answers(name=model.name)
        names = getattr(model, "output_names", None)
        if names:
            self._answers.output_names = list(names)
        with known_objects(model):
            self._answers.compile_from_config(model.get_compile_config())
        if not self._answers.compiled:
            raise ExportError(
                f"model '{model.name}'",
                "its settings of compile must be such that can be written down, to judge files by its metrics",
                "settings that cannot",
                "Pass validation= as a function from a Keras model to a number.",
            )
        self._inputs = InputShapes.of(model)
        self._structure = getattr(model, "output", None)

    @property
    def judges_files(self) -> bool:
        """Whether the metric is that of the file, and not of the Keras model that it was made of."""
        return self._score is None

    def __call__(self, model: keras.Model, file: bytes, golden: Golden) -> float:
        """Return the metric of a candidate.

        Args:
            model: the Keras model.
            file: made of it.
            golden: of the file: the names of its inputs and outputs, in the order of the model's.

        Raises:
            ExportError: the metric is not among the model's.
        """
        try:
            if self._score is not None:
                value = self._score(model)
                self.metric = self._score.metric
                return value
            logs = self._logs(model, file, golden)
            if self._name is None:
                self._name = next((name for name in logs if name != "loss"), "loss")
            value = value_of("compress", logs, self._name)
            if self.metric is None:
                self.metric = Metric(self._name, self._rises(self._name, value))
            return value
        except ExportError:
            raise
        except ValueError as error:
            raise ExportError(
                "metric", "must be one that can be judged by", error, "Correct metric= or mode=."
            ) from error

    def _rises(self, name: str, value: float) -> bool:
        """Return whether more of a metric is better; Keras knows those of one of several outputs without its name."""
        assert self._answers is not None
        outputs = [f"{output}_" for output in getattr(self._answers, "output_names", None) or ()]
        own = next((name.removeprefix(output) for output in outputs if name.startswith(output)), name)
        return Metric.of("compress", self._answers, own, self._mode, value).rises

    def _logs(self, model: keras.Model, file: bytes, golden: Golden) -> dict[str, Any]:
        assert self._answers is not None
        answered = _Answered(list(self._run(model, file, golden)))
        return dict(self._answers.evaluate(answered, verbose=0, return_dict=True))

    def _run(self, model: keras.Model, file: bytes, golden: Golden) -> Iterator[tuple[Any, ...]]:
        """Yield (answers, y) or (answers, y, sample_weight) of each batch of the validation data."""
        # What a microcontroller decodes is, bit for bit, what LiteRT reads here.
        plain = without_decode(TFLiteFile.of(file))
        taken, given = ports_of(plain.model)
        names, outputs = list(golden.inputs), list(golden.outputs)
        with open_own(plain, threads=os.cpu_count() or 1) as session:
            for batch in Batches(self._data, model, labels=True, size=256):
                feeds = [
                    taken[name].store(np.asarray(ops.convert_to_numpy(leaf)))
                    for name, leaf in zip(names, self._leaves(batch.x), strict=True)
                ]
                found = session.run(feeds, names, outputs)
                real = [given[name].real(values) for name, values in zip(outputs, found, strict=True)]
                rest = (batch.y,) if batch.sample_weight is None else (batch.y, batch.sample_weight)
                yield (self._packed(real), *tree.map_structure(ops.convert_to_numpy, rest))

    def _leaves(self, x: Any) -> list[Any]:
        leaves = self._inputs.leaves(x) if self._inputs is not None else None
        return tree.flatten(x) if leaves is None else leaves

    def _packed(self, outputs: list[NDArray[Any]]) -> Any:
        """Return answers in the structure of the model's outputs."""
        if self._structure is not None:
            return tree.pack_sequence_as(self._structure, outputs)
        return outputs[0] if len(outputs) == 1 else outputs


class _Answers(keras.Model):
    """A model whose inputs are answers: what it is compiled with judges them."""

    def call(self, x: Any) -> Any:
        return x


class _Answered(keras.utils.PyDataset):
    """Batches of answers with their labels."""

    def __init__(self, batches: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self._batches[index]
