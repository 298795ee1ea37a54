"""Pruning without training: scores now, masks now."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune import statistics
from keras_prune.devices import Device
from keras_prune.devices.pruned_tensors import choose_tensors
from keras_prune.masks.bound import Mask, bind, mask_of, release
from keras_prune.masks.hold import loose_zeros
from keras_prune.masks.recipe import Recipe, resolve_recipe
from keras_prune.masks.state import TrainingState, strategy_scope
from keras_prune.masks.update import Tensor, masks_at_sparsity
from keras_prune.models.variables import assign, read
from keras_prune.reconstruction.kernels import warn_of_left
from keras_prune.reconstruction.layer_by_layer import Pruned, inverse_hessians
from keras_prune.reconstruction.layer_by_layer import reconstruct as reconstruct_kernels
from keras_prune.scope import Scope, Target
from keras_prune.strategy import check_fraction
from keras_prune.text.progress import progress
from keras_prune.training.measuring import measure_curves, with_curves
from keras_prune.training.pruning_run import NOTABLE

__all__ = ["prune"]


def prune(
    model: keras.Model,
    sparsity: float = 0.5,
    criterion: Any = "magnitude",
    pattern: Any = None,
    allocation: Any = None,
    *,
    scope: Scope | None = None,
    target: str | Device | None = None,
    reconstruct: Any = None,
    verbose: Any = "auto",
) -> keras.Model:
    """Prune a model at once, in place, without training.

    The masks stay on the model: a later `fit` keeps pruned weights at zero, and another `prune` or a callback goes on
    from them. Criteria that need gradients or activations take them on their `data`.

    Args:
        model: a built model; compiled, if the criterion takes gradients.
        sparsity: the share of the weights in scope to be zero, a fraction in [0, 1).
        criterion: a name or an instance, as for `Pruning`.
        pattern: a name or an instance, as for `Pruning`.
        allocation: a name, a mapping or an instance, as for `Pruning`.
        scope: which tensors are pruned; None for all kernels.
        target: the device that the model is for, as for `Pruning`.
        reconstruct: inputs, or batches of them (labels are not looked at; a thousand are enough). Layer after layer,
            the weights that are kept, and biases, are solved again by least squares, so that each layer gives what
            it gave in the dense model, on what it reads in the pruned one. With the criterion "second_order" masks are
            chosen on the way.
        verbose: whether a bar shows how far `reconstruct` is: 1, 0, or "auto" where a terminal or notebook shows it.

    Returns:
        The same model.

    Raises:
        ValueError: as for `Pruning`.

    Example:
        >>> import keras
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10)])
        >>> int((kp.prune(model, 0.75).layers[0].kernel.numpy() == 0).sum())
        60
    """
    check_fraction("prune: sparsity", sparsity)
    recipe = resolve_recipe(criterion, pattern, allocation, default="global")
    recipe.check_data("prune", training=False, reconstruction=reconstruct is not None)
    survey, recipe = choose_tensors(model, scope, recipe, target, "prune", sparsity)
    targets = survey.targets
    rounds = recipe.criterion.rounds
    earlier = [mask_of(target.variable) for target in targets]
    # One round writes nothing before all that may fail is done.
    before = [(v, read(v).copy()) for v in model.weights] if rounds > 1 or reconstruct is not None else []
    with strategy_scope(model):
        state = TrainingState.of(model)
        state.left_alone = survey.for_target
        masks = [bind(target, state) for target in targets]
    passes = 0 if reconstruct is None else 1 + rounds * recipe.while_solving
    with _given_back_on_error(masks, earlier, before), progress("prune", passes * len(masks), verbose) as done:
        for i in range(1, rounds + 1):
            share = sparsity if i == rounds else 1.0 - (1.0 - sparsity) ** (i / rounds)
            solved = inverse_hessians(model, targets, reconstruct, done) if recipe.while_solving else None
            tensors = _tensors(model, targets, masks, recipe, solved)
            values = masks_at_sparsity(tensors, recipe, share, final=sparsity)
            for mask, value in zip(masks, values, strict=True):
                mask.write(value)
        if reconstruct is not None:
            dense = {id(variable): value for variable, value in before}
            pruned = [Pruned(m, dense[id(m.target.variable)], held) for m, held in zip(masks, earlier, strict=True)]
            warn_of_left("prune", reconstruct_kernels(model, pruned, reconstruct, recipe, done))
    # One that was compiled before would train without the masks.
    model.train_function = None
    _warn_of_loose_zeros(masks)
    return model


@contextlib.contextmanager
def _given_back_on_error(
    masks: list[Mask],
    earlier: list[npt.NDArray[np.bool_] | None],
    before: list[tuple[keras.Variable, npt.NDArray[Any]]],
) -> Iterator[None]:
    """In an error, put back the masks that there were, None where there was none, and the weights noted `before`."""
    try:
        yield
    except BaseException:
        for mask, held in zip(masks, earlier, strict=True):
            if held is None:
                release(mask.target.variable)
            elif before:
                mask.write(held)
        for variable, weights in before:
            assign(variable, weights)
        raise


def _warn_of_loose_zeros(masks: list[Mask]) -> None:
    loose = sum(loose_zeros(mask.target.variable, mask.read()) for mask in masks)
    if loose > NOTABLE * sum(math.prod(mask.target.variable.shape) for mask in masks):
        warnings.warn(
            f"prune: {loose:,} zeros more than asked for stand in the weights, and no mask holds them: a fit "
            "fills them in. keras_prune.hold(model) keeps them.",
            stacklevel=3,
        )


def _tensors(
    model: keras.Model,
    targets: tuple[Target, ...],
    masks: list[Mask],
    recipe: Recipe,
    gathered: list[dict[str, Any]] | None = None,
) -> list[Tensor]:
    """The tensors with the statistics that were gathered, or else with those that the criterion needs."""
    if gathered is None:
        gathered = statistics.collect(model, targets, recipe.criterion.needs, recipe.criterion.data)
    tensors = [
        Tensor(t.path, read(t.variable), m.read() if m.zeros else None, t.layout, values, t.index)
        for t, m, values in zip(targets, masks, gathered, strict=True)
    ]
    if recipe.allocation.needs_curves:
        tensors = with_curves(tensors, measure_curves(model, targets, tensors, recipe))
    return tensors
