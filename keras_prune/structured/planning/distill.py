"""A smaller model learns from the larger one that it came from, by `keras.distillation`."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import ops, tree

from keras_prune.keras_seam import loss_arguments, output_structure, own_methods
from keras_prune.strategy import check_fraction
from keras_prune.strip import strip

__all__ = ["Distillation"]

OUTPUTS = ("logits", "probabilities", "binary_logits", "binary_probabilities", "values")

LOSSES = {
    "categorical_crossentropy": ("probabilities", "logits"),
    "sparse_categorical_crossentropy": ("probabilities", "logits"),
    "binary_crossentropy": ("binary_probabilities", "binary_logits"),
}
"""What outputs are by the name of the loss: without, and with `from_logits=True`."""

UNUSED = ("sample_weight", "class_weight")
"""Options of `fit` that Keras's Distiller ignores."""
OWN_STEPS = ("train_step", "compute_loss", "stateless_compute_loss")
"""Methods by which a class of the user's trains in a way of its own, which the Distiller does not call."""


@dataclasses.dataclass(frozen=True)
class Distillation:
    r"""How a student learns from a teacher.

    $$L = \alpha \, L_{labels} + (1 - \alpha) \, T^2 \, KL(p_T(teacher) \| p_T(student))
    + L_{regularisation}, \quad p_T = softmax(z / T)$$

    `keras.distillation.LogitsDistillation` computes the second term. It takes logits z; of outputs that are
    probabilities it is given the logarithm, which has the same softmax. Outputs that are not classes are compared by
    their squared difference, without a temperature.

    Args:
        teacher: the larger model; None for the one that the student came from. It stays as it is: a copy teaches.
        temperature: T, above 0.
        alpha: the share of the loss on labels, a fraction in [0, 1).
        outputs: "logits", "probabilities", "binary_logits", "binary_probabilities" or "values"; None to infer it from
            the loss that the student is compiled with.
        losses: losses of `keras.distillation` instead, one or a list.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2.

    Example:
        >>> import numpy as np
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
        >>> student = keras.models.clone_model(teacher)
        >>> student.compile("sgd", "sparse_categorical_crossentropy")
        >>> history = Distillation(teacher, temperature=2.0).fit(student, x=np.ones((8, 4)), y=np.zeros(8), verbose=0)
        >>> sorted(history.history)
        ['distillation_loss', 'loss', 'student_loss', 'total_loss']
    """

    teacher: keras.Model | None = None
    temperature: float = 3.0
    alpha: float = 0.5
    outputs: str | None = None
    losses: Any = None

    def __post_init__(self) -> None:
        if self.teacher is not None and not isinstance(self.teacher, keras.Model):
            raise TypeError(f"Distillation: teacher must be a keras.Model. Received: {self.teacher!r}")
        if not isinstance(self.temperature, int | float) or self.temperature <= 0:
            raise ValueError(f"Distillation: temperature must be above 0. Received: {self.temperature!r}")
        check_fraction("Distillation: alpha", self.alpha)
        if self.outputs is not None and self.outputs not in OUTPUTS:
            raise ValueError(f"Distillation: outputs must be one of {OUTPUTS}. Received: {self.outputs!r}")

    def fit(self, student: keras.Model, **options: Any) -> keras.callbacks.History:
        """Train a compiled student with its own optimizer, which goes on from where it is.

        Callbacks among the options see the `keras.distillation.Distiller`, whose metrics bear the student's names.

        Args:
            student: compiled; afterwards still the plain model, compiled as before.
            options: of `fit`.

        Raises:
            ValueError: there is no teacher; the student is not compiled, or in a way that Keras's Distiller cannot
                train with: weighted samples, classes or outputs, metrics that are no list, or a class with a
                `train_step` or `compute_loss` of its own.
        """
        return self._distiller(student, options).fit(**options)

    def refusal(self, student: keras.Model, **options: Any) -> str:
        """Return why `fit` would refuse a student and options; empty where it trains.

        Args:
            student: as for `fit`; it stays as it is.
            **options: as for `fit`. Weights in a data set are seen only while it is read.

        Example:
            >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="small")
            >>> Distillation(student).refusal(student)[:54]
            "Distillation: 'small' must be compiled with a loss, in"
        """
        try:
            self._distiller(student, options)
        except ValueError as error:
            return str(error)
        return ""

    def kind_of(self, student: keras.Model) -> str:
        """Return what the outputs of a compiled student are: `outputs`, or what its loss says.

        Raises:
            ValueError: its losses take outputs of different kinds.
        """
        return self.outputs or _outputs_of(student)

    def _distiller(self, student: keras.Model, options: dict[str, Any]) -> keras.Model:
        """Return the compiled model that trains the student on both losses."""
        if self.teacher is None:
            raise ValueError("Distillation: fit needs a teacher. Received: teacher=None. Give Distillation one.")
        own = own_methods(student, OWN_STEPS)
        if own:
            raise ValueError(
                f"Distillation: the class of {student.name!r} must be trained as Keras trains a model. Received: "
                f"{type(student).__name__}, which has its own {', '.join(own)}. Train it without a teacher."
            )
        config = _compile_config(student)
        given = [name for name in UNUSED if options.get(name) is not None]
        if given or config.get("loss_weights") or config.get("weighted_metrics"):
            raise _weights_are_unknown(given or "loss_weights or weighted_metrics in compile")
        if not isinstance(config["metrics"], list | tuple | None):
            raise ValueError(
                "Distillation: metrics must be a list: Keras's Distiller knows no others. Received: "
                f"{type(config['metrics']).__name__}. Compile the model with a list of metrics."
            )
        losses = self.losses if self.losses is not None else self._losses(student)
        distiller = _Distiller(strip(self.teacher), student, losses, student_loss_weight=self.alpha)
        settings = {name: config[name] for name in ("run_eagerly", "steps_per_execution", "jit_compile")}
        metrics = keras.saving.deserialize_keras_object(config["metrics"])
        distiller.compile(optimizer=student.optimizer, loss=student.loss, metrics=metrics, **settings)
        return distiller

    def _losses(self, student: keras.Model) -> Any:
        kind = self.kind_of(student)
        # By name, Keras 3.15 finds the function, and then leaves out the softmax that it keeps for the class.
        made = keras.losses.MeanSquaredError if kind == "values" else keras.losses.KLDivergence
        outputs = output_structure(student)
        each = made() if outputs is None else tree.map_structure(lambda _: made(), outputs)
        if kind == "values":
            return keras.distillation.FeatureDistillation(loss=each)
        return _Classes(kind, self.temperature, each)


def _weights_are_unknown(received: Any) -> ValueError:
    return ValueError(
        f"Distillation: Keras's Distiller knows no weights of samples, classes or outputs. Received: {received}. "
        "Train without them, or give iterate a function as retrain."
    )


def _compile_config(student: keras.Model) -> dict[str, Any]:
    config = student.get_compile_config() if student.compiled else None
    if not config or student.loss is None:
        raise ValueError(
            f"Distillation: {student.name!r} must be compiled with a loss, in settings that can be written down. "
            "Call compile(...) on the model before it is made smaller."
        )
    return dict(config)


def _outputs_of(student: keras.Model) -> str:
    """What the outputs are, by the loss that they are trained on."""
    losses = tree.flatten(student.loss)
    kinds = set()
    for loss in losses:
        found = keras.losses.get(loss)
        name = str(getattr(found, "name", None) or getattr(found, "__name__", ""))
        pair = LOSSES.get(name, ("values", "values"))
        kinds.add(pair[bool(loss_arguments(found).get("from_logits", False))])
    if len(kinds) != 1:
        raise ValueError(
            f"Distillation: all outputs must be of one kind. Received: losses {losses}, so {sorted(kinds)}. "
            "Give Distillation(losses=...) of keras.distillation."
        )
    return kinds.pop()


class _Classes(keras.distillation.LogitsDistillation):
    """Keras's own, with its logits made from what the model gives."""

    def __init__(self, kind: str, temperature: float, loss: Any) -> None:
        super().__init__(temperature, loss)
        self.kind = kind

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
        logits = (tree.map_structure(self._logits, one) for one in (teacher_outputs, student_outputs))
        return super().compute_loss(*logits, **kwargs)

    def _logits(self, value: Any) -> Any:
        if self.kind == "logits":
            return value
        if self.kind == "binary_logits":
            return ops.stack([value, ops.zeros_like(value)], axis=-1)
        small = keras.config.epsilon()
        if self.kind == "probabilities":
            return ops.log(ops.maximum(value, small))
        return ops.log(ops.maximum(ops.stack([value, 1.0 - value], axis=-1), small))


class _Distiller(keras.distillation.Distiller):
    """Keras's own leaves out what the student's regularisers and `add_loss` say."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        if sample_weight is not None:
            raise _weights_are_unknown("samples with weights in the data set")
        total = super().compute_loss(x, y, y_pred, sample_weight, training)
        return ops.sum(ops.stack([total, *self.student.losses])) if self.student.losses else total
